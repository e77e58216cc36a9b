"""Image files in and out: what is converted, what is kept, what is refused."""

import io
import pickle
import random
import struct
import sys
import threading
import zlib
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageCms, ImageOps

from hpcmcodec.errors import HpcmError, InputError, UnsupportedError
from hpcmcodec.image import DecodedImage, Picture, load, to_image, write_png
from hpcmcodec.image.colour import icc_profile
from tests.files import tiff_file, tiff_tags

LOSSLESS = {"PNG": {}, "WEBP": {"lossless": True}, "TIFF": {}, "BMP": {}, "PPM": {}}
SRGB_PRIMARIES = ((0.64, 0.33), (0.30, 0.60), (0.15, 0.06), (0.3127, 0.3290))
XMP = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><r tiff:Orientation="6" dc:title="caf\xc3\xa9"/></x:xmpmeta>'
# What each value of EXIF's Orientation asks of a viewer (EXIF 2.32, 4.6.4.A), in Pillow's terms.
TURNS = {
    1: None,
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


@pytest.fixture
def photo(photos: dict[str, Path]) -> Image.Image:
    """A corner of a photograph, 60x40, unlike itself under every turn."""
    with Image.open(photos["coffee"]) as image:
        return image.convert("RGB").crop((200, 100, 260, 140))


def saved(image: Image.Image, form: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def read(data: bytes, max_pixels: int | None = 1_000_000) -> Picture:
    return load(data, max_pixels=max_pixels)


def png(samples: np.ndarray, depth: int, *chunks: tuple[bytes, bytes], claim: tuple[int, int] | None = None) -> bytes:
    """A PNG of (H, W, 1..4) integers with 8 or 16 bits a sample (Pillow writes no colour of 16 bits).

    `claim`: a height and width to state in the header instead.
    """
    height, width = claim or samples.shape[:2]
    channels = samples.shape[2]
    header = struct.pack(">IIBBBBB", width, height, depth, (0, 4, 2, 6)[channels - 1], 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(f">u{depth // 8}").tobytes() for row in samples)
    parts = [(b"IHDR", header), *chunks, (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body)) for kind, body in parts
    )


def deep_noise(channels: int) -> np.ndarray:
    """(6, 9, channels) uint16 of all values."""
    return np.random.default_rng(channels).integers(0, 65536, (6, 9, channels)).astype(np.uint16)


def colours(samples: np.ndarray) -> np.ndarray:
    """(H, W, 3) of samples (H, W, 1..4), without their alpha."""
    return samples[..., :3] if samples.shape[2] > 2 else np.repeat(samples[..., :1], 3, axis=2)


def exif(orientation: int | None = None) -> bytes:
    """An EXIF block with a maker, a thumbnail directory's worth of sub-directory, and an orientation."""
    block = Image.Exif()
    block[0x010F] = "Maker of cameras"
    if orientation is not None:
        block[0x0112] = orientation
    block[0x8769] = {0x9003: "2024:02:29 12:00:00", 0x927C: bytes(range(64))}
    return block.tobytes()


def profile(space: bytes, tags: dict[bytes, bytes], kind: bytes = b"prtr", pcs: bytes = b"Lab ") -> bytes:
    """An ICC profile, version 2, of the given tags (ICC.1:2001-04, 6)."""
    tags = {b"wtpt": b"XYZ \0\0\0\0" + struct.pack(">3i", 63190, 65536, 54061), **tags}
    table, body = b"", b""
    for name, data in tags.items():
        table += name + struct.pack(">II", 132 + 12 * len(tags) + len(body), len(data))
        body += data + bytes(-len(data) % 4)
    size = 132 + len(table) + len(body)
    header = struct.pack(">I4sI4s4s4s12s4s28sIII", size, b"", 0x02100000, kind, space, pcs, b"", b"acsp", b"", 0, 0, 0)
    illuminant = struct.pack(">3i", 63190, 65536, 54061)
    header = header[:68] + illuminant + bytes(128 - 80)
    return header + struct.pack(">I", len(tags)) + table + body


def cmyk_profile() -> bytes:
    """A press whose cyan ink prints red: unlike any formula. Lab: paper (100, 0, 0), this ink (50, 60, 30), black 0."""
    matrix = struct.pack(">9i", 65536, 0, 0, 0, 65536, 0, 0, 0, 65536)
    ramp = bytes(range(256))
    paper, ink, black = (
        bytes((round(2.55 * light), 128 + a, 128 + b)) for light, a, b in ((100, 0, 0), (50, 60, 30), (0, 0, 0))
    )
    grid = b"".join(black if point & 1 else ink if point & 8 else paper for point in range(16))
    return profile(b"CMYK", {b"A2B0": b"mft1\0\0\0\0" + bytes((4, 3, 2, 0)) + matrix + ramp * 4 + grid + ramp * 3})


def linear_grey_profile() -> bytes:
    return profile(b"GRAY", {b"kTRC": b"curv\0\0\0\0" + bytes(4)}, kind=b"mntr", pcs=b"XYZ ")


@lru_cache  # it holds the time at which it was made
def srgb_profile() -> bytes:
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


# ------------------------------------------------------------------------------------------------------ sources


@pytest.mark.parametrize("form", LOSSLESS)
def test_lossless_files_give_their_pixels_without_a_note(photo: Image.Image, form: str) -> None:
    assert np.array_equal(read(saved(photo, form, **LOSSLESS[form])).pixels, np.asarray(photo))
    assert read(saved(photo, form, **LOSSLESS[form])).notes == ()


@pytest.mark.parametrize("form", ["JPEG", "WEBP", "AVIF", "JPEG2000"])
def test_lossy_files_give_the_pixels_that_pillow_decodes(photo: Image.Image, form: str) -> None:
    data = saved(photo, form)
    with Image.open(io.BytesIO(data)) as image:
        assert np.array_equal(read(data).pixels, np.asarray(image.convert("RGB")))
    assert read(data).notes == ()


def test_path_bytes_file_pil_image_and_array_give_the_same_picture(photo: Image.Image, tmp_path: Path) -> None:
    data = saved(photo, "PNG", icc_profile=srgb_profile(), exif=exif(6))
    path = tmp_path / "photo.anything"  # the content decides, not the name
    path.write_bytes(data)
    expected = read(data)
    assert expected.pixels.shape == (60, 40, 3)
    with path.open("rb") as file, Image.open(path) as image:
        for source in (path, str(path), bytearray(data), memoryview(data), file, image):
            picture = load(source, max_pixels=None)
            assert np.array_equal(picture.pixels, expected.pixels)
            assert picture.metadata == expected.metadata
    assert np.array_equal(load(expected.pixels, max_pixels=None).pixels, expected.pixels)


def test_picture_is_returned_as_it_is(photo: Image.Image) -> None:
    picture = read(saved(photo, "PNG"))
    assert load(picture, max_pixels=None) is picture


def test_pipe_is_read_to_its_end(photo: Image.Image, tmp_path: Path) -> None:
    import os

    fifo = tmp_path / "pipe"
    os.mkfifo(fifo)
    data = saved(photo, "PNG")
    writer = threading.Thread(target=fifo.write_bytes, args=(data,))
    writer.start()
    picture = load(fifo, max_pixels=None)
    writer.join()
    assert np.array_equal(picture.pixels, np.asarray(photo))


def test_array_view_becomes_contiguous() -> None:
    array = np.arange(5 * 7 * 3, dtype=np.uint8).reshape(5, 7, 3)[::-1, ::2]
    pixels = load(array, max_pixels=None).pixels
    assert pixels.flags.c_contiguous
    assert np.array_equal(pixels, array)


@pytest.mark.parametrize(
    ("source", "error"),
    [
        (np.zeros((4, 4, 3), np.int64), TypeError),
        (np.zeros((4, 4, 3), bool), TypeError),
        (np.zeros(4, np.uint8), ValueError),
        (np.zeros((4, 4, 5), np.uint8), ValueError),
        (np.zeros((1, 4, 4, 3), np.uint8), ValueError),
        (np.full((4, 4, 3), 1.5, np.float32), ValueError),
        (np.full((4, 4, 3), -0.1), ValueError),
        (np.full((4, 4, 3), np.nan), ValueError),
        (np.zeros((0, 4, 3), np.uint8), ValueError),
        (42, TypeError),
        (None, TypeError),
    ],
)
def test_what_is_no_image_at_all_is_a_mistake_in_the_call(source: object, error: type[Exception]) -> None:
    with pytest.raises(error):
        load(source, max_pixels=None)  # type: ignore[arg-type]


# -------------------------------------------------------------------------------------------------- conversions


@pytest.mark.parametrize("mode", ["L", "1"])
@pytest.mark.parametrize("form", ["PNG", "TIFF", "PPM"])
def test_greyscale_stays_grey_without_a_note(photo: Image.Image, mode: str, form: str) -> None:
    image = photo.convert(mode)
    picture = read(saved(image, form))
    assert picture.grey
    assert np.array_equal(picture.pixels, np.asarray(image.convert("RGB")))
    assert picture.notes == ()
    assert np.array_equal(np.asarray(to_image(picture)), np.asarray(image.convert("L")))


def test_palette_is_expanded_with_a_note(photo: Image.Image) -> None:
    image = photo.quantize(16)
    picture = read(saved(image, "PNG"))
    assert np.array_equal(picture.pixels, np.asarray(image.convert("RGB")))
    assert picture.notes == ("palette converted to RGB",)


def test_ycbcr_tiff_is_converted_with_a_note(photo: Image.Image) -> None:
    image = photo.convert("YCbCr")
    picture = read(saved(image, "TIFF"))
    assert np.array_equal(picture.pixels, np.asarray(image.convert("RGB")))
    assert picture.notes == ("YCbCr converted to RGB",)


@pytest.mark.parametrize("form", ["PNG", "TIFF", "PPM", "JPEG2000"])
def test_16_bit_greyscale_is_kept_to_the_last_bit(form: str) -> None:
    levels = np.array([[0, 128, 129, 257, 32768, 65406, 65407, 65535]], np.uint16)
    picture = read(saved(Image.fromarray(levels), form))
    assert (picture.depth, picture.grey, picture.notes) == (16, True, ())
    assert np.array_equal(picture.pixels, np.repeat(levels[..., None], 3, axis=2))


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_16_bit_png_is_kept_to_the_last_bit(photo: Image.Image, channels: int) -> None:
    samples = deep_noise(channels)
    picture = read(png(samples, 16))
    assert (picture.depth, picture.notes) == (16, ())
    assert np.array_equal(picture.pixels, colours(samples))
    assert picture.grey == (channels < 3)
    if channels % 2:
        assert picture.alpha is None
    else:
        assert np.array_equal(picture.alpha, samples[..., -1])


def test_16_bit_colour_ppm_is_kept_at_the_depth_of_its_largest_level() -> None:
    picture = read(b"P6 2 1 65535\n" + np.array([0, 257, 514, 65535, 25700, 258], ">u2").tobytes())
    assert picture.pixels.tolist() == [[[0, 257, 514], [65535, 25700, 258]]]
    picture = read(b"P5 # levels\n3 1 1000\n" + np.array([0, 500, 1000], ">u2").tobytes())
    assert (picture.depth, picture.grey, picture.pixels[0, :, 0].tolist()) == (10, True, [0, 512, 1023])
    with pytest.raises(InputError, match="a level of 1001"):
        read(b"P5 1 1 1000\n" + np.array([1001], ">u2").tobytes())


def test_12_bit_tiff_keeps_its_depth() -> None:
    # Little-endian baseline TIFF, 2x1, one sample of 12 bits a pixel: 0xFFF and 0x800.
    tags = [(256, 2), (257, 1), (258, 12), (259, 1), (262, 1), (273, 8), (277, 1), (278, 1), (279, 3)]
    directory = struct.pack("<H", len(tags)) + b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    picture = read(struct.pack("<2sHI", b"II", 42, 12) + b"\xff\xf8\x00\0" + directory + bytes(4))
    assert (picture.depth, picture.grey, picture.pixels[0, :, 0].tolist()) == (12, True, [0xFFF, 0x800])
    assert to_image(picture).tobytes() == bytes((255, 128))


def test_avif_of_10_bits_is_reduced_with_a_note_where_nothing_reads_them(
    photo: Image.Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Pillow writes 8 bits only: state 10 in the configuration box and in the pixel information box.
    data = bytearray(saved(photo, "AVIF"))
    data[data.index(b"av1C") + 6] |= 0x40
    channels = data.index(b"pixi") + 9
    data[channels : channels + 3] = bytes((10, 10, 10))
    monkeypatch.setitem(sys.modules, "imagecodecs", None)
    (note,) = read(bytes(data)).notes
    assert note == '10-bit samples reduced to 8 bits; imagecodecs reads all of them: pip install "hpcmcodec[deep]"'


@pytest.mark.parametrize("form", ["JPEG", "TIFF"])
def test_cmyk_goes_through_its_profile_to_srgb(form: str) -> None:
    image = Image.new("CMYK", (16, 16), (255, 0, 0, 0))
    picture = read(saved(image, form, icc_profile=cmyk_profile()))
    assert picture.notes == ("CMYK converted to sRGB through its colour profile",)
    assert "ICC" not in picture.metadata
    # Lab (50, 60, 30) at D50 is sRGB (212, 61, 73), by the formulas of CIE 15 and IEC 61966-2-1 with Bradford's
    # adaptation; the profile's 8-bit Lab leaves a level or two.
    assert np.abs(picture.pixels.astype(int) - (212, 61, 73)).max() <= 2
    paper = read(saved(Image.new("CMYK", (16, 16), (0, 0, 0, 0)), form, icc_profile=cmyk_profile()))
    assert paper.pixels.min() >= 254


@pytest.mark.parametrize("options", [{}, {"icc_profile": b"not a profile"}, {"icc_profile": srgb_profile()}])
def test_cmyk_without_a_profile_that_fits_is_converted_by_formula_with_a_note(options: dict[str, bytes]) -> None:
    picture = read(saved(Image.new("CMYK", (16, 16), (255, 0, 0, 0)), "JPEG", **options))
    assert picture.pixels[0, 0].tolist() == [0, 255, 255]
    assert picture.notes[0] == "CMYK converted to RGB without a colour profile"
    assert len(picture.notes) == 1 + len(options)
    assert "ICC" not in picture.metadata


@pytest.mark.parametrize("mode", ["L", "LA"])
def test_greyscale_goes_through_its_profile_to_srgb(mode: str) -> None:
    level = 55  # of 255, linear: 0.2157, which sRGB encodes as 128
    image = Image.new(mode, (8, 8), level if mode == "L" else (level, 255))
    picture = read(saved(image, "PNG", icc_profile=linear_grey_profile()))
    assert picture.notes[-1] == "greyscale converted to sRGB through its colour profile"
    assert np.abs(picture.pixels.astype(int) - 128).max() <= 1
    assert "ICC" not in picture.metadata


def test_greyscale_with_an_rgb_profile_is_shown_as_that_profile_asks() -> None:
    assert (
        read(saved(Image.new("L", (8, 8), 100), "JPEG", icc_profile=srgb_profile())).pixels[0, 0].tolist() == [100] * 3
    )
    linear = icc_profile(SRGB_PRIMARIES, (1.0,), "linear")
    picture = read(saved(Image.new("L", (8, 8), 55), "PNG", icc_profile=linear))
    assert np.abs(picture.pixels.astype(int) - 128).max() <= 1
    assert "ICC" not in picture.metadata


@pytest.mark.parametrize("icc", [linear_grey_profile(), cmyk_profile(), b"x" * 200, b"short"])
def test_profile_that_does_not_describe_rgb_is_dropped_with_a_note(photo: Image.Image, icc: bytes) -> None:
    picture = read(saved(photo, "JPEG", icc_profile=icc))
    assert picture.notes == ("colour profile dropped: it is damaged or does not describe the picture",)
    assert "ICC" not in picture.metadata


# -------------------------------------------------------------------------------------------------------- alpha


@pytest.mark.parametrize(("mode", "form"), [("RGBA", "PNG"), ("LA", "PNG"), ("RGBA", "TIFF")])
def test_alpha_is_kept_and_dropped_with_a_note_where_it_is_opaque(photo: Image.Image, mode: str, form: str) -> None:
    image = photo.convert(mode)
    options = LOSSLESS[form]
    picture = read(saved(image, form, **options))
    assert np.array_equal(picture.pixels, np.asarray(image.convert("RGB")))
    assert picture.alpha is None
    assert picture.notes == ("alpha dropped: it is opaque everywhere",)
    alpha = Image.new("L", image.size, 255)
    alpha.putpixel((59, 39), 254)  # one pixel, hardly transparent
    image.putalpha(alpha)
    picture = read(saved(image, form, **options))
    assert np.array_equal(picture.alpha, np.asarray(alpha))
    assert (picture.grey, picture.notes) == (mode == "LA", ())
    assert np.array_equal(np.asarray(to_image(picture)), np.asarray(image))


@pytest.mark.parametrize("mode", ["La", "RGBa", "PA"])
def test_rarer_alpha_modes_of_pil_images_are_treated_alike(photo: Image.Image, mode: str) -> None:
    plain = {"La": "L", "RGBa": "RGB", "PA": "P"}[mode]
    opaque = photo.convert(plain).convert(mode.upper()).convert(mode)
    picture = load(opaque, max_pixels=None)
    assert np.array_equal(picture.pixels, np.asarray(photo.convert(plain).convert("RGB")))
    assert picture.notes[0] == "alpha dropped: it is opaque everywhere"
    colours: dict[str, tuple[float, ...]] = {"La": (90, 128), "RGBa": (90, 90, 90, 128), "PA": (0, 128)}
    transparent = Image.new(mode.upper(), (4, 4), colours[mode])
    picture = load(transparent.convert(mode), max_pixels=None)
    assert (picture.alpha == 128).all()
    assert abs(int(picture.pixels[0, 0, 0]) - int(colours[mode][0])) <= 1  # not darkened by its alpha


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB"])
def test_transparent_colour_becomes_alpha_where_a_pixel_has_it(mode: str) -> None:
    used = {"1": 1, "RGB": (9, 9, 9)}.get(mode, 9)
    unused = (8, 8, 8) if mode == "RGB" else 0
    image = Image.new(mode, (4, 4), used)  # type: ignore[arg-type]
    if mode == "P":
        image.putpalette(bytes(range(256)) * 3)
    picture = read(saved(image, "PNG", transparency=unused))
    assert picture.notes[0] == "alpha dropped: it is opaque everywhere"
    assert np.array_equal(picture.pixels, np.asarray(image.convert("RGB")))
    assert (read(saved(image, "PNG", transparency=used)).alpha == 0).all()


def test_alpha_values_of_a_palette_are_kept_and_dropped_where_all_are_opaque(photo: Image.Image) -> None:
    image = photo.quantize(16)
    assert read(saved(image, "PNG", transparency=b"\xff" * 16)).notes == (
        "alpha dropped: it is opaque everywhere",
        "palette converted to RGB",
    )
    picture = read(saved(image, "PNG", transparency=b"\xff" * 3 + b"\x80" + b"\xff" * 12))
    assert np.array_equal(picture.alpha, np.where(np.asarray(image) == 3, 0x80, 0xFF))


@pytest.mark.parametrize("channels", [1, 3])
def test_transparent_colour_of_16_bits_is_compared_in_all_of_them(channels: int) -> None:
    samples = np.full((2, 2, channels), 0x1234, np.uint16)
    samples[0, 0] = 0x1235
    assert read(png(samples, 16, (b"tRNS", b"\xff\xff" * channels))).notes[0].startswith("alpha dropped")
    assert read(png(samples, 16, (b"tRNS", b"\x12\x34" * channels))).alpha.tolist() == [[65535, 0], [0, 0]]


# ------------------------------------------------------------------------------------------------------- refused


@pytest.mark.parametrize("form", ["PNG", "GIF", "WEBP", "AVIF"])
def test_animation_is_refused_and_a_single_frame_is_not(photo: Image.Image, form: str) -> None:
    assert read(saved(photo, form)).pixels.shape == (40, 60, 3)
    frames = [photo, photo.rotate(180)]
    with pytest.raises(UnsupportedError, match="animation of 2 frames"):
        read(saved(frames[0], form, save_all=True, append_images=frames[1:]))


def test_tiff_of_several_pages_is_refused(photo: Image.Image) -> None:
    with pytest.raises(UnsupportedError, match="2 pages"):
        read(saved(photo, "TIFF", save_all=True, append_images=[photo]))


def test_first_picture_of_a_multi_picture_jpeg_is_used_with_a_note(photo: Image.Image) -> None:
    data = saved(photo, "MPO", save_all=True, append_images=[photo.rotate(180)])
    assert read(data).notes == ("the first of 2 pictures in this JPEG is used",)
    with Image.open(io.BytesIO(data)) as image:
        assert np.array_equal(read(data).pixels, np.asarray(image))


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (Image.new("F", (4, 4), 0.5), "floating-point"),
        (Image.new("I", (4, 4), 70000), "32-bit"),
        (Image.new("LAB", (4, 4)), "Lab"),
    ],
)
def test_pixels_without_a_meaning_in_8_bit_rgb_are_refused_by_name(image: Image.Image, message: str) -> None:
    with pytest.raises(UnsupportedError, match=message):
        read(saved(image, "TIFF"))
    with pytest.raises(UnsupportedError, match=message):
        load(image, max_pixels=None)


