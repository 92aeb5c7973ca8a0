"""Films: each real frame once, at its time, whatever the rate; damage is said at the end."""

import struct
import subprocess

import imageio_ffmpeg
import numpy as np
import pytest
from PIL import Image

from qcs.config.errors import UserError
from qcs.inference import video

TIMES = [
    0,
    1 / 30,
    2 / 30,
    3 / 30,
    0.3,
    0.5,
    0.7,
    1.7,
    1.8,
    2.6,
]  # as a phone in the dark takes them


def ffmpeg(*arguments) -> None:
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-y", "-loglevel", "error", *map(str, arguments)]
    subprocess.run(command, check=True)


@pytest.fixture(scope="module")
def phone(tmp_path_factory):
    """A film of ten frames at `TIMES`, the n-th of brightness 20 n + 20, its left half black."""
    path = tmp_path_factory.mktemp("film") / "phone.mp4"
    grey = "geq=lum='if(lt(X,W/2),16,20*N+20)':cb=128:cr=128"
    times = "+".join(f"eq(N,{n})*{time}" for n, time in enumerate(TIMES))
    source = "color=size=64x48:rate=30"
    look = ("-vf", f"{grey},setpts='({times})/TB'", "-fps_mode", "vfr", "-pix_fmt", "yuv420p")
    clock = ("-video_track_timescale", 90_000)
    ffmpeg("-f", "lavfi", "-i", source, "-frames:v", 10, *look, *clock, path)
    return path


def brightness(image: Image.Image) -> int:
    return round((np.asarray(image)[24, 60].mean() * 219 / 255 + 16 - 20) / 20)


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".mov", ".avi"])
def test_each_frame_comes_once_at_the_time_that_it_is_shown(phone, suffix, tmp_path):
    path = tmp_path / f"film{suffix}"
    if suffix == ".avi":  # it has a fixed rate, and empty places
        ffmpeg("-i", phone, "-c:v", "mpeg4", "-r", 30, "-q:v", 1, path)
    else:
        ffmpeg("-i", phone, "-c", "copy", path)
    frames = list(video.film(path))
    assert [frame.number for frame in frames] == list(range(len(frames)))
    if suffix != ".avi":
        assert [brightness(frame.image) for frame in frames] == list(range(10))
        np.testing.assert_allclose([frame.seconds for frame in frames], TIMES, atol=0.002)
    for frame in frames:  # what is shown then
        assert TIMES[brightness(frame.image)] <= frame.seconds + 1 / 30


def test_each_third_frame_and_the_first_frames(phone):
    assert [frame.number for frame in video.film(phone, every=3)] == [0, 3, 6, 9]
    assert [frame.number for frame in video.film(phone, every=4, limit=2)] == [0, 4]


# What the header of an .mp4 says of how its pictures are shown: (a, b, c, d) of its matrix.
TURNED = {
    "90": (0, 1, -1, 0), "180": (-1, 0, 0, -1), "270": (0, -1, 1, 0), "mirrored": (-1, 0, 0, 1),
    "upside down": (1, 0, 0, -1), "transposed": (0, 1, 1, 0), "across": (0, -1, -1, 0),
    "nothing": (0, 0, 0, 0),
}  # fmt: skip


@pytest.mark.parametrize("name", TURNED)
def test_a_film_that_was_taken_turned_or_mirrored_is_upright(name, tmp_path):
    """As FFmpeg itself shows it; each quarter of the picture has a brightness of its own."""
    quarters = "geq=lum='16+70*gt(X,W/2)+140*gt(Y,H/2)':cb=128:cr=128"
    source = ("-f", "lavfi", "-i", "color=size=64x48", "-vf", quarters, "-pix_fmt", "yuv420p")
    ffmpeg(*source, "-frames:v", 1, tmp_path / "film.mp4")
    content = (tmp_path / "film.mp4").read_bytes()
    straight = struct.pack(">9i", 1 << 16, 0, 0, 0, 1 << 16, 0, 0, 0, 1 << 30)
    a, b, c, d = (number << 16 for number in TURNED[name])
    place = content.index(straight, content.index(b"tkhd"))
    turned = content[:place] + struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    (tmp_path / "film.mp4").write_bytes(turned + content[place + len(straight) :])
    ffmpeg("-i", tmp_path / "film.mp4", tmp_path / "upright.png")
    first = next(video.film(tmp_path / "film.mp4")).image
    expected = Image.open(tmp_path / "upright.png").convert("RGB")
    assert first.size == expected.size
    assert np.abs(np.asarray(first, dtype=int) - np.asarray(expected, dtype=int)).mean() < 2


