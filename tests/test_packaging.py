"""What is distributed, and that it works away from the repository and beside the oldest versions allowed."""

import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
from PIL import Image

import hpcmcodec

ROOT = Path(__file__).parent.parent


def build(kind: str, folder: Path) -> Path:
    """Build a ``wheel`` or an ``sdist`` of the checkout with the hatchling of this environment."""
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", kind, "-d", str(folder)],
        cwd=ROOT,
        check=True,
        capture_output=True,
    )
    (path,) = folder.iterdir()
    return path


def run(python: str | Path, *arguments: object, cwd: Path, **environment: str) -> str:
    """Run ``python`` with arguments, in ``cwd``; its standard output."""
    command = [str(argument) for argument in (python, *arguments)]
    done = subprocess.run(
        command, cwd=cwd, env=os.environ | environment, capture_output=True, text=True, stdin=subprocess.DEVNULL
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build("wheel", tmp_path_factory.mktemp("wheel"))


def test_the_wheel_carries_the_weights_and_not_what_training_resumes_from(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    weights = {name.removeprefix("hpcmcodec/data/weights/") for name in names if "data/weights/" in name}
    graphs = {f"lite-0.{graph}.onnx" for graph in ("analysis", "synthesis", "gradient")}
    assert {"lite-0.safetensors", "MODEL_CARD.md", "SHA256SUMS"} | graphs <= weights
    assert not any("/" in name for name in weights), "weights/state is not distributed"
    assert "hpcmcodec/py.typed" in names
    kernels = {path.relative_to(ROOT / "kernels") for path in (ROOT / "kernels").glob("*") if path.is_file()}
    assert {f"hpcmcodec/data/kernels/{path}" for path in kernels} <= names


def test_the_wheel_holds_the_package_alone(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        tops = {name.split("/")[0] for name in archive.namelist()}
        metadata = archive.read(f"hpcmcodec-{hpcmcodec.__version__}.dist-info/METADATA").decode()
        scripts = archive.read(f"hpcmcodec-{hpcmcodec.__version__}.dist-info/entry_points.txt").decode()
    assert tops == {"hpcmcodec", f"hpcmcodec-{hpcmcodec.__version__}.dist-info"}
    assert f"\nVersion: {hpcmcodec.__version__}\n" in metadata
    assert "hpcm = hpcmcodec.cli:main" in scripts


def test_the_source_distribution_builds_the_same_wheel(wheel: Path, tmp_path: Path) -> None:
    with tarfile.open(build("sdist", tmp_path / "sdist")) as archive:
        archive.extractall(tmp_path, filter="data")
    (source,) = tmp_path.glob("hpcmcodec-*")
    run(sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", tmp_path / "wheel", cwd=source)
    (again,) = (tmp_path / "wheel").iterdir()
    with zipfile.ZipFile(wheel) as first, zipfile.ZipFile(again) as second:
        # A wheel from the checkout takes along what `make kernels` has built for this machine.
        assert [name for name in first.namelist() if not name.endswith(".so")] == second.namelist()


def test_the_wheel_works_away_from_the_repository(wheel: Path, photos: dict[str, Path], tmp_path: Path) -> None:
    installed = tmp_path / "installed"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(installed)
    environment = {"PYTHONPATH": str(installed)}
    code = "import hpcmcodec, hpcmcodec.weights as w; print(hpcmcodec.__file__, *w.packaged().values(), sep='\\n')"
    for path in run(sys.executable, "-c", code, cwd=tmp_path, **environment).splitlines():
        assert Path(path).is_relative_to(installed)
    hpcm = [sys.executable, "-m", "hpcmcodec"]
    run(*hpcm, "encode", photos["chelsea"], "-o", "cat.hpcm", cwd=tmp_path, **environment)
    run(*hpcm, "decode", "cat.hpcm", cwd=tmp_path, **environment)
    with Image.open(tmp_path / "cat.png") as image:
        assert image.size == (451, 300)


@pytest.mark.slow
def test_files_pass_between_the_oldest_and_the_pinned_versions(photos: dict[str, Path], tmp_path: Path) -> None:
    """Both ways: a file decodes only where the latent integers have the checksum that the encoder wrote."""
    oldest = os.environ.get("HPCM_OLDEST")
    if not oldest:
        pytest.skip("HPCM_OLDEST does not name the Python of an environment with the oldest versions allowed")
    code = "import numpy; print(numpy.__version__)"
    assert run(oldest, "-c", code, cwd=tmp_path).startswith("1.26.")
    assert not run(sys.executable, "-c", code, cwd=tmp_path).startswith("1.")
    for encoder, decoder in ((oldest, sys.executable), (sys.executable, oldest)):
        run(encoder, "-m", "hpcmcodec", "encode", photos["chelsea"], "-o", "cat.hpcm", "-f", cwd=tmp_path)
        run(decoder, "-m", "hpcmcodec", "decode", "cat.hpcm", "-f", cwd=tmp_path)