def test_empty_pil_image_is_no_image() -> None:
    with pytest.raises(InputError, match="no pixels"):
        load(Image.new("RGB", (0, 5)), max_pixels=None)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\0",
        b"hello, this is text",
        b"\x89PNG\r\n\x1a\n",
        b"\xff\xd8\xff",
        b"%!not quite",
        b"II*\0",
        b"BM",
        b"P6\n",
        b"GIF89a",
    ],
)
def test_what_is_no_image_is_refused_in_one_line(data: bytes) -> None:
    with pytest.raises(InputError, match="not a readable image") as caught:
        read(data)
    assert "\n" not in str(caught.value)


def test_errors_about_a_path_name_it(tmp_path: Path) -> None:
    path = tmp_path / "no image.png"
    with pytest.raises(InputError, match=r"no image\.png: No such file"):
        load(path, max_pixels=None)
    path.write_bytes(b"garbage")
    with pytest.raises(InputError, match=r"no image\.png: not a readable image"):
        load(path, max_pixels=None)
    with pytest.raises(InputError, match="directory"):
        load(tmp_path, max_pixels=None)


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP", "AVIF", "TIFF", "BMP", "GIF", "PPM", "JPEG2000"])
def test_truncated_file_is_refused(photo: Image.Image, form: str) -> None:
    data = saved(photo, form)
    for kept in (20, len(data) // 3, len(data) // 2, len(data) * 9 // 10):
        with pytest.raises(InputError, match="not a readable image"):
            read(data[:kept])


def test_png_is_refused_at_every_cut(photo: Image.Image) -> None:
    """Also behind the pixels, where Pillow would leave out the metadata in silence."""
    data = saved(photo.crop((0, 0, 5, 4)), "PNG", exif=exif())
    for kept in range(len(data)):
        with pytest.raises(InputError, match="not a readable image"):
            read(data[:kept])


@pytest.fixture(scope="module")
def samples(photos: dict[str, Path]) -> list[bytes]:
    """A small file of every format and feature, for mutation."""
    with Image.open(photos["chelsea"]) as whole:
        image = whole.convert("RGB").crop((100, 100, 124, 116))
    extra = {"exif": exif(6), "icc_profile": srgb_profile()}
    return [
        saved(image, "JPEG", xmp=XMP, **extra),
        saved(image, "PNG", **extra),
        saved(image.quantize(8), "PNG", transparency=3),
        saved(image.convert("LA"), "PNG"),
        saved(image, "WEBP", xmp=XMP, **extra),
        saved(image, "AVIF", **extra),
        saved(image, "TIFF", **extra),
        saved(image, "TIFF", compression="tiff_lzw"),
        saved(image.convert("CMYK"), "TIFF", icc_profile=cmyk_profile()),
        saved(image.quantize(8), "GIF", transparency=3),
        saved(image, "BMP"),
        saved(image, "PPM"),
        saved(image, "JPEG2000"),
        png(np.asarray(image).astype(np.uint16), 16, (b"tRNS", bytes(6)), (b"iCCP", b"p\0\0" + zlib.compress(XMP))),
        tiff_file([tiff_tags(deep_noise(3), planar=2)], [[deep_noise(1).tobytes()] * 3]),
        tiff_file([tiff_tags(deep_noise(4), extra=1)], [[deep_noise(4).tobytes()]], ">"),
        b"P6 9 6 1000\n" + bytes(2 * 9 * 6 * 3),
    ]


@given(seed=st.integers(0, 2**32))
def test_damaged_file_gives_a_picture_or_an_error_of_ours(samples: list[bytes], seed: int) -> None:
    rng = random.Random(seed)
    data = bytearray(rng.choice(samples))
    for _ in range(rng.choice((1, 2, 8))):
        data[int(len(data) * rng.random() ** 2)] = rng.randrange(256)  # rather near the start, where the headers are
    try:
        picture = read(bytes(data[: rng.choice((len(data), rng.randrange(len(data))))]))
    except HpcmError as error:
        message = str(error)
    else:
        assert picture.pixels.dtype == (np.uint8 if picture.depth == 8 else np.uint16)
        assert picture.alpha is None or picture.alpha.shape == picture.pixels.shape[:2]
        assert 3 <= picture.pixels.size <= 3_000_000
        message = ""
    assert "\n" not in message


# -------------------------------------------------------------------------------------------------- pixel limit


def test_limit_is_inclusive_and_names_the_size(photo: Image.Image) -> None:
    data = saved(photo, "PNG")
    assert read(data, 2400).pixels.shape == (40, 60, 3)
    for source in (data, photo, np.asarray(photo), read(data)):
        with pytest.raises(UnsupportedError, match="60x40 is 2400 pixels, the limit is 2399"):
            load(source, max_pixels=2399)


def test_limit_is_checked_in_the_header_before_pixels_are_decoded() -> None:
    huge = png(np.zeros((1, 1, 3), np.uint8), 8, claim=(50_000, 50_000))
    with pytest.raises(UnsupportedError, match="50000x50000"):
        read(huge, 100_000_000)


def test_limit_is_ours_and_not_the_one_of_pillow(photo: Image.Image, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)  # Image.open would refuse 60x40 with this
    with pytest.raises(Image.DecompressionBombError):
        Image.open(io.BytesIO(saved(photo, "PNG")))
    for form in ("PNG", "JPEG", "AVIF"):
        assert read(saved(photo, form), None).pixels.shape == (40, 60, 3)
    assert Image.MAX_IMAGE_PIXELS == 100


# ------------------------------------------------------------------------------------------------------ metadata


@pytest.mark.parametrize("orientation", TURNS)
@pytest.mark.parametrize("form", ["PNG", "WEBP", "TIFF"])
def test_orientation_is_applied_once(photo: Image.Image, form: str, orientation: int) -> None:
    turn = TURNS[orientation]
    upright = photo if turn is None else photo.transpose(turn)
    picture = read(saved(photo, form, exif=exif(orientation), **LOSSLESS[form]))
    assert np.array_equal(picture.pixels, np.asarray(upright))
    again = io.BytesIO()
    write_png(to_image(picture), again)
    with Image.open(again) as image:
        assert np.array_equal(np.asarray(ImageOps.exif_transpose(image)), picture.pixels)
    assert np.array_equal(read(again.getvalue()).pixels, picture.pixels)


@pytest.mark.parametrize("form", ["JPEG", "AVIF"])
@pytest.mark.parametrize("orientation", TURNS)
def test_orientation_of_lossy_files_is_the_one_pillow_applies(photo: Image.Image, form: str, orientation: int) -> None:
    data = saved(photo, form, exif=exif(orientation))
    with Image.open(io.BytesIO(data)) as image:
        assert np.array_equal(read(data).pixels, np.asarray(ImageOps.exif_transpose(image)))


@pytest.mark.parametrize("order", ["<", ">"])
def test_only_the_orientation_tag_of_the_kept_exif_changes(photo: Image.Image, order: str) -> None:
    entries = [struct.pack(order + "HHI4s", 0x010F, 2, 4, b"Foo\0"), struct.pack(order + "HHIHH", 0x0112, 3, 1, 8, 0)]
    block = {"<": b"II*\0", ">": b"MM\0*"}[order] + struct.pack(order + "IH", 8, len(entries)) + b"".join(entries)
    block += bytes(4) + b"maker note at an absolute offset"
    kept = read(saved(photo, "JPEG", exif=b"Exif\0\0" + block)).metadata["EXIF"]
    value = 8 + 2 + 12 + 8  # header, count, first entry; tag, type and count of the second
    assert kept == block[:value] + struct.pack(order + "H", 1) + block[value + 2 :]
    found = Image.Exif()
    found.load(kept)
    assert found[0x0112] == 1
    assert found[0x010F] == "Foo"


def test_xmp_that_repeats_an_applied_orientation_is_reset_too(photo: Image.Image) -> None:
    assert read(saved(photo, "JPEG", exif=exif(6), xmp=XMP)).metadata["XMP"] == XMP.replace(b'="6"', b'="1"')
    assert read(saved(photo, "JPEG", exif=exif(1), xmp=XMP)).metadata["XMP"] == XMP


@pytest.mark.parametrize("orientation", [0, 9, 65535])
def test_orientation_without_a_meaning_is_left_alone(photo: Image.Image, orientation: int) -> None:
    picture = read(saved(photo, "PNG", exif=exif(orientation)))
    assert np.array_equal(picture.pixels, np.asarray(photo))
    assert picture.metadata["EXIF"] == exif(orientation)[6:]


@given(block=st.binary(max_size=60), order=st.sampled_from([b"", b"II*\0\x08\0\0\0", b"MM\0*\0\0\0\x08"]))
def test_damaged_exif_is_kept_byte_for_byte_or_with_its_orientation_reset(block: bytes, order: bytes) -> None:
    pixels = np.arange(12, dtype=np.uint8).reshape(2, 2, 3)
    image = to_image(Picture(pixels, {"EXIF": order + block}))
    picture = load(image, max_pixels=None)
    kept = picture.metadata.get("EXIF", b"")
    assert len(kept) == len(image.info["exif"].removeprefix(b"Exif\0\0").removeprefix(b"Exif\0\0"))


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "AVIF"])
def test_profile_exif_and_xmp_are_kept_from_every_format(photo: Image.Image, form: str) -> None:
    options = {"icc_profile": srgb_profile(), "exif": exif(), "xmp": XMP}
    if form == "PNG":
        file = io.BytesIO()
        write_png(to_image(Picture(np.asarray(photo), {"ICC": srgb_profile(), "EXIF": exif()[6:], "XMP": XMP})), file)
        picture = read(file.getvalue())
    else:
        picture = read(saved(photo, form, **options))
    assert picture.metadata == {"ICC": srgb_profile(), "EXIF": exif()[6:], "XMP": XMP}
    assert picture.notes == ()


