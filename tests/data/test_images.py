"""How a file becomes upright RGB, and what is refused in a sentence."""

import io
import struct
import warnings
import zlib

import numpy as np
import pytest
from PIL import Image

from qcs.config.errors import UserError
from qcs.data import images
from qcs.data.images import decode, read_image, upright_rgb


def encoded(image: Image.Image, kind: str, **options) -> io.BytesIO:
    file = io.BytesIO()
    image.save(file, kind, **options)
    file.seek(0)
    return file


@pytest.mark.parametrize(
    "kind,image",
    [
        ("EPS", Image.new("RGB", (8, 8))),
        ("PDF", Image.new("RGB", (8, 8))),
        ("ICO", Image.new("RGB", (16, 16))),
        ("TGA", Image.new("RGB", (8, 8))),
        ("PCX", Image.new("RGB", (8, 8))),
    ],
)
def test_only_formats_of_photographs_are_opened(kind, image, monkeypatch):
    monkeypatch.setattr("PIL.EpsImagePlugin.Ghostscript", lambda *a, **k: pytest.fail("ran"))
    with pytest.raises(UserError, match="not an image of the formats BMP, GIF, JPEG"):
        decode(encoded(image, kind))


def test_metafiles_are_not_opened():
    wmf = b"\xd7\xcd\xc6\x9a\0\0" + struct.pack("<4hH", 0, 0, 9, 9, 96) + bytes(4)
    for content in (wmf + b"\x01\0\t\0" + bytes(40), b"\x01\0\0\0" + bytes(36) + b" EMF"):
        with pytest.raises(UserError, match="not an image of the formats"):
            decode(io.BytesIO(content))


def png(width: int, height: int) -> bytes:
    """A one-bit PNG of zeros, which is small whatever its size."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        check = struct.pack(">I", zlib.crc32(kind + content))
        return struct.pack(">I", len(content)) + kind + content + check

    rows = zlib.compress(bytes((width + 7) // 8 + 1) * min(height, 10))
    header = struct.pack(">2I5B", width, height, 1, 0, 0, 0, 0)
    start = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header)
    return start + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


@pytest.mark.parametrize("size", [(12_000, 10_001), (13_300, 13_300), (60_000, 60_000)])
def test_the_header_alone_tells_that_an_image_is_too_large(size, monkeypatch):
    monkeypatch.setattr(Image.Image, "load", lambda self: pytest.fail("decoded"))
    with pytest.raises(UserError, match="pixels"):
        decode(io.BytesIO(png(*size)))


def test_pillows_own_warning_is_not_shown(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 70)
    with warnings.catch_warnings(record=True) as caught:
        warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
        assert decode(encoded(Image.new("RGB", (10, 10)), "PNG")).size == (10, 10)
    assert not caught


@pytest.mark.parametrize("size", [(0, 5), (5, 0), (0, 0)])
def test_an_image_without_pixels_is_refused(size):
    with pytest.raises(UserError, match="it has .* pixels"):
        upright_rgb(Image.new("RGB", size))


@pytest.mark.parametrize("mode", ["LAB", "HSV", "YCbCr", "CMYK", "RGBa", "La", "PA", "1", "I;16B"])
def test_every_kind_of_pixels_is_right_or_refused(mode):
    image = Image.new("L", (4, 4)).convert(mode) if mode == "1" else Image.new(mode, (4, 4))
    try:
        assert upright_rgb(image).mode == "RGB"
    except UserError as error:
        assert mode in str(error)


def test_16_bits_of_either_byte_order():
    values = np.full((4, 4), 257 * 77)
    for kind in ("<u2", ">u2"):
        header = b"II*\0" if kind == "<u2" else b"MM\0*"
        order = header[:1].decode().replace("I", "<").replace("M", ">")
        tags = [(256, 4), (257, 4), (258, 16), (259, 1), (262, 1), (273, 122), (277, 1), (278, 4),
                (279, 32)]  # fmt: skip
        entries = b"".join(struct.pack(order + "HHII", t, 4, 1, v) for t, v in tags)
        content = header + struct.pack(order + "IH", 8, len(tags)) + entries + bytes(4)
        file = io.BytesIO(content + values.astype(kind).tobytes())
        assert decode(file).getpixel((1, 1)) == (77, 77, 77)


def test_an_open_image_becomes_what_its_file_becomes():
    exif = Image.Exif()
    exif[0x0112] = 6
    grey = Image.fromarray(np.arange(0, 65536, 2048, dtype=np.uint16).reshape(4, 8))
    clear = Image.new("RGBA", (4, 3), (200, 0, 0, 128))
    for image, options in ((grey, {}), (clear, {"exif": exif})):
        file = encoded(image, "PNG", **options)
        with Image.open(file) as opened:
            alone = upright_rgb(opened)
        file.seek(0)
        assert alone.mode == "RGB" and alone.tobytes() == decode(file).tobytes()
    assert alone.size == (3, 4) and alone.getpixel((0, 0)) == (227, 127, 127)


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG"])
def test_of_a_moving_picture_the_first_frame_is_taken(kind):
    frames = [Image.new("RGB", (16, 16), colour) for colour in ("red", "blue")]
    lossless = {"lossless": True} if kind == "WEBP" else {}
    file = encoded(frames[0], kind, save_all=True, append_images=frames[1:], **lossless)
    assert decode(file).getpixel((3, 3))[::2] in {(255, 0), (254, 0)}


def test_a_palette_with_transparency_is_laid_on_white():
    image = Image.new("P", (4, 4), 1)
    image.putpalette([0, 0, 0, 9, 9, 9] + [0] * 762)
    for kind in ("PNG", "GIF"):
        assert decode(encoded(image, kind, transparency=1)).getpixel((1, 1)) == (255, 255, 255)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "TIFF", "BMP", "GIF", "PPM"])
def test_a_file_that_was_cut_short_or_damaged_is_a_sentence(kind):
    pixels = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
    whole = encoded(Image.fromarray(pixels), kind).getvalue()
    for cut in (len(whole) // 2, len(whole) // 8):
        with pytest.raises(UserError, match=r"\w"):
            decode(io.BytesIO(whole[:cut]))
    with pytest.raises(UserError, match="^it is empty$"):
        decode(io.BytesIO())
    rng = np.random.default_rng(1)
    for _ in range(60):  # right or one sentence, whatever was flipped
        damaged = bytearray(whole)
        for place in rng.integers(0, min(len(whole), 200), 3):
            damaged[place] ^= int(rng.integers(1, 256))
        try:
            decode(io.BytesIO(bytes(damaged)))
        except UserError as error:
            assert str(error)


def test_formats_that_depend_on_the_machine(tmp_path):
    if "AVIF" not in images.FORMATS:
        pytest.skip("this Pillow has no AVIF")
    Image.new("RGB", (16, 16), "red").save(tmp_path / "x.avif", quality=100)
    assert read_image(tmp_path / "x.avif").getpixel((5, 5))[0] > 240


def test_an_open_eps_does_not_reach_ghostscript(tmp_path, monkeypatch):
    monkeypatch.setattr("subprocess.Popen", None)
    (tmp_path / "a.jpg").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n")
    with Image.open(tmp_path / "a.jpg") as image, pytest.raises(UserError, match="EPS"):
        upright_rgb(image)
