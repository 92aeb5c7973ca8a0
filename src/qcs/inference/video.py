"""Read and write films, and read webcams, with PyAV: `pip install -e '.[faces]'`.

PyAV (https://pyav.basswood-io.com) is FFmpeg as a library. It knows when each frame is shown;
films of phones need that, as their frame rate varies. It reads from an open file, so that a film
cannot make it open another file or a network connection.
"""

import os
import struct
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from PIL import Image

from qcs.config.errors import UserError, missing_extra, reason
from qcs.data.images import open_file

if TYPE_CHECKING:
    import av

FILMS = (".3gp", ".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".mts", ".webm", ".wmv")
# The readers of FFmpeg for these files; those of playlists, which name other files, are left out.
READERS = "asf,avi,matroska,webm,mov,mp4,mpeg,mpegts,mpegvideo"
CLOCK = Fraction(1, 90_000)  # of written films
FRAME_RATE = 25  # of films that do not say when their frames are shown
BACK = 0.1  # seconds by which times may go back within a film, as FFmpeg allows
PATIENCE = 10.0  # seconds that a webcam may take for a frame
MARGIN = 1.0  # seconds by which a whole film may end before the length in its header


class Frame(NamedTuple):
    """A frame of a film."""

    number: int  # from 0
    seconds: float | None  # after the film's start; None where the film does not say
    image: Image.Image  # upright RGB


def library() -> Any:
    """Import PyAV.

    Raises:
        UserError: it is not installed.
    """
    try:
        import av
    except ImportError as error:
        raise missing_extra("faces", "videos and webcams need") from error
    return av


def film(path: str | Path, every: int = 1, limit: int | None = None) -> Iterator[Frame]:
    """Read the frames of a film, each of them once, in the order in which they are shown.

    Args:
        every: return one of so many frames.
        limit: return at most so many frames; None for all.

    Raises:
        UserError: the file is not a film, or is damaged; raised after the frames that can be read.
    """
    av = library()
    # An option of the container alone: PyAV before 18 crashes if the streams get it as well.
    options: dict[str, Any] = {"container_options": {"format_whitelist": READERS}}
    if int(av.__version__.partition(".")[0]) < 19:  # later versions need no such option
        options["metadata_errors"] = "replace"  # in titles that are not UTF-8
    try:
        with open_file(path) as file:
            if not os.fstat(file.fileno()).st_size:
                raise UserError("it is empty")
            with av.open(file, **options) as container:
                yield from _going_on(_frames(container, every, limit))
    except (av.FFmpegError, OSError) as error:
        raise UserError(reason(error)) from error


def _going_on(frames: Iterator[Frame]) -> Iterator[Frame]:
    """Let the times go on where they jump back, as in films that were joined byte by byte."""
    added = last = 0.0
    for frame in frames:
        if frame.seconds is not None:
            if frame.seconds + added < last - BACK:
                added = last + 1 / FRAME_RATE - frame.seconds
            last = frame.seconds + added
            frame = frame._replace(seconds=last)
        yield frame


def webcam(number: int, every: int = 1, limit: int | None = None) -> Iterator[Frame]:
    """Read the frames of a webcam until it is closed.

    Raises:
        UserError: there is no such camera, or permission is missing.
    """
    av = library()
    try:
        with av.open(**_camera(av, number)) as container:
            yield from _frames(container, every, limit)
    except (av.FFmpegError, OSError, ValueError) as error:
        raise UserError(reason(error)) from error


def _camera(av: Any, number: int) -> dict[str, Any]:
    """The arguments with which PyAV opens a camera on this system."""
    if sys.platform == "win32":
        cameras = [d for d in av.enumerate_input_devices("dshow") if "video" in d.media_types]
        if number >= len(cameras):
            raise UserError(f"{len(cameras)} cameras were found, numbered from 0")
        return {"file": f"video={cameras[number].name}", "format": "dshow"}
    if sys.platform == "darwin":
        return {"file": str(number), "format": "avfoundation", "options": {"framerate": "30"}}
    return {"file": f"/dev/video{number}", "format": "v4l2"}


def _frames(
    container: "av.container.InputContainer", every: int, limit: int | None
) -> Iterator[Frame]:
    av = library()
    stream = container.streams.best("video")
    if stream is None:
        raise UserError("it holds sound, but no pictures")
    start = (container.start_time or 0) / av.time_base
    number, given, damaged, end = 0, 0, 0, start
    for packet in _packets(container):
        if packet.pts is not None and packet.time_base:
            end = max(end, float((packet.pts + (packet.duration or 0)) * packet.time_base))
        if packet.stream_index != stream.index:
            continue
        try:
            frames: Any = packet.decode()  # of the stream of pictures, so they are `VideoFrame`s
        except av.error.InvalidDataError:  # the frames after it may be whole
            damaged += 1
            continue
        damaged += sum(frame.is_corrupt for frame in frames)
        for frame in frames:
            if number % every == 0 and not frame.is_corrupt:  # a corrupt one is partly made up
                seconds = None if frame.time is None else max(frame.time - start, 0.0)
                yield Frame(number, seconds, _upright(frame))
                given += 1
            number += 1
            if given == limit:
                return
    length = (container.duration or 0) / av.time_base
    if not number:
        raise UserError("no frames")
    if damaged:
        raise UserError(f"damaged in {damaged} place{'s' * (damaged > 1)}")
    if end - start < 0.98 * length - MARGIN:
        raise UserError(f"it ends after {end - start:.1f} of {length:.1f} seconds")


def _packets(container: "av.container.InputContainer") -> Iterator["av.Packet"]:
    """The packets of a film or webcam; a webcam of macOS is asked again until it has a frame."""
    last = time.monotonic()
    while True:
        try:
            for packet in container.demux():
                yield packet
                last = time.monotonic()
            return
        except BlockingIOError:
            if time.monotonic() - last > PATIENCE:
                raise
            time.sleep(0.005)


def _upright(frame: "av.VideoFrame") -> Image.Image:
    """The image of a frame, turned and mirrored by the matrix that its film carries for that."""
    image = frame.to_image()
    matrix: Any = frame.side_data.get("DISPLAYMATRIX")
    if matrix is None:
        return image
    # The pixel in column x of row y is shown in column a x + c y of row b x + d y.
    a, b, _, c, d = struct.unpack("9i", bytes(matrix))[:5]
    if abs(b) > abs(a):  # rows become columns
        image, a, d = image.transpose(Image.Transpose.TRANSPOSE), c, b
    if a < 0:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return image.transpose(Image.Transpose.FLIP_TOP_BOTTOM) if d < 0 else image


class FilmWriter:
    """Writes an .mp4 film whose frames are shown at given times.

    Args:
        path: of the film; its folder exists.
        size: width and height of the frames in pixels.

    Raises:
        UserError: it cannot be written; the methods raise the same.
    """

    def __init__(self, path: str | Path, size: tuple[int, int]) -> None:
        av = library()
        self.path, self.last = path, -1
        width, height = (max(n + n % 2, 2) for n in size)  # the codec takes even sides only
        self.size = (width, height)
        with _writing(path):
            self.file = open(path, "wb")  # noqa: SIM115
        self.container = av.open(self.file, "w", format="mp4")
        codec = "libx264" if "libx264" in av.codecs_available else "mpeg4"
        self.stream = self.container.add_stream(codec, rate=30)
        self.stream.width, self.stream.height = self.size
        self.stream.pix_fmt = "yuv420p"
        self.stream.codec_context.time_base = CLOCK

    def add(self, image: Image.Image, seconds: float) -> None:
        """Add a frame, an RGB image; one of another size is enlarged or reduced.

        Args:
            seconds: after the film's start, later than the frame before.
        """
        frame = library().VideoFrame.from_image(_padded(image, self.size))
        self.last = frame.pts = max(round(seconds / CLOCK), self.last + 1)
        frame.time_base = CLOCK
        with _writing(self.path):
            self.container.mux(self.stream.encode(frame))

    def close(self) -> None:
        """Finish the film and close its file."""
        with _writing(self.path), self.file, self.container:
            self.container.mux(self.stream.encode())


@contextmanager
def _writing(path: str | Path) -> Iterator[None]:
    try:
        yield
    except (library().FFmpegError, OSError) as error:
        raise UserError(f"cannot write {path} ({reason(error)})") from error


def _padded(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """An image of the given size; the edge is repeated where one row or column is missing."""
    if image.size == size:
        return image
    if any(not 0 <= b - a <= 1 for a, b in zip(image.size, size, strict=True)):
        return image.resize(size)
    padded = Image.new("RGB", size)
    for x, y in ((1, 1), (1, 0), (0, 1), (0, 0)):
        padded.paste(image, (x * (size[0] - image.width), y * (size[1] - image.height)))
    return padded