def test_exif_of_a_tiff_is_what_describes_the_photograph(photo: Image.Image) -> None:
    picture = read(saved(photo, "TIFF", exif=exif(6), icc_profile=srgb_profile()))
    found = Image.Exif()
    found.load(picture.metadata["EXIF"])
    assert dict(found) == {0x010F: "Maker of cameras", 0x8769: found[0x8769]}  # nothing about strips
    assert found.get_ifd(0x8769)[0x9003] == "2024:02:29 12:00:00"
    assert picture.metadata["ICC"] == srgb_profile()


@pytest.mark.parametrize("compression", ["tiff_lzw", "tiff_adobe_deflate"])
def test_compressed_tiff_is_turned_once_and_keeps_its_exif(photo: Image.Image, compression: str) -> None:
    block = Image.Exif()
    block[0x010F], block[0x0112] = "Maker of cameras", 6
    picture = read(saved(photo, "TIFF", exif=block, compression=compression))
    found = Image.Exif()
    found.load(picture.metadata["EXIF"])
    assert dict(found) == {0x010F: "Maker of cameras"}
    assert np.array_equal(picture.pixels, np.asarray(photo.transpose(Image.Transpose.ROTATE_270)))


def test_tiff_without_a_description_has_no_exif(photo: Image.Image) -> None:
    assert read(saved(photo, "TIFF")).metadata == {}


