"""One file among many: encode_file, decode_file and verify_file give a record, whatever the file is."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import hpcmcodec
from hpcmcodec import batch, container


@pytest.fixture(scope="module")
def coded(piece: np.ndarray) -> bytes:
    return hpcmcodec.encode(piece, 50)


@pytest.fixture
def photo(piece: np.ndarray, tmp_path: Path) -> Path:
    path = tmp_path / "photo.png"
    Image.fromarray(piece).save(path)
    return path


def test_record_says_what_was_made_and_can_be_pickled(photo: Path, coded: bytes) -> None:
    target = photo.with_suffix(".hpcm")
    record = batch.encode_file(photo, target, quality=50, checksum=True)
    assert target.read_bytes() == coded
    header = container.parse_header(coded)
    expected = {
        "input": str(photo),
        "output": str(target),
        "status": "done",
        "exit_code": 0,
        "error": "",
        "size": photo.stat().st_size,
        "mtime": photo.stat().st_mtime,
        "bytes": len(coded),
        "width": 96,
        "height": 64,
        "quality": 50.0,
        "effort": 0,
        "model_id": header.model_id.hex(),
        "settings": {"quality": 50},
        "notes": (),
    }
    assert expected.items() <= record.as_dict().items()
    assert len(record.sha256) == 64
    assert record.seconds > 0
    assert pickle.loads(pickle.dumps(record)) == record


def test_decoded_and_verified_files_have_records_too(photo: Path, coded: bytes, piece: np.ndarray) -> None:
    source, target = photo.with_name("x.hpcm"), photo.with_name("back.ppm")
    source.write_bytes(coded)
    record = batch.decode_file(source, target)
    assert (record.status, record.width, record.height, record.quality) == ("done", 96, 64, 50.0)
    assert np.array_equal(np.asarray(Image.open(target)), np.asarray(hpcmcodec.decode(coded)))
    assert batch.decode_file(source, photo.with_name("y.png"), side=48).width == 48
    for decode in (False, True):
        record = batch.verify_file(source, decode=decode)
        assert (record.status, record.output, record.bytes) == ("done", "", len(coded))


def bad_inputs(folder: Path, coded: bytes) -> dict[str, tuple[Path, int]]:
    """Files that cannot be coded or decoded, of all kinds, with their exit codes."""
    contents = {
        "empty": (b"", 3),
        "text": (b"no picture at all" * 9, 3),
        "cut.hpcm": (coded[:-5], 3),
        "flipped.hpcm": (coded[:-9] + bytes([coded[-9] ^ 1]) + coded[-8:], 5),
        "other.hpcm": (b"\x8bHPC" + bytes(60), 4),
    }
    found = {name: (folder / name, code) for name, (_, code) in contents.items()}
    for name, (data, _) in contents.items():
        (folder / name).write_bytes(data)
    return {**found, "missing": (folder / "missing", 3), "folder": (folder, 3)}


def test_whatever_is_wrong_with_a_file_is_in_its_record(tmp_path: Path, coded: bytes, photo: Path) -> None:
    for name, (path, code) in bad_inputs(tmp_path, coded).items():
        encoded = batch.encode_file(path, tmp_path / "out.hpcm")
        assert encoded.status == "failed"
        assert encoded.exit_code in (3, 4), name
        for record in (batch.decode_file(path, tmp_path / "out.png"), batch.verify_file(path)):
            assert (record.status, record.exit_code) == ("failed", code), (name, record.error)
            assert record.error.startswith(f"{path}: ")
            assert "\n" not in record.error
    assert not (tmp_path / "out.hpcm").exists()
    assert not (tmp_path / "out.png").exists()
    taken = tmp_path / "taken.hpcm"
    taken.write_bytes(b"mine")
    assert batch.encode_file(photo, taken).exit_code == 6
    assert taken.read_bytes() == b"mine"
    assert batch.encode_file(photo, taken, overwrite=True).status == "done"


def test_an_error_of_the_program_is_in_the_record_too(photo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object, **options: object) -> bytes:
        raise KeyError("what")

    monkeypatch.setattr("hpcmcodec.codec.encode", fail)
    record = batch.encode_file(photo, photo.with_suffix(".hpcm"))
    assert (record.status, record.exit_code) == ("failed", 1)
    assert "KeyError: 'what'" in record.error


def test_settings_that_there_are_not_are_a_mistake_of_the_caller(photo: Path) -> None:
    with pytest.raises(TypeError, match="there is no setting qualty"):
        batch.encode_file(photo, photo.with_suffix(".hpcm"), qualty=50)  # type: ignore[call-arg]


def test_output_no_smaller_than_its_input_is_not_written_on_request(photo: Path, coded: bytes) -> None:
    small, target = photo.with_name("small.webp"), photo.with_suffix(".hpcm")
    Image.new("RGB", (96, 64), (90, 120, 60)).save(small)
    record = batch.encode_file(small, target, quality=100, smaller_or_skip=True)
    assert (record.status, record.exit_code, target.exists()) == ("skipped", 0, False)
    assert record.bytes >= record.size
    assert batch.encode_file(photo, target, smaller_or_skip=True).status == "done"


def test_what_is_peculiar_about_an_output_is_in_the_notes(photo: Path, capfd: pytest.CaptureFixture[str]) -> None:
    one, other = photo.with_name("one"), photo.with_name("other")
    for suffix, work, source in ((".hpcm", batch.encode_file, photo), (".png", batch.decode_file, None)):
        target = one.with_suffix(suffix)
        target.write_bytes(b"mine")
        other.with_suffix(suffix).hardlink_to(target)
        record = work(source or one.with_suffix(".hpcm"), target, overwrite=True)
        assert record.notes == ("it has 2 names (hard links): all of them show the new contents",)
        assert other.with_suffix(suffix).read_bytes() == target.read_bytes() != b"mine"
    assert capfd.readouterr() == ("", "")


def test_times_of_the_input_are_given_to_the_output_on_request(photo: Path) -> None:
    os.utime(photo, ns=(10**18 + 7, 10**18 + 123_456_789))
    target = photo.with_suffix(".hpcm")
    batch.encode_file(photo, target, preserve_times=True)
    assert target.stat().st_mtime_ns == 10**18 + 123_456_789


def test_importing_it_loads_nothing_heavy_and_coding_loads_no_torch(photo: Path) -> None:
    program = (
        "import sys; from hpcmcodec import batch\n"
        "assert not {'numpy', 'PIL', 'onnxruntime', 'rich'} & set(sys.modules)\n"
        f"assert batch.encode_file({str(photo)!r}, {str(photo) + '.hpcm'!r}).status == 'done'\n"
        "assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
