"""Pictures as they are: every kind of file comes in as what it is, or is refused in one line, and goes out whole."""

from __future__ import annotations

import io
import struct
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image, ImageCms, ImageDraw

import hpcmcodec
from hpcmcodec import codec, container
from hpcmcodec.container import packed_text, text_of
from hpcmcodec.errors import InputError, UnsupportedError
from hpcmcodec.image import (
    Picture,
    alpha_png,
    colour,
    editing,
    exif,
    flattened,
    load,
    not_a_photograph,
    read_alpha,
    to_image,
    write,
)
from hpcmcodec.image.colour import Cicp
from tests import tiny
from tests.files import ADAM7, png_chunk, png_file, saved, tiff_file, tiff_tags, with_segments

P3, PQ = Cicp(12, 13), Cicp(9, 16)
ADOBE = ((0.64, 0.33), (0.21, 0.71), (0.15, 0.06), (0.3127, 0.3290))
CHRM_SRGB = struct.pack(">8I", 31270, 32900, 64000, 33000, 30000, 60000, 15000, 6000)
CHRM_ADOBE = struct.pack(">8I", 31270, 32900, 64000, 33000, 21000, 71000, 15000, 6000)
RDF = '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">{}</rdf:RDF></x:xmpmeta>'


def read(data: bytes) -> Picture:
    return load(data, max_pixels=1_000_000)


def noise(channels: int, depth: int = 16, height: int = 6, width: int = 9) -> np.ndarray:
    levels = np.random.default_rng(channels).integers(0, 1 << depth, (height, width, channels))
    return levels.astype(np.uint8 if depth <= 8 else np.uint16)


def xmp(attributes: str, content: str = "") -> bytes:
    return RDF.format(f'<rdf:Description rdf:about="" {attributes}>{content}</rdf:Description>').encode()


@pytest.fixture
def photo(photos: dict[str, Path]) -> Image.Image:
    with Image.open(photos["coffee"]) as image:
        return image.convert("RGB").crop((200, 100, 260, 140))


# ------------------------------------------------------------------------------------------- every kind of PNG


@pytest.mark.parametrize("interlaced", [False, True])
@pytest.mark.parametrize(
    ("channels", "depth"),
    [(1, 1), (1, 2), (1, 4), (1, 8), (1, 16), (2, 8), (2, 16), (3, 8), (3, 16), (4, 8), (4, 16)],
)
def test_png_of_every_kind_comes_back_as_what_it_was(channels: int, depth: int, interlaced: bool) -> None:
    assert len(ADAM7) == 7
    samples = noise(channels, depth)
    picture = read(png_file(samples, depth, interlaced=interlaced))
    whole = max(8, depth)
    levels = samples.astype(np.uint32) * ((1 << whole) - 1) // ((1 << depth) - 1)
    assert (picture.depth, picture.grey, picture.notes) == (whole, channels < 3, ())
    assert np.array_equal(picture.pixels, levels[..., :3] if channels > 2 else np.repeat(levels[..., :1], 3, axis=2))
    assert (picture.alpha is None) if channels % 2 else np.array_equal(picture.alpha, levels[..., -1])
    again = io.BytesIO()
    write(picture, "png", again)
    back = read(again.getvalue())
    assert (back.depth, back.grey) == (picture.depth, picture.grey)
    assert np.array_equal(back.pixels, picture.pixels)
    assert np.array_equal(back.alpha, picture.alpha) if picture.alpha is not None else back.alpha is None