def test_a_film_that_begins_late_counts_from_its_beginning(phone, tmp_path):
    ffmpeg("-i", phone, "-output_ts_offset", 5, "-c:v", "mpeg2video", "-r", 25, tmp_path / "a.mpg")
    assert next(video.film(tmp_path / "a.mpg")).seconds == pytest.approx(0, abs=0.05)


def test_times_go_on_where_films_were_joined(phone, tmp_path):
    ffmpeg("-i", phone, "-c:v", "mpeg2video", "-r", 25, tmp_path / "a.ts")
    once = [frame.seconds for frame in video.film(tmp_path / "a.ts")]
    (tmp_path / "b.mts").write_bytes(2 * (tmp_path / "a.ts").read_bytes())
    twice = [frame.seconds for frame in video.film(tmp_path / "b.mts")]
    assert twice[: len(once)] == once and len(twice) >= 2 * len(once) - 1
    assert np.diff(twice) == pytest.approx([0.04] * (len(twice) - 1), abs=0.01)


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_a_film_that_was_cut_off_gives_its_frames_and_then_says_so(phone, suffix, tmp_path):
    path = tmp_path / f"film{suffix}"
    options = ("-movflags", "+faststart") if suffix == ".mp4" else ()
    ffmpeg("-stream_loop", 5, "-i", phone, "-c:v", "mpeg4", "-bf", 0, *options, path)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    frames = video.film(path)
    assert next(frames).number == 0
    with pytest.raises(UserError, match="it ends after|damaged in"):
        list(frames)


def test_a_frame_that_the_decoder_had_to_make_up_is_left_out_and_counted(tmp_path):
    source = ("-f", "lavfi", "-i", "testsrc=size=160x120:rate=10", "-frames:v", 9)
    ffmpeg(*source, "-c:v", "mpeg4", "-g", 1, tmp_path / "film.avi")
    content = bytearray((tmp_path / "film.avi").read_bytes())
    middle = len(content) // 2  # in the fifth frame
    content[middle : middle + 40] = bytes(40)
    (tmp_path / "film.avi").write_bytes(content)
    numbers = []
    with pytest.raises(UserError, match="damaged in 1 place$"):
        numbers.extend(frame.number for frame in video.film(tmp_path / "film.avi"))
    assert numbers == [0, 1, 2, 3, 5, 6, 7, 8]


def test_what_is_no_film_is_said(tmp_path):
    (tmp_path / "empty.mp4").write_bytes(b"")
    (tmp_path / "text.mp4").write_text("no film")
    ffmpeg("-f", "lavfi", "-i", "sine=duration=1", tmp_path / "sound.mp4")
    for name in ("empty.mp4", "text.mp4", "none.mp4"):
        with pytest.raises(UserError):
            list(video.film(tmp_path / name))
    with pytest.raises(UserError, match="sound, but no pictures"):
        list(video.film(tmp_path / "sound.mp4"))


def test_a_film_whose_title_is_no_utf8_is_read(phone, tmp_path):
    ffmpeg("-i", phone, "-c", "copy", "-metadata", "title=Latin letters", tmp_path / "a.mp4")
    content = (tmp_path / "a.mp4").read_bytes()
    assert b"Latin letters" in content
    (tmp_path / "a.mp4").write_bytes(content.replace(b"Latin letters", b"Latin l\xe9tt\xe9rs"))
    assert len(list(video.film(tmp_path / "a.mp4"))) == 10