def test_exif_that_imagemagick_hides_in_a_text_chunk_of_png_is_found(photo: Image.Image) -> None:
    text = f"\nexif\n{len(exif(3)):8}\n{exif(3).hex()}\n"
    data = png(np.asarray(photo), 8, (b"tEXt", b"Raw profile type exif\0" + text.encode()))
    assert np.array_equal(read(data).pixels, np.asarray(photo.rotate(180)))
    assert read(data).metadata["EXIF"] == exif(1)[6:]


def test_png_keeps_metadata_bit_for_bit(photo: Image.Image) -> None:
    metadata = {"ICC": srgb_profile(), "EXIF": exif(1)[6:], "XMP": XMP}
    file = io.BytesIO()
    write_png(to_image(Picture(np.asarray(photo), metadata)), file)
    picture = read(file.getvalue())
    assert np.array_equal(picture.pixels, np.asarray(photo))
    assert picture.metadata == metadata


def test_image_without_metadata_has_none_in_its_info(photo: Image.Image) -> None:
    image = to_image(Picture(np.asarray(photo), {}))
    assert image.mode == "RGB"
    assert image.info == {}


@pytest.fixture
def decoded(photo: Image.Image) -> DecodedImage:
    return to_image(Picture(np.asarray(photo), {"ICC": srgb_profile(), "EXIF": exif()[6:], "XMP": XMP}))


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "avif"])
def test_plain_save_keeps_all_metadata(decoded: DecodedImage, suffix: str, tmp_path: Path) -> None:
    metadata = {"ICC": srgb_profile(), "EXIF": exif()[6:], "XMP": XMP}
    decoded.save(tmp_path / f"x.{suffix}")
    assert load(tmp_path / f"x.{suffix}", max_pixels=None).metadata == metadata
    form = {"jpg": "JPEG"}.get(suffix, suffix.upper())
    assert read(saved(decoded, form)).metadata == metadata


