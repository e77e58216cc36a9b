"""The command line: files and streams, exit codes, one line for each failure, nothing left behind."""

import contextlib
import io
import json
import os
import re
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import tiny
from click.testing import CliRunner, Result
from PIL import Image, ImageCms, ImageOps

import hpcmcodec
from hpcmcodec import container
from hpcmcodec.cli import COMMANDS, EXIT_CODES, cli
from hpcmcodec.image import load

MODULE = [sys.executable, "-m", "hpcmcodec"]
# A program that runs `hpcm` after changing something inside; its arguments are those of hpcm.
CALL_MAIN = "import hpcmcodec.cli; hpcmcodec.cli.main()"
TO_SECOND_STREAM = "os.write(2, ' '.join(sorted(sys.modules)).encode())"


def hpcm(*args: object, data: bytes = b"", env: dict[str, str] | None = None) -> "subprocess.CompletedProcess[bytes]":
    """The program as a user runs it."""
    return subprocess.run([*MODULE, *map(str, args)], input=data, capture_output=True, check=False, env=env)


def inside(*args: object, data: bytes = b"") -> Result:
    """The commands in this process: quicker, and open to changes of the test."""
    return CliRunner().invoke(cli, [str(arg) for arg in args], input=data)


def psnr_db(a: np.ndarray, b: np.ndarray) -> float:
    return float(10 * np.log10(255**2 / np.mean((a.astype(float) - b) ** 2)))


def pixels(source: Path | bytes) -> np.ndarray:
    with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as image:
        return np.asarray(image)


def assert_refused(result: "subprocess.CompletedProcess[bytes] | Result", code: int, *words: str) -> None:
    """Exit code `code`, and on standard error one line with these words."""
    if isinstance(result, Result):
        found, stderr, stdout = result.exit_code, result.stderr, result.stdout
    else:
        found, stderr, stdout = result.returncode, result.stderr.decode(), result.stdout.decode()
    assert found == code, stderr
    assert re.fullmatch(r"hpcm: error: [^\n]+\n", stderr), stderr
    for word in words:
        assert word in stderr
    assert stdout == ""


@pytest.fixture
def photo(photos: dict[str, Path], tmp_path: Path) -> Path:
    """A piece of a photograph, 96x64, as photo.jpg in a folder of its own: turned by EXIF, with a profile and XMP."""
    exif = Image.Exif()
    exif[0x010F], exif[0x0112] = "Maker of cameras", 6
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    with Image.open(photos["chelsea"]) as image:
        piece = image.convert("RGB").crop((100, 60, 196, 124))
    path = tmp_path / "photo.jpg"
    piece.save(path, quality=95, exif=exif, icc_profile=profile, xmp=b"<x:xmpmeta/>")
    return path


@pytest.fixture(scope="session")
def coded(photos: dict[str, Path]) -> bytes:
    """A .hpcm file of a piece of a photograph, 96x64, without metadata."""
    with Image.open(photos["chelsea"]) as image:
        piece = np.asarray(image)[60:124, 100:196]
    return hpcmcodec.encode(piece, quality=50)


@pytest.fixture
def file(coded: bytes, tmp_path: Path) -> Path:
    path = tmp_path / "photo.hpcm"
    path.write_bytes(coded)
    return path