def test_a_film_leads_to_no_other_file(phone, tmp_path, monkeypatch):
    """FFmpeg itself would open what a list names."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "secret.mp4").write_bytes(phone.read_bytes())
    (tmp_path / "list.mp4").write_text("ffconcat version 1.0\nfile 'secret.mp4'\n")
    with (tmp_path / "list.mp4").open("rb") as file, video.library().open(file) as container:
        assert container.format.name == "concat"
    with pytest.raises(UserError):
        list(video.film(tmp_path / "list.mp4"))


@pytest.mark.parametrize("size", [(64, 48), (33, 17)])
def test_a_written_film_has_the_times_of_its_frames(size, tmp_path):
    writer = video.FilmWriter(tmp_path / "film.mp4", size)
    for number, time in enumerate(TIMES):
        writer.add(Image.new("RGB", size, (20 * number,) * 3), time)
    writer.close()
    frames = list(video.film(tmp_path / "film.mp4"))
    np.testing.assert_allclose([frame.seconds for frame in frames], TIMES, atol=1e-4)
    colours = [np.asarray(frame.image, dtype=int).mean() for frame in frames]
    np.testing.assert_allclose(colours, 20 * np.arange(10), atol=4)
    assert all(n - m in (0, 1) for n, m in zip(frames[0].image.size, size, strict=True))


def test_a_film_that_cannot_be_written_is_a_sentence(tmp_path):
    with pytest.raises(UserError, match="cannot write .*no/film.mp4"):
        video.FilmWriter(tmp_path / "no/film.mp4", (64, 48))


@pytest.mark.parametrize("system", ["linux", "darwin"])
def test_a_webcam_is_opened_by_the_means_of_the_system(system, phone, monkeypatch):
    av, asked = video.library(), []
    real = av.open

    def camera(file, format=None, options=None):
        asked.append((file, format))
        return real(str(phone))

    monkeypatch.setattr(av, "open", camera)
    monkeypatch.setattr("sys.platform", system)
    assert [frame.number for frame in video.webcam(2, limit=3)] == [0, 1, 2]
    assert asked == [("/dev/video2", "v4l2") if system == "linux" else ("2", "avfoundation")]


def test_a_webcam_that_has_no_frame_yet_is_asked_again_but_not_for_ever(phone, monkeypatch):
    av = video.library()
    real = av.open

    class Camera:
        """Fails before each packet, as those of macOS do."""

        def __init__(self):
            self.file = real(str(phone))
            self.packets, self.asked, self.broken = self.file.demux(), 0, False

        def demux(self):
            for packet in self.packets if not self.broken else ():
                self.asked += 1
                yield packet
                raise av.error.BlockingIOError(35, "Resource temporarily unavailable")
            if self.broken:
                raise av.error.BlockingIOError(35, "Resource temporarily unavailable")

        def __enter__(self):
            return self

        def __exit__(self, *error):
            self.file.close()

        def __getattr__(self, name):
            return getattr(self.file, name)

    camera = Camera()
    monkeypatch.setattr(av, "open", lambda *arguments, **options: camera)
    assert [frame.number for frame in video.webcam(0, limit=9)] == list(range(9))
    assert camera.asked >= 9
    camera = Camera()
    camera.broken = True
    monkeypatch.setattr(video, "PATIENCE", 0.02)
    with pytest.raises(UserError, match="temporarily unavailable"):
        list(video.webcam(0))


def test_a_missing_webcam_and_a_missing_extra_are_sentences(monkeypatch):
    with pytest.raises(UserError):
        list(video.webcam(77))
    monkeypatch.setitem(__import__("sys").modules, "av", None)
    with pytest.raises(UserError, match=r"pip install"):
        list(video.film("film.mp4"))