def test_plain_save_as_tiff_keeps_what_its_directories_can_hold(decoded: DecodedImage, tmp_path: Path) -> None:
    decoded.info["xmp"] = upright = XMP.replace(b'="6"', b'="1"')  # as decoded files have it
    decoded.save(tmp_path / "x.tif")
    with Image.open(tmp_path / "x.tif") as image:
        assert image.info["icc_profile"] == srgb_profile()
        assert image.getexif()[0x010F] == "Maker of cameras"
        assert image.getexif().get_ifd(0x8769)[0x9003] == "2024:02:29 12:00:00"
        assert image.tag_v2[0x02BC] == upright
        assert np.array_equal(np.asarray(image), np.asarray(decoded))


def test_formats_without_metadata_are_saved_all_the_same(decoded: DecodedImage, tmp_path: Path) -> None:
    for suffix in ("bmp", "gif", "ppm", "jp2", "pdf", "ico"):
        decoded.save(tmp_path / f"x.{suffix}")
        assert (tmp_path / f"x.{suffix}").stat().st_size > 0


def test_options_given_come_before_what_is_in_info(decoded: DecodedImage) -> None:
    data = saved(decoded, "PNG", exif=b"", icc_profile=None, pnginfo=None)
    assert read(data).metadata == {}
    del decoded.info["exif"]
    assert set(read(saved(decoded, "PNG")).metadata) == {"ICC", "XMP"}