def contents(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


# ---------------------------------------------------------------------------------------------------------- round trips


def test_photograph_comes_back_in_its_size_from_a_smaller_file(photos: dict[str, Path], tmp_path: Path) -> None:
    source, small, back = photos["chelsea"], tmp_path / "cat.hpcm", tmp_path / "cat.png"
    encoded = hpcm("encode", source, "-o", small)
    decoded = hpcm("decode", small, "-o", back)
    assert (encoded.returncode, decoded.returncode) == (0, 0), (encoded.stderr, decoded.stderr)
    assert encoded.stdout == decoded.stdout == b""
    original = pixels(source)
    assert pixels(back).shape == original.shape == (300, 451, 3)
    assert psnr_db(pixels(back), original) > 28
    assert small.stat().st_size < source.stat().st_size / 5
    assert contents(tmp_path) == {"cat.hpcm", "cat.png"}


def test_summary_line_states_bytes_bits_per_pixel_and_seconds(photo: Path) -> None:
    for command, source in (("encode", photo), ("decode", photo.with_suffix(".hpcm"))):
        stderr = hpcm(command, source).stderr.decode()
        found = re.fullmatch(r"hpcm: .* -> .*: (\d+) bytes, (\d+\.\d{3}) bpp, \d+\.\d\d s\n", stderr)
        assert found, stderr
        n_bytes = photo.with_suffix(".hpcm").stat().st_size
        assert int(found[1]) == n_bytes
        assert found[2] == f"{8 * n_bytes / (96 * 64):.3f}"


def test_orientation_is_applied_and_profile_exif_and_xmp_are_kept(photo: Path) -> None:
    hpcm("encode", photo)
    hpcm("decode", photo.with_suffix(".hpcm"))
    with Image.open(photo) as before, Image.open(photo.with_suffix(".png")) as after:
        assert after.size == (64, 96)
        assert psnr_db(np.asarray(after), np.asarray(before.rotate(-90, expand=True))) > 25
        assert after.info["icc_profile"] == before.info["icc_profile"]
        assert after.info["xmp"] == before.info["xmp"]
        assert dict(after.getexif()) == {0x010F: "Maker of cameras", 0x0112: 1}


def test_outputs_are_named_after_the_inputs(photo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(photo.parent)
    assert inside("encode", "photo.jpg").exit_code == 0
    assert contents(photo.parent) == {"photo.jpg", "photo.hpcm"}
    assert inside("decode", photo.with_suffix(".hpcm")).exit_code == 0
    assert contents(photo.parent) == {"photo.jpg", "photo.hpcm", "photo.png"}


@pytest.mark.parametrize("names", [("-",), ("-", "-o", "-")])
def test_dash_is_standard_input_and_output(photo: Path, tmp_path: Path, names: tuple[str, ...]) -> None:
    encoded = hpcm("encode", *names, data=photo.read_bytes())
    decoded = hpcm("decode", *names, data=encoded.stdout)
    assert (encoded.returncode, decoded.returncode) == (0, 0), (encoded.stderr, decoded.stderr)
    hpcm("encode", photo)
    assert encoded.stdout == photo.with_suffix(".hpcm").read_bytes()
    hpcm("decode", photo.with_suffix(".hpcm"))
    assert np.array_equal(pixels(decoded.stdout), pixels(photo.with_suffix(".png")))
    assert encoded.stderr.startswith(b"hpcm: standard input -> standard output: ")


@pytest.mark.parametrize(
    ("name", "options", "form", "mode"),
    [
        ("x.png", [], "PNG", "RGBA"),
        ("x.jpeg", [], "JPEG", "RGB"),
        ("x.WEBP", [], "WEBP", "RGBA"),
        ("x.avif", [], "AVIF", "RGBA"),
        ("x.tif", [], "TIFF", "RGBA"),
        ("x.ppm", [], "PPM", "RGB"),
        ("x.bmp", [], "BMP", "RGB"),
        ("x", [], "PNG", "RGBA"),
        ("-", ["--format", "tif"], "TIFF", "RGBA"),
        ("-", [], "PNG", "RGBA"),
        ("x.picture", ["--format", "webp"], "WEBP", "RGBA"),
    ],
)
def test_decode_writes_the_format_of_the_suffix_or_the_option(
    glass: Path, name: str, options: list[str], form: str, mode: str
) -> None:
    target = name if name == "-" else glass.with_name(name)
    result = inside("decode", glass, "-o", target, *options, "--background", "black")
    assert result.exit_code == 0, result.stderr
    data = result.stdout_bytes if name == "-" else Path(target).read_bytes()
    with Image.open(io.BytesIO(data)) as image:
        assert (image.format, image.mode, image.size) == (form, "RGB", (48, 32))
    result = inside("decode", glass, "-o", target, *options, "-f")
    data = result.stdout_bytes if name == "-" else Path(target).read_bytes()
    with Image.open(io.BytesIO(data)) as image:
        assert (image.format, image.mode) == (form, mode)
    assert ("transparency" in result.stderr) == (mode == "RGB")


def test_depth_chooses_between_8_and_16_bits(tmp_path: Path) -> None:
    levels = np.linspace(9000, 50000, 32 * 48 * 3).astype(np.uint16).reshape(32, 48, 3)
    path = tmp_path / "deep.hpcm"
    path.write_bytes(hpcmcodec.encode(levels, 90))
    depths = {}
    for options in ([], ["--depth", "8"], ["--depth", "16"], ["--format", "jpg"]):
        result = inside("decode", path, "-o", "-", *options)
        depths[" ".join(options)] = load(result.stdout_bytes, max_pixels=None).depth
    assert depths == {"": 16, "--depth 8": 8, "--depth 16": 16, "--format jpg": 8}


def test_region_is_a_part_of_the_picture_and_one_outside_is_exit_code_2(file: Path, tmp_path: Path) -> None:
    whole = np.asarray(hpcmcodec.decode(file))
    assert inside("decode", file, "--region", "11,7,50,20").exit_code == 0
    assert np.array_equal(pixels(file.with_suffix(".png")), whole[7:27, 11:61])
    outside = inside("decode", file, "--region", "90,0,7,5", "-o", tmp_path / "outside.png")
    assert_refused(outside, 2, "'--region'", "not inside the picture of 96x64")
    assert not (tmp_path / "outside.png").exists()
    second = tmp_path / "second.hpcm"
    second.write_bytes(hpcmcodec.encode(whole[:40, :40], 50))
    assert inside("decode", second, file, "--region", "40,30,9,9", "--format", "jpg").exit_code == 7
    assert contents(tmp_path) == {"photo.hpcm", "photo.png", "photo.jpg", "second.hpcm"}


@pytest.mark.parametrize(
    ("side", "size"), [(12, (12, 8)), (5, (5, 3)), (50, (50, 33)), (96, (96, 64)), (500, (96, 64))]
)
def test_max_size_scales_the_picture_down_from_its_thumbnail_where_that_is_enough(
    side: int, size: tuple[int, int], file: Path
) -> None:
    assert inside("decode", file, "--max-size", side).exit_code == 0
    found = pixels(file.with_suffix(".png"))
    assert found.shape[1::-1] == size
    whole = hpcmcodec.decode(file)
    wanted = np.asarray(whole.resize(size, Image.Resampling.LANCZOS), float)
    assert np.sqrt(np.mean((found - wanted) ** 2)) < (10 if side <= 12 else 1)
    if side == 12:
        assert np.array_equal(found, np.asarray(hpcmcodec.decode(file, thumbnail=True)))


def test_max_size_of_a_region_scales_the_region(file: Path) -> None:
    assert inside("decode", file, "--max-size", "10", "--region", "0,0,40,20").exit_code == 0
    assert pixels(file.with_suffix(".png")).shape == (5, 10, 3)


@pytest.fixture(scope="module")
def glass(photos: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A .hpcm file of a photograph with alpha, 48x32, in a folder of its own."""
    path = tmp_path_factory.mktemp("glass") / "glass.hpcm"
    with Image.open(photos["chelsea"]) as photograph:
        piece = photograph.convert("RGB").crop((100, 60, 148, 92))
    piece.putalpha(Image.linear_gradient("L").resize(piece.size))
    path.write_bytes(hpcmcodec.encode(piece, 50))
    return path


def test_edit_changes_metadata_and_nothing_else(photo: Path, tmp_path: Path) -> None:
    assert inside("encode", photo).exit_code == 0
    source, target = photo.with_suffix(".hpcm"), tmp_path / "edited.hpcm"
    assert inside("edit", source, "--strip", "exif,xmp", "-o", target).exit_code == 0
    whole = container.Reader(source.read_bytes())
    assert set(whole.metadata()) == {"ICC", "EXIF", "XMP"}
    assert set(container.Reader(target.read_bytes()).metadata()) == {"ICC"}
    assert np.array_equal(
        np.asarray(hpcmcodec.decode(target.read_bytes())), np.asarray(hpcmcodec.decode(source.read_bytes()))
    )
    inside("encode", photo, "-f", "-o", tmp_path / "stripped.hpcm", "--strip", "exif,xmp")
    assert (tmp_path / "stripped.hpcm").read_bytes() == target.read_bytes()
    packet = tmp_path / "packet.xmp"
    packet.write_bytes(b"<a/>")
    assert_refused(inside("edit", target, "--xmp", packet), 6, "exists already")
    assert inside("edit", target, "--xmp", packet, "-f").exit_code == 0
    assert container.Reader(target.read_bytes()).metadata()["XMP"] == b"<a/>"
    piped = inside("edit", "-", "--keep", "xmp", data=target.read_bytes())
    assert set(container.Reader(piped.stdout_bytes).metadata()) == {"XMP"}
    assert_refused(inside("edit", target, "--exif", packet, "-f"), 3, str(packet), "not an EXIF block")
    assert_refused(inside("edit", target, "--icc", "missing.icc", "-f"), 3, "missing.icc")
    assert_refused(inside("edit", photo, "--strip", "gps", "-f"), 3, "not an .hpcm file")


def test_several_inputs_go_into_a_directory_and_failures_do_not_stop_them(photo: Path, tmp_path: Path) -> None:
    second, broken, out = tmp_path / "second.png", tmp_path / "broken.png", tmp_path / "out"
    with Image.open(photo) as image:
        image.crop((0, 0, 20, 20)).save(second)
    broken.write_bytes(b"garbage")
    out.mkdir()
    done = inside("encode", photo, second, "-o", out)
    assert done.exit_code == 0
    assert done.stderr.splitlines()[-1] == "hpcm: 2 inputs: 2 done, 0 failed"
    assert contents(out) == {"photo.hpcm", "second.hpcm"}
    some = inside("encode", photo, broken, second, tmp_path, "-o", out, "-f", "--quiet")
    assert some.exit_code == 7
    lines = some.stderr.splitlines()
    assert [line.split(": ")[1] for line in lines[:2]] == ["error", "error"]
    assert lines[2:] == ["hpcm: 4 inputs: 2 done, 2 failed"]
    decoded = inside("decode", out / "photo.hpcm", out / "second.hpcm", "--format", "jpg")
    assert decoded.exit_code == 0
    assert contents(out) == {"photo.hpcm", "second.hpcm", "photo.jpg", "second.jpg"}
    assert_refused(inside("encode", photo, second, "-o", tmp_path / "nowhere"), 6, "is a directory")


def test_two_inputs_are_never_written_to_one_file(photo: Path, tmp_path: Path) -> None:
    with Image.open(photo) as image:
        image.save(tmp_path / "photo.png")
    done = inside("encode", photo, tmp_path / "photo.png", "-f")
    assert done.exit_code == 7
    assert "is written there too" in done.stderr


def test_verify_says_what_agrees_and_fails_where_it_does_not(file: Path, coded: bytes, photo: Path) -> None:
    result = inside("verify", file)
    assert (result.exit_code, result.stdout) == (0, f"{file}: its checksum agrees\n")
    assert inside("verify", file, "--decode").stdout == f"{file}: the checksums of file, latents agree\n"
    inside("encode", photo, "--verify", "-f")
    checked = photo.with_suffix(".hpcm")
    assert (
        inside("verify", checked, "--decode").stdout == f"{checked}: the checksums of file, latents and pixels agree\n"
    )
    damaged = file.with_name("damaged.hpcm")
    damaged.write_bytes(coded[:-20] + bytes([coded[-20] ^ 1]) + coded[-19:])
    assert_refused(inside("verify", damaged), 5, "damaged.hpcm")
    intact = file.with_name("intact.hpcm")
    intact.write_bytes(coded)
    both = inside("verify", intact, damaged)
    assert (both.exit_code, both.stdout) == (7, f"{intact}: its checksum agrees\n")


@pytest.mark.parametrize("place", [0, 1])
def test_threads_are_limited_wherever_the_option_stands(place: int, file: Path) -> None:
    arguments = ["info", str(file)]
    arguments[place:place] = ["--threads", "1"]
    code = (
        "import sys; from hpcmcodec import threads; from hpcmcodec.cli import cli\n"
        "try: cli.main(args=sys.argv[1:])\n"
        "finally: print(threads.count())"
    )
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "1"


def test_picture_that_is_no_photograph_is_said_to_be_none_and_refused_on_request(photo: Path) -> None:
    few = photo.with_name("few.png")
    with Image.open(photo) as image:
        image.convert("1").save(few)
    said = inside("encode", few, "-f").stderr
    assert (
        f"hpcm: note: {few}: this is no photograph (it has 2 colours): PNG or lossless WebP will serve it better\n"
        in said
    )
    assert_refused(inside("encode", few, "-f", "--strict"), 4, "no photograph")
    assert "photograph" not in inside("encode", photo, "--strict", "-f").stderr


def test_target_chooses_the_quality_and_excludes_the_option(photo: Path) -> None:
    result = inside("encode", photo, "--target-size", "2000", "-f")
    assert result.exit_code == 0
    assert re.search(r"^hpcm: note: .*: quality \d", result.stderr, re.MULTILINE)
    assert 1960 <= photo.with_suffix(".hpcm").stat().st_size <= 2000
    assert_refused(inside("encode", photo, "--target-size", "300", "-f"), 4, "300 bytes cannot be met: quality 0 takes")
    assert_refused(inside("encode", photo, "--target-psnr", "30", "-q", "50"), 2, "exclude each other")


def test_info_prints_exif_and_texts(photo: Path) -> None:
    inside("encode", photo)
    shown = inside("info", photo.with_suffix(".hpcm"), "--exif").stdout
    assert "     Make: Maker of cameras\n" in shown
    assert "     Orientation: 1\n" in shown
    facts = json.loads(inside("info", photo.with_suffix(".hpcm"), "--exif", "--json").stdout)
    assert facts["exif"] == {"Make": "Maker of cameras", "Orientation": "1"}


def test_quality_takes_decimals_and_more_of_it_takes_more_bytes(photo: Path) -> None:
    sizes = []
    for quality in ("0", "37.25", "100"):
        inside("encode", photo, "-f", "-q", quality)
        data = photo.with_suffix(".hpcm").read_bytes()
        assert container.parse_header(data).quality.percent == float(quality)
        sizes.append(len(data))
    assert sizes == sorted(set(sizes))


def test_effort_makes_the_picture_better(photo: Path) -> None:
    with Image.open(photo) as image:
        original = np.asarray(ImageOps.exif_transpose(image).convert("RGB")).astype(float)
    errors = []
    for effort in ("0", "9"):
        inside("encode", photo, "-f", "-q", "80", "-e", effort)
        inside("decode", photo.with_suffix(".hpcm"), "-f")
        errors.append(np.mean((pixels(photo.with_suffix(".png")) - original) ** 2))
    assert errors[1] < 0.98 * errors[0]


def test_preview_is_decoded_from_a_file_cut_after_its_scale(file: Path, coded: bytes) -> None:
    header = container.parse_header(coded)
    cut = file.with_name("cut.hpcm")
    for scale in ("s1", "s2"):
        cut.write_bytes(coded[: header.stream_info(scale, 0).end])
        assert inside("decode", cut, "--scale", scale, "-f").exit_code == 0
        whole = inside("decode", file, "--scale", scale, "-o", "-")
        assert np.array_equal(pixels(cut.with_suffix(".png")), pixels(whole.stdout_bytes))
        assert pixels(whole.stdout_bytes).shape == (64, 96, 3)
        assert_refused(inside("decode", cut, "-o", "other.png"), 3, "cut.hpcm")


# ---------------------------------------------------------------------------------------------------- notes and silence


def test_conversion_is_said_in_one_line_and_quiet_silences_all(photo: Path) -> None:
    few = photo.with_name("few.png")
    with Image.open(photo) as image:
        image.quantize(16).save(few)
    said = hpcm("encode", few).stderr.decode().splitlines()
    assert said[0] == f"hpcm: note: {few}: palette converted to RGB"
    assert len(said) == 3
    for args in (("--quiet", "encode", few, "-f"), ("encode", few, "-f", "--quiet")):
        result = hpcm(*args)
        assert (result.returncode, result.stdout, result.stderr) == (0, b"", b"")


def run_on_terminal(code: str, *args: object, **environment: str) -> str:
    """What `code` writes to a terminal that is its standard error, with colours unless `environment` says otherwise."""
    inherited = {key: value for key, value in os.environ.items() if key != "NO_COLOR"}
    pty = pytest.importorskip("pty", reason="needs a POSIX terminal")
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", code, *map(str, args)],
        stdout=subprocess.DEVNULL,
        stderr=theirs,
        env={**inherited, "TERM": "xterm-256color", **environment},
    )
    os.close(theirs)
    said = b""
    try:
        while block := os.read(ours, 65536):
            said += block
    except OSError:  # Linux reports the end of a terminal as an error
        pass
    os.close(ours)
    assert process.wait() == 0, said
    return said.decode()


def test_progress_is_shown_for_lasting_work_on_a_terminal_in_colour_unless_declined(photo: Path) -> None:
    after = "import hpcmcodec.cli as c; c.messages.PROGRESS_AFTER_SECONDS = {}; c.main()"
    at_once, late = after.format(0), after.format(1e6)
    args = ("encode", photo, "-f")
    colours = "\x1b\\[(?:[0-9]+;)*(?:3[0-9]|9[0-7])[0-9;]*m"
    shown = run_on_terminal(at_once, *args)
    assert "encoding" in shown
    assert re.search(colours, shown)
    plain = run_on_terminal(at_once, *args, NO_COLOR="1")
    assert "encoding" in plain
    assert not re.search(colours, plain)
    assert "encoding" not in run_on_terminal(at_once, *args, "--quiet")
    assert "encoding" not in run_on_terminal(late, *args)
    piped = subprocess.run([sys.executable, "-c", at_once, *map(str, args)], capture_output=True, check=True)
    assert b"encoding" not in piped.stderr


# ----------------------------------------------------------------------------------------------------------------- info


def test_info_json_has_the_keys_of_the_contract(file: Path, coded: bytes) -> None:
    result = hpcm("info", file, "--json")
    facts = json.loads(result.stdout)
    header = container.parse_header(coded)
    assert result.stderr == b""
    assert facts == {
        "format_version": 2,
        "model": "lite-1",
        "model_id": header.model_id.hex(),
        "width": 96,
        "height": 64,
        "quality": 50.0,
        "bytes": len(coded),
        "bpp": pytest.approx(8 * len(coded) / (96 * 64), abs=1e-6),
        "color": "sRGB",
        "depth": 8,
        "grey": False,
        "tiles": 1,
        "tile_side": 256,
        "streams": {scale: header.bytes_of(scale) for scale in ("z", "s1", "s2", "s3")},
        "metadata": {},
        "picture_crc": None,
        "complete": True,
    }
    assert sum(facts["streams"].values()) + header.header_bytes + 2 + 2 + 2 + 4 + 4 == len(coded)


def test_info_lists_profile_and_metadata_with_their_sizes_in_the_file(photo: Path) -> None:
    inside("encode", photo)
    chunks = container.parse_header(photo.with_suffix(".hpcm").read_bytes()).chunks
    n_icc = next(chunk.length for chunk in chunks if chunk.name == "ICC")
    with Image.open(photo) as image:
        assert 0 < n_icc < len(image.info["icc_profile"])  # deflated
    facts = json.loads(inside("info", photo.with_suffix(".hpcm"), "--json").stdout)
    assert facts["color"] == f"ICC ({n_icc} bytes)"
    assert list(facts["metadata"]) == ["ICC", "EXIF", "XMP"]
    assert facts["metadata"]["ICC"] == n_icc
    assert facts["metadata"]["XMP"] == len(b"<x:xmpmeta/>")


def test_info_text_is_an_aligned_list(file: Path, coded: bytes) -> None:
    lines = inside("info", file).stdout.splitlines()
    assert lines[0] == str(file)
    assert all(re.match(r" \* .{10} : \S", line) for line in lines[1:])
    assert " * Resolution : 96x64" in lines
    assert f" * Size       : {len(coded)} bytes, {8 * len(coded) / (96 * 64):.3f} bpp" in lines
    assert inside("info", "-", data=coded).stdout.splitlines()[1:] == lines[1:]


def test_info_says_when_a_file_has_been_cut(file: Path, coded: bytes) -> None:
    file.write_bytes(coded[:-5])
    assert json.loads(inside("info", file, "--json").stdout)["complete"] is False
    assert f"{len(coded)} bytes when whole" in inside("info", file).stdout


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_is_written_for_a_shell(shell: str) -> None:
    code = "import sys; sys.argv = ['hpcm']; " + CALL_MAIN
    environment = {**os.environ, "_HPCM_COMPLETE": f"{shell}_source"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, env=environment)
    assert "_hpcm_completion" in done.stdout
    assert f"{shell}_complete" in done.stdout


def test_descriptions_for_desktops_name_the_first_bytes_of_a_file(file: Path) -> None:
    folder = Path(__file__).parent.parent / "docs" / "desktop"
    xml = ElementTree.parse(folder / "hpcm.xml").getroot()
    values = [match.get("value", "") for match in xml.iter() if match.tag.endswith("match")]
    assert [value.encode().decode("unicode_escape").encode("latin-1") for value in values] == [container.MAGIC]
    assert shutil.which("file") is None or (
        subprocess.run(
            ["file", "-b", "-m", folder / "hpcm.magic", file], capture_output=True, text=True, check=True
        ).stdout
        == f"hpcm image, version {container.parse_header(file.read_bytes()).version}\n"
    )


def test_info_of_several_inputs_prints_each_and_json_a_line_for_each(file: Path, coded: bytes) -> None:
    second, missing = file.with_name("second.hpcm"), file.with_name("missing.hpcm")
    second.write_bytes(coded[:-30])
    shown = inside("info", file, missing, second)
    assert shown.exit_code == 7
    alone = [inside("info", path).stdout for path in (file, second)]
    assert shown.stdout == "".join(alone)
    assert shown.stderr.splitlines()[-1] == "hpcm: 3 inputs: 2 done, 1 failed"
    lines = inside("info", file, second, "--json").stdout.splitlines()
    assert [json.loads(line)["complete"] for line in lines] == [True, False]
    assert json.loads(lines[0]) == json.loads(inside("info", file, "--json").stdout)


def test_info_of_a_model_that_is_not_installed_names_its_id(file: Path, coded: bytes) -> None:
    file.write_bytes(tiny.with_model_id(coded, b"\x01\x23\x45\x67"))
    facts = json.loads(inside("info", file, "--json").stdout)
    assert (facts["model"], facts["model_id"]) == (None, "01234567")
    assert "not here (01234567); looked in the package, " in inside("info", file).stdout


# --------------------------------------------------------------------------------------------------- what gets imported


def modules_after(*args: object) -> set[str]:
    """Names of the modules that are loaded once the command line `args` is done."""
    code = f"import os, sys\nfrom hpcmcodec.cli import cli\ntry: cli()\nfinally: {TO_SECOND_STREAM}"
    result = subprocess.run(
        [sys.executable, "-c", code, *map(str, args), "--quiet"],
        capture_output=True,
        check=True,
        stdin=subprocess.DEVNULL,
    )
    return set(result.stderr.decode().split())


def test_info_loads_neither_torch_nor_numpy_nor_onnxruntime(file: Path) -> None:
    loaded = modules_after("info", file)
    assert "hpcmcodec.container" in loaded
    assert not loaded & {"torch", "numpy", "onnxruntime", "PIL", "rich"}


def test_a_command_loads_no_other_commands_module(file: Path) -> None:
    commands = {f"hpcmcodec.cli.{name}" for name in COMMANDS}
    assert modules_after("info", file) & commands == {"hpcmcodec.cli.info"}
    assert commands <= modules_after("--help")


def test_coding_on_a_cpu_loads_no_torch(photo: Path) -> None:
    for args in (("encode", photo), ("decode", photo.with_suffix(".hpcm"))):
        loaded = modules_after(*args)
        assert "numpy" in loaded
        assert ("onnxruntime" in loaded) == (args[0] == "encode"), "only the encoder's transforms are graphs"
        assert not loaded & {"torch", "torchvision", "compressai", "rich"}


def test_importing_the_package_loads_nothing_heavy_and_offers_its_names() -> None:
    code = f"import os, sys, hpcmcodec; print(*dir(hpcmcodec)); {TO_SECOND_STREAM}"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    assert not set(result.stderr.decode().split()) & {"torch", "numpy", "onnxruntime", "PIL", "click"}
    assert {"decode", "encode", "errors", "load_model", "__version__"} <= set(result.stdout.decode().split())
    with pytest.raises(AttributeError, match="no attribute 'compress'"):
        hpcmcodec.compress  # noqa: B018
    assert issubclass(hpcmcodec.errors.InputError, ValueError)


# --------------------------------------------------------------------------------------------------- usage: exit code 2


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ([], "Missing command"),
        (["transcode"], "transcode"),
        (["encode"], "INPUT"),
        (["encode", "a.png", "b.hpcm"], "b.hpcm"),
        (["encode", "a.png", "--fast"], "--fast"),
        (["encode", "a.png", "-q", "101"], "101"),
        (["encode", "a.png", "-q", "-1"], "-1"),
        (["encode", "a.png", "-q", "nan"], "not a number"),
        (["encode", "a.png", "--target-bpp", "inf"], "not a number"),
        (["encode", "a.png", "--target-psnr", "nan"], "not a number"),
        (["encode", "a.png", "-q", "high"], "high"),
        (["encode", "a.png", "-e", "10"], "10"),
        (["encode", "a.png", "--effort", "-1"], "-1"),
        (["encode", "a.png", "--device", "tpu"], "tpu"),
        (["encode", "a.png", "--max-pixels", "0"], "--max-pixels"),
        (["decode", "a.hpcm", "--scale", "s4"], "s4"),
        (["encode", "-dash.png"], "./-"),
        (["encode", "a.png", "-q", "abc"], "'abc' is not a number from 0 to 100"),
        (["decode", "a.hpcm", "-o", "a.gif"], "png, jpg, webp, avif, tif, ppm, bmp"),
        (["decode", "a.hpcm", "-o", "a.hpcm"], "png, jpg, webp, avif, tif, ppm, bmp"),
        (["decode", "a.hpcm", "-o", "a.jpg", "--format", "png"], "--format says png"),
        (["decode", "a.hpcm", "-o", "a.jpg", "--depth", "16"], "JPEG is written with 8 bits"),
        (["decode", "a.hpcm", "--depth", "12"], "12"),
        (["decode", "a.hpcm", "--region", "1,2,3"], "'1,2,3' is not X,Y,W,H"),
        (["decode", "a.hpcm", "--region", "-1,2,3,4"], "'-1,2,3,4' is not X,Y,W,H"),
        (["encode", "a.png", "-"], "on its own"),
        (["decode", "a.hpcm", "b.png"], "-o"),
        (["edit", "a.hpcm"], "nothing to change"),
        (["edit", "a.hpcm", "--strip", "gps", "--keep", "icc"], "exclude each other"),
        (["edit", "a.hpcm", "--strip", "iptc"], "'iptc' is not one of all, gps, exif, xmp, icc, text"),
        (["info"], "INPUT"),
        (["info", "a.hpcm", "b.hpcm", "--bits-map", "map.png"], "one input"),
    ],
)
def test_wrong_usage_is_one_line_and_exit_code_2(args: list[str], words: str) -> None:
    assert_refused(inside(*args), 2, words, "--help")


@pytest.mark.parametrize("command", [[], ["encode"], ["decode"], ["info"]])
def test_help_documents_every_exit_code_within_80_columns(command: list[str]) -> None:
    result = inside(*command, "--help")
    assert result.exit_code == 0
    for code, meaning in EXIT_CODES.items():
        assert re.search(rf"^ +{code}  {re.escape(meaning)}$", result.stdout, re.MULTILINE)
    assert max(map(len, result.stdout.splitlines())) <= 80


@pytest.mark.parametrize("args", [["--version"], ["encode", "--version"], ["info", "--version"]])
def test_version_is_printed_everywhere(args: list[str]) -> None:
    assert inside(*args).stdout == f"hpcm {hpcmcodec.__version__}\n"


# -------------------------------------------------------------------------------------------- inputs: exit codes 3 to 5


@pytest.mark.parametrize("command", ["encode", "decode", "info", "edit --strip all", "verify"])
def test_input_that_is_missing_or_a_folder_or_garbage_is_exit_code_3(command: str, tmp_path: Path) -> None:
    garbage, output = tmp_path / "garbage", tmp_path / "out.png"
    target = [] if command in ("info", "verify") else ["-o", output]
    assert_refused(inside(*command.split(), tmp_path / "missing.png", *target), 3, "missing.png: No such file")
    assert_refused(inside(*command.split(), tmp_path, *target), 3, "is a directory")
    for data in (b"", b"\0", b"This is a text.\n" * 100, bytes(1000)):
        garbage.write_bytes(data)
        assert_refused(inside(*command.split(), garbage, *target), 3, str(garbage))
        assert_refused(inside(*command.split(), "-", *target, data=data), 3, "standard input")
    assert contents(tmp_path) == {"garbage"}


def test_damaged_photograph_is_exit_code_3_and_one_line(photo: Path) -> None:
    broken = photo.with_name("broken.jpg")
    broken.write_bytes(photo.read_bytes()[:-500])
    assert_refused(hpcm("encode", broken, "-o", photo.with_name("out.hpcm")), 3, str(broken))
    assert contents(photo.parent) == {"photo.jpg", "broken.jpg"}


def test_what_libtiff_says_by_itself_about_damage_is_not_shown(photo: Path) -> None:
    broken = photo.with_suffix(".tif")
    with Image.open(photo) as image:
        image.save(broken, compression="tiff_lzw")
    data = bytearray(broken.read_bytes())
    data[100:150] = b"\xff" * 50  # codes that are not in the LZW table yet
    broken.write_bytes(data)
    assert_refused(hpcm("encode", broken), 3, str(broken))
    assert b"not yet in table" in hpcm("encode", broken, "--debug").stderr


def test_truncated_file_is_refused_without_output(coded: bytes, tmp_path: Path) -> None:
    cut, output = tmp_path / "cut.hpcm", tmp_path / "out.png"
    for kept in (0, 1, 8, 30, 70, len(coded) // 2, len(coded) - 1):
        cut.write_bytes(coded[:kept])
        assert_refused(inside("decode", cut, "-o", output), 3, str(cut))
    cut.write_bytes(coded + b"\0")
    assert_refused(hpcm("decode", cut, "-o", output), 3, str(cut))
    assert contents(tmp_path) == {"cut.hpcm"}


def test_flipped_byte_is_refused_without_output(coded: bytes, tmp_path: Path) -> None:
    damaged, output = tmp_path / "damaged.hpcm", tmp_path / "out.png"
    for position in [*range(0, 80, 7), len(coded) // 2, len(coded) - 1]:
        data = bytearray(coded)
        data[position] ^= 0x10
        damaged.write_bytes(data)
        result = inside("decode", damaged, "-o", output)
        assert result.exit_code in (3, 4, 5)
        assert_refused(result, result.exit_code, str(damaged))
    assert_refused(hpcm("decode", damaged, "-o", output), 5, str(damaged))
    assert contents(tmp_path) == {"damaged.hpcm"}


def test_file_of_another_model_is_exit_code_4_and_names_it(file: Path, coded: bytes) -> None:
    file.write_bytes(tiny.with_model_id(coded, b"\x01\x23\x45\x67"))
    assert_refused(inside("decode", file), 4, "01234567")
    assert contents(file.parent) == {"photo.hpcm"}


def test_animation_is_exit_code_4(photo: Path, tmp_path: Path) -> None:
    film = tmp_path / "film.webp"
    with Image.open(photo) as image:
        image.convert("RGB").save(film, save_all=True, append_images=[image.rotate(180).convert("RGB")])
    assert_refused(inside("encode", film), 4, str(film), "animation")


def test_more_pixels_than_the_limit_is_exit_code_4_wherever_the_option_stands(photo: Path, file: Path) -> None:
    for command, source in (("encode", photo), ("decode", file), ("info", file)):
        output = [] if command == "info" else ["-o", "-"]
        assert_refused(inside("--max-pixels", "6143", command, source, *output), 4, "6143")
        assert_refused(inside(command, source, *output, "--max-pixels", "6143"), 4, "6143")
        assert inside(command, source, *output, "--max-pixels", "6144").exit_code == 0


def test_cuda_without_a_gpu_is_exit_code_4_and_one_line(photo: Path, file: Path) -> None:
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    assert_refused(
        hpcm("encode", photo, "-o", photo.with_name("x.hpcm"), "--device", "cuda", env=environment), 4, "cuda"
    )
    assert_refused(hpcm("decode", file, "--device", "cuda", env=environment), 4, "cuda")
    assert contents(photo.parent) == {"photo.jpg", "photo.hpcm"}


def test_file_name_cannot_write_control_codes_to_the_terminal(tmp_path: Path) -> None:
    result = inside("info", tmp_path / "red\x1b[31m\nhpcm: done.hpcm")
    assert_refused(result, 3, "red\\x1b[31m")
    assert "\x1b" not in result.stderr


# -------------------------------------------------------------------------------------------------- output: exit code 6


@pytest.fixture
def no_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes coding fail the test: what is refused is refused before."""
    from hpcmcodec import codec

    def called(*args: object, **kwargs: object) -> None:
        raise AssertionError("the work was begun")

    monkeypatch.setattr(codec, "encode", called)
    monkeypatch.setattr(codec, "decode", called)


@pytest.mark.usefixtures("no_work")
@pytest.mark.parametrize(("command", "suffix"), [("encode", ".hpcm"), ("decode", ".png")])
def test_output_that_cannot_be_is_exit_code_6_before_the_work(
    command: str, suffix: str, photo: Path, tmp_path: Path
) -> None:
    there = tmp_path / f"there{suffix}"
    there.write_bytes(b"precious")
    assert_refused(inside(command, photo, "-o", there), 6, str(there), "-f")
    assert_refused(inside(command, photo, "-o", tmp_path / "none" / f"a{suffix}"), 6, "no directory")
    folder = tmp_path / f"folder{suffix}"
    folder.mkdir()
    for name in (folder, f"{folder}/", f"{folder}/."):
        assert_refused(inside(command, photo, "-o", name, "-f"), 6, "is a directory; name the file to write")
    for name in (f"{tmp_path}/sub/", f"{tmp_path}/sub/.", f"{tmp_path}/sub{suffix}/"):
        assert_refused(inside(command, photo, "-o", name, "-f"), 6, "no such directory")
    assert_refused(inside(command, photo, "-o", ""), 6, "no name")
    assert_refused(inside(command, there, "-o", there, "-f"), 6, "the input itself")
    assert_refused(inside(command, there, "-f"), 6, "the input itself; name another output with -o")
    (tmp_path / f"link{suffix}").symlink_to(there)
    assert_refused(inside(command, there, "-o", tmp_path / f"link{suffix}", "-f"), 6, "the input itself")
    (tmp_path / f"loop{suffix}").symlink_to(tmp_path / f"loop{suffix}")
    assert_refused(inside(command, photo, "-o", tmp_path / f"loop{suffix}"), 6, "loop")
    assert there.read_bytes() == b"precious"


def test_map_of_bits_is_not_written_under_the_name_of_a_directory(file: Path, tmp_path: Path) -> None:
    assert_refused(inside("info", file, "--bits-map", f"{tmp_path}/map.png/"), 6, "no such directory")
    assert contents(tmp_path) == {"photo.hpcm"}


@pytest.mark.skipif(not Path("/dev/fd").exists(), reason="needs /dev/fd")
@pytest.mark.parametrize("name", ["/dev/stdout", "/dev/fd/1", "/proc/self/fd/1"])
def test_name_of_standard_output_writes_to_it_whatever_it_is(name: str, file: Path, tmp_path: Path) -> None:
    if not Path(name).exists():
        pytest.skip(f"no {name} here")
    expected = hpcm("decode", file, "-o", "-").stdout
    result = hpcm("decode", file, "-o", name, "--quiet")
    assert (result.returncode, result.stdout, result.stderr) == (0, expected, b"")
    with (tmp_path / "redirected").open("wb") as redirected:
        redirected.write(b"before")
        redirected.flush()
        subprocess.run([*MODULE, "decode", str(file), "-o", name, "--quiet"], stdout=redirected, check=True)
    assert (tmp_path / "redirected").read_bytes() == b"before" + expected
    assert contents(tmp_path) == {"photo.hpcm", "redirected"}


@pytest.mark.skipif(not Path("/dev/fd").exists(), reason="needs /dev/fd")
def test_other_descriptors_are_outputs_too_if_they_can_be_written(file: Path) -> None:
    expected = hpcm("decode", file, "-o", "-").stdout
    assert hpcm("decode", file, "-o", "/dev/stderr", "--quiet").stderr == expected
    ours, theirs = os.pipe()
    line = [*MODULE, "decode", str(file), "--quiet", "-o", f"/dev/fd/{theirs}"]
    with subprocess.Popen(line, pass_fds=[theirs]) as process:
        os.close(theirs)
        with os.fdopen(ours, "rb") as stream:
            assert stream.read() == expected
    assert process.returncode == 0
    assert_refused(hpcm("decode", file, "-o", "/dev/fd/0"), 6, "/dev/fd/0")
    assert_refused(hpcm("decode", file, "-o", "/dev/fd/99"), 6, "/dev/fd/99")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_named_pipes_are_inputs_and_outputs(photo: Path, tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    os.mkfifo(first)
    os.mkfifo(second)
    with (
        subprocess.Popen([*MODULE, "encode", str(photo), "-o", str(first)], stderr=subprocess.PIPE) as encoding,
        subprocess.Popen([*MODULE, "decode", str(first), "-o", str(second)], stderr=subprocess.PIPE) as decoding,
    ):
        assert pixels(second.read_bytes()).shape == (96, 64, 3)
    assert (encoding.returncode, decoding.returncode) == (0, 0)
    assert first.is_fifo()
    assert second.is_fifo()


@contextlib.contextmanager
def unprivileged() -> Iterator[None]:
    """The process is nobody's, if it is root's, who may read and write everything."""
    if not hasattr(os, "setresuid"):
        pytest.skip("needs user ids")
    if os.geteuid() != 0:
        yield
        return
    os.setresuid(65534, 65534, 0)
    try:
        yield
    finally:
        os.setresuid(0, 0, 0)


@pytest.fixture
def public(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The current folder is one that everybody may enter and write to; those of pytest are their owner's."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o777)
        monkeypatch.chdir(folder)
        yield
        monkeypatch.undo()


@pytest.mark.usefixtures("public")
def test_input_without_read_permission_is_exit_code_3(photo: Path, coded: bytes) -> None:
    # What nobody could import, whoever that is.
    import mmap  # noqa: F401

    from hpcmcodec.evaluation import report, run  # noqa: F401

    pytest.importorskip("matplotlib")
    assert inside("encode", photo).exit_code == 0
    for name, data in (("secret.hpcm", coded), ("secret.jpg", photo.read_bytes()), ("secret.json", b"{}")):
        Path(name).write_bytes(data)
        Path(name).chmod(0)
    Path("open.hpcm").write_bytes(coded)
    Path("closed").mkdir(mode=0)
    Path("photo.jpg").write_bytes(photo.read_bytes())
    with unprivileged():
        for args in (
            ("encode", "secret.jpg", "-o", "a"),
            ("decode", "secret.hpcm", "-o", "a"),
            ("info", "secret.hpcm"),
            ("compare", "secret.jpg", "open.hpcm", "-o", "a"),
            ("compare", "photo.jpg", "secret.hpcm", "-o", "a"),
            ("eval", "secret.jpg", "-o", "results", "--codecs", "jpeg"),
            ("eval", "closed", "-o", "results", "--codecs", "jpeg"),
            ("eval", "photo.jpg", "--anchor", "secret.json", "-o", "results", "--codecs", "jpeg"),
        ):
            assert_refused(inside(*args), 3, "Permission denied")
        assert inside("encode", "photo.jpg", "-o", "secret.hpcm", "-f").exit_code == 0  # need not be read
    assert not Path("a").exists()


def test_missing_image_is_exit_code_3_in_an_evaluation_too(tmp_path: Path) -> None:
    assert_refused(inside("eval", tmp_path / "missing.png", "-o", tmp_path / "results"), 3, "missing.png: No such file")


@pytest.mark.skipif(not Path("/proc/self/mem").exists(), reason="needs /proc")
@pytest.mark.parametrize("command", ["encode", "decode", "info"])
def test_input_that_fails_while_it_is_read_is_exit_code_3(command: str, tmp_path: Path) -> None:
    output = [] if command == "info" else ["-o", tmp_path / "a"]
    assert_refused(hpcm(command, "/proc/self/mem", *output), 3, "/proc/self/mem")


@pytest.mark.usefixtures("no_work")
@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write everywhere")
def test_folder_without_write_permission_is_exit_code_6_before_the_work(photo: Path, tmp_path: Path) -> None:
    folder = tmp_path / "read only"
    folder.mkdir(mode=0o555)
    assert_refused(inside("encode", photo, "-o", folder / "a.hpcm"), 6, "cannot be written")


def test_derived_name_is_protected_too_and_force_overwrites(photo: Path) -> None:
    target = photo.with_suffix(".hpcm")
    target.write_bytes(b"precious")
    target.chmod(0o640)
    assert_refused(hpcm("encode", photo), 6, str(target))
    assert target.read_bytes() == b"precious"
    assert hpcm("encode", photo, "-f").returncode == 0
    assert container.parse_header(target.read_bytes()).width == 64
    assert stat.S_IMODE(target.stat().st_mode) == 0o640
    assert contents(photo.parent) == {"photo.jpg", "photo.hpcm"}


def test_new_output_has_the_permissions_of_any_new_file(photo: Path) -> None:
    inside("encode", photo)
    other = photo.with_name("other")
    other.touch()
    assert photo.with_suffix(".hpcm").stat().st_mode == other.stat().st_mode


def test_link_as_output_stays_a_link(photo: Path, tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    link = tmp_path / "link.hpcm"
    link.symlink_to(tmp_path / "store" / "real.hpcm")
    assert inside("encode", photo, "-o", link).exit_code == 0
    assert link.is_symlink()
    assert contents(tmp_path / "store") == {"real.hpcm"}


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_device_as_output_is_written_to_and_stays(file: Path) -> None:
    assert inside("decode", file, "-o", os.devnull).exit_code == 0
    assert Path(os.devnull).is_char_device()
    assert_refused(inside("decode", file, "-o", "/dev/full"), 6, "No space left")
    with Path("/dev/full").open("wb") as full:
        result = subprocess.run([*MODULE, "info", str(file)], stdout=full, stderr=subprocess.PIPE, check=False)
    assert result.returncode == 6
    assert result.stderr == b"hpcm: error: standard output: No space left on device\n"


def test_failure_while_writing_leaves_nothing(photo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    assert_refused(inside("encode", photo), 6, "No space left")
    assert contents(photo.parent) == {"photo.jpg"}


def test_output_that_appears_during_the_work_is_not_overwritten(
    photo: Path, coded: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    from hpcmcodec import codec

    target = photo.with_suffix(".hpcm")

    def encode(*args: object, **kwargs: object) -> bytes:
        target.write_bytes(b"precious")
        return coded

    monkeypatch.setattr(codec, "encode", encode)
    assert_refused(inside("encode", photo), 6, "exists")
    assert target.read_bytes() == b"precious"
    assert contents(photo.parent) == {"photo.jpg", "photo.hpcm"}


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_reader_that_goes_away_is_met_with_silence(unbuffered: str, photos: dict[str, Path], tmp_path: Path) -> None:
    small = tmp_path / "cat.hpcm"
    hpcm("encode", photos["chelsea"], "-o", small)
    process = subprocess.Popen(
        [*MODULE, "decode", str(small), "-o", "-"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONUNBUFFERED": unbuffered},
    )
    assert process.stdout is not None
    assert process.stderr is not None
    assert process.stdout.read(1) == b"\x89"
    process.stdout.close()  # the PNG is larger than what a pipe buffers
    assert process.stderr.read() == b""
    process.stderr.close()
    assert process.wait() == 6


@pytest.mark.skipif(os.name != "posix", reason="needs a POSIX shell")
def test_closed_streams_are_errors_in_one_line(file: Path, tmp_path: Path) -> None:
    def shell(redirection: str, *args: str) -> "subprocess.CompletedProcess[bytes]":
        line = ["sh", "-c", f'"$@" {redirection}', "sh", *MODULE, *args]
        return subprocess.run(line, capture_output=True, check=False)

    assert_refused(shell("<&-", "decode", "-", "-o", str(tmp_path / "a.png")), 3, "standard input")
    assert_refused(shell(">&-", "decode", str(file), "-o", "-"), 6, "standard output")
    silent = shell("2>&-", "decode", str(file), "-o", str(tmp_path / "b.png"))
    assert silent.returncode == 0
    assert contents(tmp_path) == {"photo.hpcm", "b.png"}


def test_binary_output_does_not_go_to_a_terminal_unless_forced(coded: bytes) -> None:
    pty = pytest.importorskip("pty", reason="needs a POSIX terminal")
    ours, theirs = pty.openpty()
    result = subprocess.run([*MODULE, "decode", "-"], input=coded, stdout=theirs, stderr=subprocess.PIPE, check=False)
    os.close(theirs)
    os.close(ours)
    assert result.returncode == 2
    assert b"terminal" in result.stderr


# ---------------------------------------------------------------------------------------- interruption and bugs: 130, 1


# Real work, whose first report of progress sends the signal.
DURING_THE_WORK = """
import os, hpcmcodec.cli, hpcmcodec.codec as codec
def interrupted(function):
    def call(*args, progress=None, **options):
        return function(*args, progress=lambda fraction: os.kill(os.getpid(), {signal}), **options)
    return call
codec.encode, codec.decode_picture = interrupted(codec.encode), interrupted(codec.decode_picture)
"""
BEFORE_THE_RENAME = """
import os
os.fsync = lambda descriptor: os.kill(os.getpid(), {signal})
"""


@pytest.mark.skipif(os.name != "posix", reason="needs POSIX signals")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, getattr(signal, "SIGHUP", signal.SIGINT)])
@pytest.mark.parametrize("moment", [DURING_THE_WORK, BEFORE_THE_RENAME], ids=["during the work", "before the rename"])
def test_interrupted_run_leaves_nothing_and_is_exit_code_130(photo: Path, number: int, moment: str) -> None:
    code = moment.format(signal=int(number))
    encode = [sys.executable, "-c", code + CALL_MAIN, "encode", str(photo)]
    assert_refused(subprocess.run(encode, capture_output=True, check=False), 130, "interrupted")
    assert contents(photo.parent) == {"photo.jpg"}
    hpcm("encode", photo)
    decode = [sys.executable, "-c", code + CALL_MAIN, "decode", str(photo.with_suffix(".hpcm"))]
    assert_refused(subprocess.run(decode, capture_output=True, check=False), 130, "interrupted")
    assert contents(photo.parent) == {"photo.jpg", "photo.hpcm"}


@pytest.mark.skipif(os.name != "posix", reason="needs POSIX signals")
def test_interruption_while_waiting_for_input_is_exit_code_130(tmp_path: Path) -> None:
    code = "import os, threading, signal\n" + (
        "class Waiting:\n"
        "    def read(self, n_bytes):\n"
        "        os.kill(os.getpid(), signal.SIGINT)\n"
        "        threading.Event().wait()\n"
        "import sys; sys.stdin = type('Stdin', (), {'buffer': Waiting()})()\n"
    )
    command = [sys.executable, "-c", code + CALL_MAIN, "encode", "-", "-o", str(tmp_path / "a.hpcm")]
    assert_refused(subprocess.run(command, capture_output=True, check=False), 130, "interrupted")
    assert contents(tmp_path) == set()


@pytest.mark.parametrize(("error", "code", "words"), [(MemoryError(), 4, "memory"), (KeyError("oops"), 1, "--debug")])
def test_failure_of_another_kind_is_one_line_with_a_traceback_on_request(
    error: Exception, code: int, words: str, photo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from hpcmcodec import codec

    def fail(*args: object, **kwargs: object) -> None:
        raise error

    monkeypatch.setattr(codec, "encode", fail)
    assert_refused(inside("encode", photo), code, words)
    for args in (("--debug", "encode", photo), ("encode", photo, "--debug")):
        result = inside(*args)
        assert result.exit_code == code
        assert "Traceback" in result.stderr
        assert result.stderr.splitlines()[-1].startswith("hpcm: error: ")
    assert contents(photo.parent) == {"photo.jpg"}