@pytest.mark.parametrize("depth", [1, 2, 4, 8, 16])
def test_transparent_grey_counts_at_the_depth_of_its_file(depth: int) -> None:
    peak = (1 << depth) - 1
    samples = np.array([[0, peak, peak // 2]], np.uint16)[..., None]
    picture = read(png_file(samples, depth, (b"tRNS", struct.pack(">H", peak // 2))))
    assert (picture.alpha == 0).tolist() == [[depth == 1, False, True]]


@pytest.mark.parametrize("depth", [1, 2, 4, 8])
def test_palette_png_has_the_colours_and_alpha_of_its_palette(depth: int) -> None:
    indices = noise(1, depth)
    palette = np.random.default_rng(7).integers(0, 256, (1 << depth, 3)).astype(np.uint8)
    alpha = np.random.default_rng(8).integers(0, 255, 1 << depth).astype(np.uint8)
    picture = read(png_file(indices, depth, (b"tRNS", alpha.tobytes()), palette=palette.tobytes()))
    assert np.array_equal(picture.pixels, palette[indices[..., 0]])
    assert np.array_equal(picture.alpha, alpha[indices[..., 0]])


@pytest.mark.parametrize("palette", [b"", bytes(2), bytes(771)])
def test_palette_png_without_a_palette_is_damaged(palette: bytes) -> None:
    data = png_file(noise(1, 2), 2, palette=palette or bytes(12))
    if not palette:
        data = data.replace(data[33:57], b"")
    with pytest.raises(InputError, match="palette"):
        read(data)


def test_damage_in_ancillary_chunks_costs_these_alone_and_in_critical_ones_the_picture() -> None:
    samples = noise(3, 8)
    chunks = [(b"tEXt", b"Title\0A"), (b"gAMA", struct.pack(">I", 100000))]
    picture = read(png_file(samples, 8, *chunks, damaged=[b"tEXt", b"gAMA"]))
    assert np.array_equal(picture.pixels, samples)
    assert picture.notes == ("damaged PNG chunks dropped: gAMA, tEXt",)
    for name in (b"IHDR", b"IDAT"):
        with pytest.raises(InputError, match=f"CRC of its chunk {name.decode()}"):
            read(png_file(samples, 8, damaged=[name]))
    with pytest.raises(UnsupportedError, match="CgBI"):
        read(png_file(samples, 8, (b"CgBI", b"")))


def test_chunks_that_are_not_carried_leave_a_note() -> None:
    samples = noise(3, 8)
    (note,) = read(png_file(samples, 8, (b"mDCV", bytes(24)), (b"cLLI", bytes(8)), (b"bKGD", bytes(6)))).notes
    assert note == "PNG chunks dropped: mDCV, cLLI"


def test_text_resolution_and_profiles_in_hexadecimal_are_kept() -> None:
    iptc = b"\x1c\x02\x05\0\x05Title"
    hexadecimal = f"\niptc\n{len(iptc)}\n{iptc.hex()}\n".encode()
    picture = read(
        png_file(
            noise(3, 8),
            8,
            (b"tEXt", b"Author\0J\xfcrgen"),
            (b"zTXt", b"Comment\0\0" + zlib.compress(b"long")),
            (b"iTXt", "Title\0\0\0de\0Titel\0日本".encode()),
            (b"tEXt", b"Author\0and others"),
            (b"tEXt", b"Raw profile type iptc\0" + hexadecimal),
            (b"pHYs", struct.pack(">IIB", 11811, 11811, 1)),
        )
    )
    assert text_of(picture.metadata["TEXT"]) == {"Author": "Jürgen\nand others", "Comment": "long", "Title": "日本"}
    assert picture.metadata["IPTC"] == iptc
    block = Image.Exif()
    block.load(picture.metadata["EXIF"])
    assert (round(block[0x011A]), round(block[0x011B]), block[0x0128]) == (300, 300, 2)
    assert picture.notes == ()


def test_texts_that_would_inflate_without_end_are_dropped_with_a_note(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hpcmcodec.image.png._MAX_INFLATED", 1 << 20)
    bomb = zlib.compress(bytes(1 << 21), 9)
    picture = read(png_file(noise(3, 8), 8, (b"zTXt", b"Comment\0\0" + bomb), (b"iCCP", b"p\0\0" + bomb)))
    assert picture.notes == (
        "colour profile dropped: it is damaged, or far too long",
        "1 damaged or far too long PNG texts dropped",
    )


# -------------------------------------------------------------------------------------------------- colour


@pytest.mark.parametrize(
    ("chunks", "cicp"),
    [
        ([(b"cICP", bytes((12, 13, 0, 1)))], P3),
        ([(b"cICP", bytes((9, 16, 0, 1)))], PQ),
        ([(b"cICP", bytes((9, 18, 0, 1))), (b"gAMA", struct.pack(">I", 100000))], Cicp(9, 18)),
        ([(b"cICP", bytes((1, 13, 0, 1))), (b"cHRM", CHRM_ADOBE)], None),
        ([(b"sRGB", b"\0"), (b"gAMA", struct.pack(">I", 100000)), (b"cHRM", CHRM_ADOBE)], None),
        ([(b"gAMA", struct.pack(">I", 45455)), (b"cHRM", CHRM_SRGB)], None),
        ([(b"gAMA", struct.pack(">I", 45455))], None),
        ([(b"gAMA", struct.pack(">I", 35714)), (b"cHRM", CHRM_SRGB)], Cicp(1, 5)),
    ],
)
def test_colour_chunks_of_png_name_the_space_in_their_order(
    chunks: list[tuple[bytes, bytes]], cicp: Cicp | None
) -> None:
    samples = noise(3, 8)
    picture = read(png_file(samples, 8, *chunks))
    assert (picture.cicp, picture.metadata) == (cicp, {})
    assert np.array_equal(picture.pixels, samples)


def managed(picture: Picture) -> np.ndarray:
    """8-bit sRGB of a picture, through littleCMS and the profile that its PIL image carries."""
    image = to_image(picture)
    icc = image.info.get("icc_profile")
    if icc is None:
        return np.asarray(image)
    return np.asarray(
        ImageCms.profileToProfile(
            image, ImageCms.ImageCmsProfile(io.BytesIO(icc)), ImageCms.createProfile("sRGB"), renderingIntent=1
        )
    )


def srgb_of(levels: np.ndarray, gamma: float, to_srgb: np.ndarray) -> np.ndarray:
    """8-bit levels of a space with this exponent and matrix to linear sRGB, in sRGB (IEC 61966-2-1)."""
    light = np.clip((levels / 255) ** gamma @ to_srgb.T, 0, 1)
    return 255 * np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)


def test_linear_png_keeps_its_tone_and_adobe_rgb_its_colours() -> None:
    samples = noise(3, 8, 32, 32)
    linear = read(png_file(samples, 8, (b"gAMA", struct.pack(">I", 100000)), (b"cHRM", CHRM_SRGB)))
    assert np.abs(managed(linear) - srgb_of(samples, 1.0, np.eye(3))).max() < 1
    assert linear.notes == ("linear light converted to sRGB's curve",)
    adobe = read(png_file(samples, 8, (b"gAMA", struct.pack(">I", 45470)), (b"cHRM", CHRM_ADOBE)))
    assert np.array_equal(adobe.pixels, samples)
    # From Adobe RGB (1998) to sRGB, both of white D65: the product of the two matrices of primaries.
    matrix = np.array(((1.3983557, -0.3983557, 0), (0, 1, 0), (0, -0.0429290, 1.0429290)))
    assert np.abs(managed(adobe) - srgb_of(samples, 1 / 0.4547, matrix)).max() < 1.5


@pytest.mark.parametrize("space", [P3, Cicp(9, 14), Cicp(1, 4), Cicp(6, 6), Cicp(11, 13)])
def test_profiles_made_of_code_points_are_read_by_littlecms(space: Cicp) -> None:
    profile = ImageCms.ImageCmsProfile(io.BytesIO(colour.profile_of(space)))
    assert ImageCms.getProfileDescription(profile).strip() == str(space)
    white = colour.to_srgb(Image.new("RGB", (1, 1), (255, 255, 255)), colour.profile_of(space))
    assert white is not None
    assert min(white.getpixel((0, 0))) >= 254  # type: ignore[arg-type, type-var]
    assert colour.profile_of(PQ) == b""


@pytest.mark.parametrize("form", ["png", "avif"])
@pytest.mark.parametrize("space", [P3, PQ])
def test_named_spaces_are_written_by_name(form: str, space: Cicp) -> None:
    file = io.BytesIO()
    assert write(Picture(noise(3, 8, 32, 32), cicp=space), form, file) == []
    assert read(file.getvalue()).cicp == space
    image = Image.open(io.BytesIO(file.getvalue()))
    assert ("icc_profile" in image.info) == (form == "png" and space == P3)  # for readers that know profiles alone


def test_profile_too_long_for_readers_of_png_is_kept_in_the_file_and_applied_when_png_is_written() -> None:
    icc = colour.profile_of(P3).ljust(1_200_000, b"\0")
    icc = struct.pack(">I", len(icc)) + icc[4:]
    samples = noise(3, 8, 32, 32)
    picture = read(png_file(samples, 8, (b"iCCP", b"P3\0\0" + zlib.compress(icc))))
    assert (picture.metadata, picture.notes) == ({"ICC": icc}, ())
    file = io.BytesIO()
    (note,) = write(picture, "png", file)
    assert note == "colours converted to sRGB: readers of PNG refuse a profile of 1200000 bytes"
    with Image.open(io.BytesIO(file.getvalue())) as image:
        assert np.array_equal(np.asarray(image), managed(Picture(samples, cicp=P3)))


def bmp_header(kind: int, ends: tuple[float, ...], gammas: tuple[float, ...], profile: bytes = b"") -> bytes:
    """A 4x4 BMP of greys 0, 16, ... with a header of version 5."""
    pixels = np.repeat(np.arange(0, 256, 16, dtype=np.uint8), 3).tobytes()
    header = struct.pack("<IiiHHIIiiII", 124, 4, 4, 1, 24, 0, len(pixels), 0, 0, 0, 0)
    header += struct.pack("<4I", 0, 0, 0, 0) + struct.pack("<I", kind)
    header += struct.pack("<9i", *(round(v * (1 << 30)) for v in ends)) + struct.pack(
        "<3I", *(round(g * 65536) for g in gammas)
    )
    header += struct.pack("<4I", 4, 124 + len(pixels) if profile else 0, len(profile), 0)
    start = struct.pack("<2sIHHI", b"BM", 14 + len(header) + len(pixels) + len(profile), 0, 0, 14 + len(header))
    return start + header + pixels + profile


def test_bmp_has_the_space_of_its_header_or_its_profile() -> None:
    # Display P3 in XYZ (SMPTE EG 432-1, white D65).
    ends = (0.48657, 0.22897, 0.0, 0.26567, 0.69174, 0.04511, 0.19822, 0.07929, 1.04394)
    picture = read(bmp_header(0, ends, (2.2, 2.2, 2.2)))
    assert picture.cicp == Cicp(12, 4)
    icc = colour.profile_of(P3)
    assert read(bmp_header(0x4D424544, (0.0,) * 9, (0.0,) * 3, icc)).metadata == {"ICC": icc}
    for kind in (0, 0x73524742, 0x57696E20):
        assert read(bmp_header(kind, (0.0,) * 9, (0.0,) * 3)).metadata == {}
    assert "the BMP names a file" in read(bmp_header(0x4C494E4B, (0.0,) * 9, (0.0,) * 3)).notes[0]


# ------------------------------------------------------------------------------------------------------ TIFF


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("packing", ["none", "deflate"])
@pytest.mark.parametrize("planar", [1, 2])
@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_16_bit_tiff_is_kept_to_the_last_bit(channels: int, planar: int, packing: str, order: str) -> None:
    if (channels, planar) == (2, 2):
        pytest.skip("planes of greys and opacity are not read")
    samples = noise(channels)
    parts = [samples] if planar == 1 else [samples[..., i : i + 1] for i in range(channels)]
    strips = [part.astype(f"{order}u2").tobytes() for part in parts]
    if packing == "deflate":
        strips = [zlib.compress(strip) for strip in strips]
    tags = tiff_tags(samples, planar=planar, compression=8 if packing == "deflate" else 1)
    picture = read(tiff_file([tags], [strips], order))
    assert (picture.depth, picture.grey, picture.notes) == (16, channels < 3, ())
    assert np.array_equal(picture.pixels, samples[..., :3] if channels > 2 else np.repeat(samples[..., :1], 3, axis=2))
    assert channels % 2 or np.array_equal(picture.alpha, samples[..., -1])


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize(("photometric", "extra"), [(1, 2), (0, 2), (1, 1)])
def test_16_bit_greys_with_opacity_are_turned_and_made_straight_as_colours_are(
    photometric: int, extra: int, orientation: int
) -> None:
    greys = noise(2)
    greys[..., 0] = np.minimum(greys[..., 0], greys[..., 1])  # as premultiplied greys are
    colours = np.repeat(greys, (3, 1), axis=2)
    if photometric == 0:
        colours[..., :3] = 65535 - colours[..., :3]
    pages = [
        tiff_tags(samples, extra=extra, photometric=kind) | {274: ("H", (orientation,))}
        for samples, kind in ((greys, photometric), (colours, 2))
    ]
    ours, theirs = (
        read(tiff_file([tags], [[samples.astype("<u2").tobytes()]]))
        for tags, samples in zip(pages, (greys, colours), strict=True)
    )
    assert np.array_equal(ours.pixels, theirs.pixels)
    assert ours.alpha is not None
    assert np.array_equal(ours.alpha, theirs.alpha)


def test_16_bit_grey_of_which_zero_is_white_is_no_negative() -> None:
    samples = noise(1)
    strip = samples.astype("<u2").tobytes()
    assert np.array_equal(
        read(tiff_file([tiff_tags(samples, photometric=0)], [[strip]])).pixels[..., 0], 65535 - samples[..., 0]
    )


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_premultiplied_tiff_gets_its_colours_back(dtype: type) -> None:
    peak = np.iinfo(dtype).max
    samples = np.array([[[peak // 4, 0, peak // 8, peak // 2], [0, 0, 0, 0]]], dtype)
    picture = read(tiff_file([tiff_tags(samples, extra=1)], [[samples.tobytes()]]))
    assert np.abs(picture.pixels[0, 0].astype(int) - (peak // 2, 0, peak // 4)).max() <= 2
    assert picture.alpha.tolist() == [[peak // 2, 0]]


def test_only_page_that_is_no_thumbnail_or_mask_is_the_picture() -> None:
    large, small = noise(3, 8), noise(3, 8, 2, 3)
    pages = [tiff_tags(large), {**tiff_tags(small), 254: ("I", (1,))}]
    strips = [[large.tobytes()], [small.tobytes()]]
    for step in (1, -1):
        picture = read(tiff_file(pages[::step], strips[::step]))
        assert np.array_equal(picture.pixels, large)
        assert picture.notes == ("1 further page dropped: smaller versions or masks of the picture",)
    with pytest.raises(UnsupportedError, match="2 pages"):
        read(tiff_file([tiff_tags(large), tiff_tags(small)], strips))


@pytest.mark.parametrize(("form", "bits"), [(3, 16), (3, 32), (3, 64), (2, 8), (1, 32), (1, 10)])
def test_tiff_of_samples_that_cannot_be_read_is_refused_by_name(form: int, bits: int) -> None:
    samples = noise(3, 8)
    tags = tiff_tags(samples) | {258: ("H", (bits,) * 3), 339: ("H", (form,) * 3)}
    with pytest.raises(UnsupportedError, match=f"{bits}"):
        read(tiff_file([tags], [[bytes(6 * 9 * 3 * 8)]]))


@given(samples=arrays.arrays(np.uint16, st.tuples(st.integers(1, 9), st.integers(1, 9), st.integers(1, 4))))
def test_deep_pictures_come_back_from_png_and_tiff_and_ppm(samples: np.ndarray) -> None:
    channels = samples.shape[2]
    picture = load(samples, max_pixels=None)
    for form in ("png", "tif", "ppm"):
        if form == "ppm" and picture.alpha is not None:
            continue
        file = io.BytesIO()
        assert write(picture, form, file) == []
        back = read(file.getvalue())
        assert (back.depth, back.grey) == (16, channels < 3)
        assert np.array_equal(back.pixels, picture.pixels)
        assert (back.alpha is None) == (picture.alpha is None)
        assert back.alpha is None or np.array_equal(back.alpha, picture.alpha)


# ------------------------------------------------------------------------------------------------------ JPEG


def test_part_of_a_profile_that_is_missing_is_noted(photo: Image.Image) -> None:
    icc = colour.profile_of(P3).ljust(150_000, b"\0")
    data = saved(photo, "JPEG", icc_profile=icc)
    assert read(data).metadata["ICC"] == icc
    second = data.index(b"ICC_PROFILE\0\x02") - 4
    (length,) = struct.unpack_from(">H", data, second + 2)
    picture = read(data[:second] + data[second + 2 + length :])
    assert picture.notes == ("colour profile dropped: part 2 of 3 is missing, so colours may be off",)
    assert "ICC" not in picture.metadata


def extended(photo: Image.Image, pieces: int) -> tuple[bytes, bytes]:
    """A JPEG whose XMP has an extension in two segments, of which only the first `pieces` are there; its content."""
    digest = b"0123456789ABCDEF0123456789ABCDEF"
    content = xmp('xmlns:GDepth="ns/depth/"', "<GDepth:Data>" + "A" * 90_000 + "</GDepth:Data>")
    main = xmp(f'xmlns:xmpNote="ns/note/" xmlns:dc="dc" dc:a="b" xmpNote:HasExtendedXMP="{digest.decode()}"')
    parts = [
        (
            0xE1,
            b"http://ns.adobe.com/xmp/extension/\0"
            + digest
            + struct.pack(">II", len(content), at)
            + content[at:][:60000],
        )
        for at in (0, 60000)
    ]
    segments = [(0xE1, b"http://ns.adobe.com/xap/1.0/\0" + main), *parts[:pieces]]
    return with_segments(saved(photo, "JPEG"), *segments), content


def test_extended_xmp_is_merged_or_dropped_with_its_announcement(photo: Image.Image) -> None:
    data, _ = extended(photo, 2)
    picture = read(data)
    packet = picture.metadata["XMP"]
    assert b"<GDepth:Data>" + b"A" * 90_000 + b"</GDepth:Data>" in packet
    assert b'dc:a="b"' in packet
    assert b"HasExtendedXMP" not in packet
    assert picture.notes == ()
    picture = read(extended(photo, 1)[0])
    assert picture.metadata["XMP"] == xmp('xmlns:xmpNote="ns/note/" xmlns:dc="dc" dc:a="b"')
    assert picture.notes == ("extended XMP dropped: it is incomplete or cannot be read",)


def test_iptc_and_comment_of_a_jpeg_are_kept_and_written_again(photo: Image.Image) -> None:
    iptc = b"\x1c\x02\x05\0\x05Title\x1c\x02\x19\0\x01k"
    block = b"Photoshop 3.0\x008BIM\x03\xed\0\0\0\0\0\x01\x07\x008BIM\x04\x04\0\0" + struct.pack(">I", len(iptc)) + iptc
    picture = read(with_segments(saved(photo, "JPEG", comment="a comment"), (0xED, block)))
    assert picture.metadata == {"IPTC": iptc, "TEXT": packed_text({"Comment": "a comment"})}
    assert picture.notes == ()
    for form in ("jpg", "png", "tif"):
        file = io.BytesIO()
        notes = write(picture, form, file)
        assert read(file.getvalue()).metadata["IPTC"] == iptc
        assert notes == (["TIFF cannot hold all metadata: TEXT left out"] if form == "tif" else [])
        assert form == "tif" or text_of(read(file.getvalue()).metadata["TEXT"]) == {"Comment": "a comment"}


def test_gain_map_that_is_dropped_is_announced_no_more(photo: Image.Image) -> None:
    directory = (
        "<Container:Directory><rdf:Seq><rdf:li><Container:Item Item:Semantic='Primary'/></rdf:li>"
        "<rdf:li><Container:Item Item:Semantic='GainMap' Item:Length='9'/></rdf:li></rdf:Seq></Container:Directory>"
    )
    spaces = 'xmlns:hdrgm="h" xmlns:Container="c" xmlns:Item="i" xmlns:dc="d" dc:title="kept"'
    packet = xmp(f'{spaces} hdrgm:Version="1.0" hdrgm:GainMapMax="3"', directory + "<dc:b>also</dc:b>")
    picture = read(saved(photo, "JPEG", xmp=packet))
    assert picture.metadata["XMP"] == xmp(spaces, "<dc:b>also</dc:b>")
    assert picture.notes == ("the gain map behind the picture is dropped",)


@given(
    junk=st.lists(
        st.sampled_from([b"<xmp:Thumbnails>", b"</xmp:Thumbnails>", b"<Container:Directory", b">", b"a", b" "])
    )
)
def test_mending_xmp_takes_any_bytes(junk: list[bytes]) -> None:
    from hpcmcodec.image import xmp as packets

    data = b"".join(junk)
    assert len(packets.upright(packets.without_appended(data), 4, 5)) <= len(data)


@pytest.mark.parametrize(
    ("frame", "bits", "words"), [(0xC1, 12, "12-bit"), (0xC3, 8, "lossless"), (0xC7, 8, "lossless")]
)
def test_jpeg_of_a_rare_kind_is_refused_by_name(photo: Image.Image, frame: int, bits: int, words: str) -> None:
    data = bytearray(saved(photo, "JPEG"))
    place = data.index(b"\xff\xc0")
    data[place + 1], data[place + 4] = frame, bits
    with pytest.raises(UnsupportedError, match=words):
        read(bytes(data))


def turned_exif(orientation: int) -> bytes:
    """EXIF of a 60x40 picture with sides, a subject area, and a thumbnail at its end."""
    entries = [(0x0112, "H", orientation), (0x8769, "I", 8 + 2 + 24 + 4)]
    first = struct.pack("<H", 2) + b"".join(
        struct.pack("<HHI", t, {"H": 3, "I": 4}[f], 1) + struct.pack("<" + f, v).ljust(4, b"\0") for t, f, v in entries
    )
    sub_at = 8 + len(first) + 4
    area_at = sub_at + 2 + 3 * 12 + 4
    sub = struct.pack("<H", 3) + struct.pack("<HHII", 0x9214, 3, 4, area_at)
    sub += struct.pack("<HHII", 0xA002, 4, 1, 60) + struct.pack("<HHII", 0xA003, 4, 1, 40) + bytes(4)
    second_at = area_at + 8
    thumbnail = saved(Image.new("RGB", (6, 4)), "JPEG")
    second = struct.pack("<H", 2) + struct.pack("<HHII", 0x0201, 4, 1, second_at + 30)
    second += struct.pack("<HHII", 0x0202, 4, 1, len(thumbnail)) + bytes(4)
    area = struct.pack("<4H", 10, 20, 4, 2)
    return b"II*\0\x08\0\0\0" + first + struct.pack("<I", second_at) + sub + area + second + thumbnail


@pytest.mark.parametrize("orientation", range(1, 9))
def test_metadata_speak_of_the_picture_as_it_is_after_turning(photo: Image.Image, orientation: int) -> None:
    marked = np.asarray(photo).copy()
    marked[20, 10] = (255, 0, 255)
    block = turned_exif(orientation)
    packet = xmp(f'tiff:Orientation="{orientation}" exif:PixelXDimension="60" exif:PixelYDimension="40"')
    packet = packet.replace(b"></rdf:Desc", b"><xmp:Thumbnails>x</xmp:Thumbnails></rdf:Desc")
    picture = read(saved(Image.fromarray(marked), "WEBP", lossless=True, exif=block, xmp=packet))
    height, width, _ = picture.pixels.shape
    found = Image.Exif()
    found.load(picture.metadata["EXIF"])
    sub = found.get_ifd(0x8769)
    assert found[0x0112] == 1
    assert (sub[0xA002], sub[0xA003]) == (width, height) == ((40, 60) if orientation >= 5 else (60, 40))
    x, y, across, down = sub[0x9214]
    assert picture.pixels[y, x].tolist() == [255, 0, 255]
    assert (across, down) == ((2, 4) if orientation >= 5 else (4, 2))
    turned = orientation > 1
    assert (struct.unpack_from("<I", picture.metadata["EXIF"], 34) == (0,)) == turned  # where a thumbnail is described
    assert len(picture.metadata["EXIF"]) == (
        len(block) - len(saved(Image.new("RGB", (6, 4)), "JPEG")) if turned else len(block)
    )
    assert picture.notes == (("EXIF's thumbnail dropped: it is not upright",) if turned else ())
    sides = f'exif:PixelXDimension="{width}" exif:PixelYDimension="{height}"'.encode()
    assert sides in picture.metadata["XMP"]
    assert (b"Thumbnails" in picture.metadata["XMP"]) != turned


# -------------------------------------------------------------------------------------------- AVIF, HEIF, others


@pytest.mark.parametrize("form", ["AVIF", "HEIF"])
def test_nclx_names_the_space(photo: Image.Image, form: str) -> None:
    if form == "HEIF":
        pytest.importorskip("pillow_heif").register_heif_opener()
    data = saved(photo, form)
    assert read(data).cicp is None
    box = data.index(b"colrnclx") + 8
    assert read(data[:box] + struct.pack(">HH", *P3) + data[box + 4 :]).cicp == P3


def test_10_bit_heif_is_kept(tmp_path: Path) -> None:
    heif = pytest.importorskip("pillow_heif")
    ramp = np.repeat(np.linspace(0, 65535, 64 * 32).astype(np.uint16).reshape(32, 64)[..., None], 3, axis=2)
    file = io.BytesIO()
    heif.from_bytes("RGB;16", (64, 32), ramp.tobytes()).save(file, quality=100, chroma=444)
    picture = read(file.getvalue())
    assert (picture.depth, picture.notes) == (10, ())
    assert len(np.unique(picture.pixels)) > 700
    assert np.abs(picture.pixels / 1023 - ramp / 65535).max() < 0.01


def test_format_that_pillow_is_too_old_for_says_so(photo: Image.Image, monkeypatch: pytest.MonkeyPatch) -> None:
    data = saved(photo, "AVIF")
    monkeypatch.setitem(sys.modules, "PIL.AvifImagePlugin", None)
    with pytest.raises(UnsupportedError, match="upgrade pillow"):
        read(data)


def test_heif_without_its_reader_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    with pytest.raises(UnsupportedError, match="pip install pillow-heif"):
        read(b"\0\0\0\x18ftypheic" + bytes(100))


@pytest.mark.parametrize(
    ("start", "words"),
    [
        (b"\xff\x0a", "JPEG XL"),
        (b"\0\0\0\x0cJXL \r\n\x87\n", "JPEG XL"),
        (b"v/1\x01", "OpenEXR"),
        (b"PF\n", "floating-point"),
        (b"P7\n", "PAM"),
        (b"%PDF-1.7", "PDF"),
        (b"8BPS", "Photoshop"),
        (b"\x8bHPC\x02", "hpcm decode"),
        (b"qoif", "QOI"),
        (b"<?xml version='1.0'?>\n<svg xmlns='s'>", "SVG"),
    ],
)
def test_formats_that_are_known_and_not_read_are_named(start: bytes, words: str) -> None:
    with pytest.raises(UnsupportedError, match=words):
        read(start + bytes(50))


# ------------------------------------------------------------------------------------------------ arrays, alpha


@given(
    samples=arrays.arrays(
        st.sampled_from([np.uint8, np.uint16]),
        arrays.array_shapes(min_dims=2, max_dims=3, max_side=4),
    )
)
def test_arrays_of_one_to_four_channels_are_pictures(samples: np.ndarray) -> None:
    channels = 1 if samples.ndim == 2 else samples.shape[2]
    picture = load(samples, max_pixels=None)
    stacked = samples.reshape(*samples.shape[:2], channels)
    assert picture.depth == 8 * samples.itemsize
    assert picture.grey == (channels < 3)
    assert np.array_equal(picture.pixels, stacked[..., :3] if channels > 2 else np.repeat(stacked[..., :1], 3, axis=2))
    opaque = channels % 2 or (stacked[..., -1] == np.iinfo(samples.dtype).max).all()
    assert (picture.alpha is None) if opaque else np.array_equal(picture.alpha, stacked[..., -1])


def test_floating_point_arrays_are_rounded_to_16_bits() -> None:
    picture = load(np.array([[0.0, 0.5, 1.0, 1 / 65535]]), max_pixels=None)
    assert (picture.depth, picture.grey, picture.pixels[0, :, 0].tolist()) == (16, True, [0, 32768, 65535, 1])


@pytest.mark.parametrize("depth", [8, 10, 12, 16])
def test_alpha_is_packed_without_loss(depth: int) -> None:
    alpha = noise(1, depth)[..., 0].astype(np.uint8 if depth == 8 else np.uint16)
    pixels = np.zeros((*alpha.shape, 3), alpha.dtype)
    data = alpha_png(Picture(pixels, depth=depth, alpha=alpha))
    assert np.array_equal(read_alpha(data, 9, 6, depth), alpha)
    with Image.open(io.BytesIO(data)) as image:
        assert image.mode == ("L" if depth == 8 else "I;16")
    for width, height in ((6, 9), (9, 7)):
        with pytest.raises(InputError, match="alpha channel"):
            read_alpha(data, width, height, depth)


@given(data=st.binary(max_size=80))
def test_alpha_that_is_no_png_is_damage(data: bytes) -> None:
    for start in (b"", b"\x89PNG\r\n\x1a\n", b"\x89PNG\r\n\x1a\n\0\0\0\x0dIHDR"):
        with pytest.raises((InputError, UnsupportedError)) as caught:
            read_alpha(start + data, 4, 4, 8)
        assert "\n" not in str(caught.value)


def test_background_is_blended_at_the_depth_of_the_picture() -> None:
    pixels = np.full((1, 3, 3), 60000, np.uint16)
    alpha = np.array([[0, 32768, 65535]], np.uint16)
    flat = flattened(Picture(pixels, depth=16, grey=True, alpha=alpha), (255, 0, 0))
    assert flat.pixels.tolist() == [[[65535, 0, 0], [62767, 30000, 30000], [60000] * 3]]
    assert (flat.alpha, flat.grey) == (None, False)
    assert flattened(Picture(pixels, depth=16, grey=True, alpha=alpha), (9, 9, 9)).grey


# --------------------------------------------------------------------------------------------------- writing


EVERYTHING = {
    "EXIF": turned_exif(1),
    "IPTC": b"\x1c\x02\x05\0\x01T",
    "TEXT": packed_text({"Title": "T"}),
    "XMP": xmp('a="b"'),
}


@pytest.mark.parametrize(
    ("form", "kept"),
    [
        ("png", {"ICC", "EXIF", "IPTC", "TEXT", "XMP"}),
        ("jpg", {"ICC", "EXIF", "IPTC", "XMP"}),
        ("webp", {"ICC", "EXIF", "XMP"}),
        ("avif", {"ICC", "EXIF", "XMP"}),
        ("tif", {"ICC", "EXIF", "IPTC", "XMP"}),
        ("ppm", set()),
        ("bmp", set()),
    ],
)
@pytest.mark.parametrize("depth", [8, 16])
def test_each_format_holds_what_it_can_and_notes_say_the_rest(
    photo: Image.Image, form: str, kept: set[str], depth: int
) -> None:
    pixels = np.asarray(photo) if depth == 8 else np.asarray(photo).astype(np.uint16) * 257
    alpha = np.full(pixels.shape[:2], 100, pixels.dtype)
    metadata = {"ICC": colour.profile_of(P3), **EVERYTHING}
    file = io.BytesIO()
    notes = write(Picture(pixels, metadata, depth=depth, alpha=alpha), form, file, background=(0, 0, 0))
    back = read(file.getvalue())
    assert set(back.metadata) == kept
    assert all(back.metadata[name] == metadata[name] for name in kept - {"EXIF"})
    assert ("metadata" in " ".join(notes)) == (kept != {"ICC", *EVERYTHING})
    assert ("colour space" in " ".join(notes)) == ("ICC" not in kept)
    has_alpha = form in ("png", "webp", "avif", "tif")
    assert (back.alpha is not None) == has_alpha
    assert ("transparency" in " ".join(notes)) != has_alpha
    assert back.depth == (16 if depth == 16 and form in ("png", "tif", "ppm") else 8)
    assert ("8 bits" in " ".join(notes)) == (depth == 16 and back.depth == 8)


def test_resolution_is_written_where_readers_look_for_it(photo: Image.Image) -> None:
    picture = read(saved(photo, "PNG", dpi=(300, 300)))
    for form in ("png", "jpg", "tif", "bmp"):
        file = io.BytesIO()
        write(picture, form, file)
        with Image.open(io.BytesIO(file.getvalue())) as image:
            assert [round(v) for v in image.info["dpi"]] == [300, 300]


# -------------------------------------------------------------------------------------------- through a .hpcm file


@pytest.fixture(scope="module")
def gradient() -> np.ndarray:
    """(64, 96, 3) uint16: levels that rise by about 40, as a sky does, so that 8 bits show bands."""
    rows, columns = np.mgrid[0:64, 0:96]
    return np.stack([20000 + 40 * (rows + 2 * columns) + 3000 * c for c in range(3)], axis=2).astype(np.uint16)


def test_alpha_comes_back_to_the_last_bit_and_grey_as_grey(photo: Image.Image) -> None:
    rgba = np.dstack((np.asarray(photo), np.random.default_rng(0).integers(0, 256, (40, 60)).astype(np.uint8)))
    decoded = hpcmcodec.decode(hpcmcodec.encode(rgba, 80))
    assert decoded.mode == "RGBA"
    assert np.array_equal(np.asarray(decoded)[..., 3], rgba[..., 3])
    grey_alpha = rgba[..., [0, 3]]
    decoded = hpcmcodec.decode(hpcmcodec.encode(grey_alpha, 80))
    assert decoded.mode == "LA"
    assert np.array_equal(np.asarray(decoded)[..., 1], rgba[..., 3])
    grey = hpcmcodec.decode(hpcmcodec.encode(rgba[..., 0], 80))
    assert grey.mode == "L"
    assert np.abs(np.asarray(grey).astype(int) - rgba[..., 0]).mean() < 4
    flat = hpcmcodec.decode(hpcmcodec.encode(rgba, 80, background="white"))
    assert flat.mode == "RGB"
    for background in ("nothing", "#12345678", (1, 2), (0, 0, 256)):
        with pytest.raises(ValueError, match=r"background|color"):
            hpcmcodec.encode(rgba, background=background)  # type: ignore[arg-type]


def test_deep_gradient_decodes_to_more_levels_nearer_to_it_than_8_bits_do(gradient: np.ndarray) -> None:
    data = hpcmcodec.encode(gradient, 90)
    assert container.parse_header(data).depth == 16
    deep = codec.decode_picture(data)
    assert (deep.depth, deep.pixels.dtype) == (16, np.uint16)
    assert len(np.unique(deep.pixels)) > 256
    shallow = codec.decode_picture(hpcmcodec.encode((gradient >> 8).astype(np.uint8), 90))
    assert shallow.depth == 8
    errors = [np.abs(p.astype(float) - gradient).mean() for p in (deep.pixels, shallow.pixels.astype(np.uint16) * 257)]
    assert errors[0] < errors[1]
    assert np.array_equal(codec.decode_picture(data, depth=8).pixels, np.asarray(hpcmcodec.decode(data)))
    with pytest.raises(ValueError, match="depth is 8 or 16"):
        codec.decode_picture(data, depth=12)


def test_thumbnails_have_the_alpha_and_the_greys_of_the_picture(photo: Image.Image) -> None:
    samples = np.dstack((np.asarray(photo)[..., 0], np.full((40, 60), 77, np.uint8)))
    thumbnail = hpcmcodec.decode(hpcmcodec.encode(samples, 50), thumbnail=True)
    assert (thumbnail.mode, thumbnail.size) == ("LA", (8, 5))
    assert (np.asarray(thumbnail)[..., 1] == 77).all()


def test_space_and_metadata_pass_through_a_file(photo: Image.Image) -> None:
    source = Picture(np.asarray(photo), dict(EVERYTHING), cicp=P3)
    data = hpcmcodec.encode(source, 50)
    back = codec.decode_picture(data)
    assert (back.cicp, back.metadata) == (P3, EVERYTHING)
    image = hpcmcodec.decode(data)
    assert image.info["cicp"] == (12, 13)
    assert image.info["icc_profile"] == colour.profile_of(P3)
    assert image.info["text"] == {"Title": "T"}
    assert read(saved(image, "PNG")).metadata == EVERYTHING


@given(change=st.data())
def test_alpha_chunk_that_is_damaged_or_of_another_size_is_refused_in_one_line(
    alpha_file: bytes, change: st.DataObject
) -> None:
    reader = container.Reader(alpha_file)
    opacity = bytearray(reader.metadata()["ALPH"])
    opacity[change.draw(st.integers(0, len(opacity) - 1))] ^= change.draw(st.integers(1, 255))
    try:
        shape = read_alpha(bytes(opacity), 9, 6, 8).shape
    except (InputError, UnsupportedError) as error:
        message, shape = str(error), (6, 9)
    else:
        message = ""
    assert "\n" not in message
    assert shape == (6, 9)


@pytest.mark.parametrize("mode", ["1", "RGB", "LA", "P", "RGBA"])
def test_alpha_chunk_of_anything_but_greys_of_8_or_16_bits_is_refused(mode: str) -> None:
    with pytest.raises(InputError, match="not 9x6 greys of 8 or 16 bits"):
        read_alpha(saved(Image.new(mode, (9, 6)), "PNG"), 9, 6, 8)


def test_ancillary_chunks_of_an_alpha_png_mean_nothing() -> None:
    greys = np.arange(54, dtype=np.uint8).reshape(6, 9)
    whole = saved(Image.fromarray(greys), "PNG")
    before, behind = whole[:8], whole[8:]
    narrow, animated = png_chunk(b"cICP", bytes((1, 13, 0, 0))), png_chunk(b"acTL", struct.pack(">II", 2, 0))
    for data in (before + png_chunk(b"teSt", b"x") + behind, whole[:33] + narrow + animated + whole[33:]):
        np.testing.assert_array_equal(read_alpha(data, 9, 6, 8), greys)
    rgb = saved(Image.new("RGB", (9, 6)), "PNG")
    with pytest.raises(InputError, match="not 9x6 greys"):
        read_alpha(rgb[:8] + png_chunk(b"teSt", bytes(12) + b"\x08\0" + bytes(20)) + rgb[8:], 9, 6, 8)


@pytest.mark.parametrize(("points", "space"), [((12, 2), (12, 13)), ((2, 2), (1, 13)), ((255, 16), (1, 16))])
def test_code_points_that_name_nothing_are_read_as_srgbs(points: tuple[int, int], space: tuple[int, int]) -> None:
    with tiny.installed():
        data = container.edited(tiny.encode(9, 6), {}, points)
        assert codec.decode_picture(data).cicp == space


def test_preview_of_a_file_that_is_cut_before_its_alpha_says_that_it_is_opaque(alpha_file: bytes) -> None:
    header = container.parse_header(alpha_file)
    cut = alpha_file[: header.stream_info("s2", 0).end]
    picture = codec.decode_picture(cut, scale="s2")
    assert picture.alpha is None
    assert picture.notes == ("the file is cut before its transparency: the preview is opaque",)
    whole = codec.decode_picture(alpha_file, scale="s2")
    assert (whole.alpha is not None, whole.notes) == (True, ())


def test_code_points_go_before_a_profile(photo: Image.Image) -> None:
    other = colour.icc_profile(colour._PRIMARIES[1], (1.8,), "another space")
    picture = Picture(np.asarray(photo), {"ICC": other}, cicp=P3)
    for form in ("png", "jpg", "tif"):
        file = io.BytesIO()
        write(picture, form, file)
        with Image.open(file) as image:
            assert image.info["icc_profile"] == colour.profile_of(P3), form


@pytest.fixture(scope="module")
def alpha_file() -> bytes:
    return hpcmcodec.encode(noise(4, 8), 50)


# ----------------------------------------------------------------------------------------------------------- editing


def gps_exif(order: str = "<") -> bytes:
    """EXIF with a maker, a place in its middle and an orientation behind it."""
    block = Image.Exif()
    block.endian = order
    block[0x010F], block[0x8825], block[0xC4A5] = "Maker of cameras", {1: "N", 2: (12.0, 34.0, 56.789)}, "behind"
    block[0x8769] = {0x9003: "2024:02:29 12:00:00"}
    return block.tobytes().removeprefix(b"Exif\0\0")


@pytest.mark.parametrize("order", ["<", ">"])
def test_place_is_gone_from_exif_and_xmp_and_the_rest_stays(order: str) -> None:
    block = gps_exif(order)
    packet = xmp('exif:GPSLatitude="12,34N" dc:a="b"', "<exif:GPSLongitude>1,2E</exif:GPSLongitude><dc:c>d</dc:c>")
    picture = Picture(np.zeros((1, 1, 3), np.uint8), {"EXIF": block, "XMP": packet})
    clean = editing.stripped(picture, ["gps"]).metadata
    before, after = Image.Exif(), Image.Exif()
    before.load(block)
    after.load(clean["EXIF"])
    assert before.get_ifd(0x8825)
    assert not after.get_ifd(0x8825)
    assert (after[0x010F], after[0xC4A5]) == ("Maker of cameras", "behind")
    assert after.get_ifd(0x8769) == before.get_ifd(0x8769)
    assert struct.pack(f"{order}2I", 12, 1) not in clean["EXIF"]
    assert clean["XMP"] == xmp('dc:a="b"', "<dc:c>d</dc:c>")


@given(block=st.binary(max_size=90), order=st.sampled_from([b"II*\0\x08\0\0\0\x01\0", b"MM\0*\0\0\0\x08\0\x01"]))
def test_taking_the_place_away_takes_any_bytes(block: bytes, order: bytes) -> None:
    gps = b"\x25\x88\x04\0\x01\0\0\0" if order[:1] == b"I" else b"\x88\x25\0\x04\0\0\0\x01"
    for data in (order + block, order + gps + block):
        assert len(exif.without_gps(data)) in (0, len(data))


@pytest.mark.parametrize(
    ("strip", "left"),
    [
        (["all"], {"ICC"}),
        (["all", "icc"], set()),
        (["icc"], {"EXIF", "IPTC", "TEXT", "XMP"}),
        (["text"], {"ICC", "EXIF", "XMP"}),
        (["exif", "xmp"], {"ICC", "IPTC", "TEXT"}),
        ([], {"ICC", "EXIF", "IPTC", "TEXT", "XMP"}),
    ],
)
def test_kinds_of_metadata_are_dropped_or_kept_alone(strip: list[str], left: set[str]) -> None:
    whole = Picture(np.zeros((1, 1, 3), np.uint8), {"ICC": colour.profile_of(P3), **EVERYTHING}, cicp=None)
    assert set(editing.stripped(whole, strip).metadata) == left
    kinds = {"ICC": "icc", "EXIF": "exif", "IPTC": "text", "TEXT": "text", "XMP": "xmp"}
    if not {"IPTC", "TEXT"} & left or {"IPTC", "TEXT"} <= left:
        assert set(editing.kept(whole, {kinds[name] for name in left}).metadata) == left


def test_replacements_have_to_be_what_they_are_said_to_be() -> None:
    picture = Picture(np.zeros((1, 1, 3), np.uint8), {}, cicp=P3)
    icc = colour.profile_of(Cicp(9, 14))
    assert editing.with_icc(picture, icc).metadata == {"ICC": icc}
    assert editing.with_icc(picture, icc).cicp is None
    turned = editing.with_exif(picture, b"Exif\0\0" + turned_exif(6)).metadata["EXIF"]
    assert exif.take_orientation(turned)[0] == 1
    assert editing.with_xmp(picture, xmp('a="b"')).metadata == {"XMP": xmp('a="b"')}
    for change in (editing.with_exif, editing.with_xmp, editing.with_icc):
        for data in (b"", b"garbage", b"<!DOCTYPE a><a/>", b"II*\0\x08\0\0\0", b"acsp" * 60):
            with pytest.raises(InputError, match="not an"):
                change(picture, data)


# -------------------------------------------------------------------------------------------------- kinds of picture


def drawn(kind: str, photo: Image.Image) -> Image.Image:
    """A picture that is no photograph, 300x200 or the size of `photo`."""
    page = Image.new("L" if kind == "grey text" else "RGB", (300, 200), "white")
    pen = ImageDraw.Draw(page)
    if kind in ("text", "grey text"):
        for line in range(12):
            pen.text((5, 3 + 16 * line), "The quick brown fox jumps over it 0123456789", fill="black")
    elif kind == "logo":
        pen.ellipse((30, 30, 170, 170), fill=(220, 30, 40))
        pen.rectangle((120, 90, 280, 180), fill=(20, 60, 200))
        page = page.resize((600, 400), Image.Resampling.BICUBIC)
    elif kind == "dither":
        return photo.convert("1")
    elif kind == "palette":
        return photo.quantize(16)
    elif kind == "halftone":  # dots of 3 x 3 pixels, in each channel
        screen = np.tile(np.array([[7, 2, 5], [1, 0, 3], [6, 4, 8]]) * 28 + 14, (photo.height, photo.width))
        levels = np.where(np.asarray(photo) > screen[: photo.height, : photo.width, None], 255, 0)
        return Image.fromarray(levels.astype(np.uint8))
    else:
        levels = (
            np.asarray(photo).astype(int)
            + 60 * (-1) ** np.add.outer(*map(np.arange, (photo.height, photo.width)))[..., None]
        )
        return Image.fromarray(np.clip(levels, 0, 255).astype(np.uint8))
    return page


@pytest.mark.parametrize("kind", ["text", "grey text", "logo", "dither", "palette", "halftone", "checkerboard"])
def test_what_is_no_photograph_is_known(kind: str, photos: dict[str, Path]) -> None:
    with Image.open(photos["astronaut"]) as image:
        picture = read(saved(drawn(kind, image.convert("RGB")), "PNG"))
    assert not_a_photograph(picture)


@pytest.mark.parametrize("name", ["coffee", "chelsea", "astronaut", "motorcycle_left"])
@pytest.mark.parametrize("change", ["none", "grey", "jpeg", "small", "16 bits"])
def test_photographs_are_taken_for_photographs(name: str, change: str, photos: dict[str, Path]) -> None:
    with Image.open(photos[name]) as image:
        image = image.convert("L" if change == "grey" else "RGB")
        if change == "small":
            image = image.resize((image.width // 4, image.height // 4))
        data = saved(image, "JPEG", quality=60) if change == "jpeg" else saved(image, "PNG")
    picture = read(data)
    if change == "16 bits":
        picture = load(picture.pixels.astype(np.uint16) * 257, max_pixels=None)
    assert not_a_photograph(picture) == ""


def test_kodaks_photographs_are_photographs(kodak: list[Path]) -> None:
    assert {path.name: not_a_photograph(load(path, max_pixels=None)) for path in kodak} == {
        path.name: "" for path in kodak
    }


@pytest.mark.parametrize(("form", "side"), [("jpg", 65501), ("webp", 16384)])
def test_side_that_a_format_cannot_hold_is_refused(form: str, side: int) -> None:
    with pytest.raises(UnsupportedError, match=f"sides up to {side - 1}"):
        write(Picture(np.zeros((1, side, 3), np.uint8), {}), form, io.BytesIO())


def test_profile_that_a_deep_png_cannot_hold_leaves_a_note() -> None:
    picture = Picture(np.zeros((4, 4, 3), np.uint16), {"ICC": bytes(1_000_001)}, depth=16)
    assert any("1000001 bytes" in note for note in write(picture, "png", io.BytesIO()))


@pytest.mark.parametrize("tag", [266, 274, 322, 338, 339])
def test_exif_says_nothing_of_how_a_tiffs_pixels_are_stored(tag: int) -> None:
    exif = Image.Exif()
    exif[tag], exif[0x010F] = 3, "Maker"
    file = io.BytesIO()
    pixels = np.arange(4 * 6 * 3, dtype=np.uint8).reshape(4, 6, 3)
    write(Picture(pixels, {"EXIF": exif.tobytes()[6:]}), "tif", file)
    with Image.open(file) as image:
        assert np.array_equal(np.asarray(image), pixels)
        assert image.getexif()[0x010F] == "Maker"


def test_orientation_in_a_file_is_not_passed_on() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    with tiny.installed():
        data = container.edited(tiny.encode(8, 5), {"EXIF": exif.tobytes()[6:]}, None)
        assert hpcmcodec.decode(data).getexif()[0x0112] == 1