def test_copies_keep_metadata_and_the_profile_where_it_describes_them(decoded: DecodedImage) -> None:
    whole = {"ICC", "EXIF", "XMP"}
    for image in (decoded.copy(), decoded.crop((0, 0, 9, 9)), decoded.resize((5, 5)), decoded.convert("RGB")):
        assert set(read(saved(image, "PNG")).metadata) == whole
        assert image.info == decoded.info
    assert set(read(saved(pickle.loads(pickle.dumps(decoded)), "PNG")).metadata) == whole
    grey = saved(decoded.convert("L"), "PNG")
    with Image.open(io.BytesIO(grey)) as image:
        assert "icc_profile" not in image.info
        assert dict(image.getexif()) == dict(decoded.getexif())
    assert [band.mode for band in decoded.split()] == ["L", "L", "L"]
    assert np.array_equal(np.asarray(Image.merge("RGB", decoded.split())), np.asarray(decoded))
    assert np.array_equal(np.asarray(load(decoded, max_pixels=None).pixels), np.asarray(decoded))


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP", "AVIF", "TIFF"])
def test_damaged_exif_does_not_keep_an_image_from_being_saved(photo: Image.Image, form: str) -> None:
    for block in (b"garbage", b"II*\0\xff\xff\xff\xff", b"MM\0*\0\0\0\x08\xff\xff"):
        data = saved(to_image(Picture(np.asarray(photo), {"EXIF": block})), form)
        assert read(data).pixels.shape == (40, 60, 3)


def test_metadata_that_jpeg_cannot_hold_are_left_out_with_a_warning(photo: Image.Image) -> None:
    for name in ("EXIF", "XMP"):
        image = to_image(Picture(np.asarray(photo), {name: exif()[6:].ljust(70_000, b" ")}))
        with pytest.warns(UserWarning, match=f"{name} of 7.* bytes does not fit into a JPEG"):
            data = saved(image, "JPEG")
        assert read(data).metadata == {}
        assert set(read(saved(image, "PNG")).metadata) == {name}
