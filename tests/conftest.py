"""What all tests share: photographs, Kodak images where there are any, entropy coders, hypothesis without deadlines."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import settings
from PIL import Image

from hpcmcodec.errors import UnsupportedError
from hpcmcodec.evaluation import sample_photo
from hpcmcodec.native import build
from hpcmcodec.rans_coders import Coder
from tests import coders

# Programs that tests start inherit which signals are ignored, and what runs the tests, nohup say, may ignore some.
for _name in ("SIGINT", "SIGTERM", "SIGHUP"):
    _number = getattr(signal, _name, None)
    if _number is not None and signal.getsignal(_number) is signal.SIG_IGN:
        signal.signal(_number, signal.default_int_handler if _name == "SIGINT" else signal.SIG_DFL)

# A deadline would be a timed assertion: it fails on a busy machine. In CI the same examples are drawn every time.
settings.register_profile("hpcmcodec", deadline=None, derandomize="CI" in os.environ)
settings.load_profile("hpcmcodec")

# Background jobs of a shell start with SIGINT ignored, and so would every program that the tests interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("cuda"):
        torch = pytest.importorskip("torch")
        if not torch.cuda.is_available():
            pytest.skip("no CUDA device, or torch without CUDA")


@pytest.fixture(scope="session")
def kernel_library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The kernels compiled from the checkout's sources; built here where `make kernels` has not done it."""
    folder = build.source_folder()
    source, compiler = build.source_hash(folder), build.find_compiler()
    prebuilt = build.prebuilt(folder, source)
    if prebuilt:
        return prebuilt
    if compiler is None:
        pytest.skip("no C++ compiler")

    def make(target: Path) -> None:
        build.run_compiler(compiler, folder, source, target, build.TIMEOUT_SECONDS)

    return build.publish(tmp_path_factory.mktemp("kernels"), "kernels", ".so", make, 0)


@pytest.fixture(scope="session")
def all_coders(request: pytest.FixtureRequest) -> dict[str, Coder]:
    """The coders that are there, by name: plain Python always, C++ with a compiler, CompressAI's where installed."""
    found = {}
    for name in coders.NAMES:
        library = request.getfixturevalue("kernel_library") if name == "native C++" and build.find_compiler() else ""
        try:
            found[name] = coders.named(name, str(library))
        except (UnsupportedError, OSError):
            continue
    return found


@pytest.fixture(params=coders.NAMES, scope="module")
def coder(request: pytest.FixtureRequest, all_coders: dict[str, Coder]) -> Iterator[Coder]:
    """Each coder in turn, in use for all streams; once a module, as hypothesis wants it."""
    if request.param not in all_coders:
        pytest.skip(coders.missing(request.param))
    with coders.used(all_coders[request.param]):
        yield all_coders[request.param]


@pytest.fixture(scope="session")
def photos() -> dict[str, Path]:
    """Photographs in scikit-image's wheel, by name: RGB PNG, 600x400, 451x300, 512x512 and 741x500."""
    return {name: sample_photo(name) for name in ("coffee", "chelsea", "astronaut", "motorcycle_left")}


@pytest.fixture(scope="module")
def piece(photos: dict[str, Path]) -> np.ndarray:
    """96x64 pixels of a photograph."""
    with Image.open(photos["chelsea"]) as photo:
        return np.asarray(photo)[60:124, 100:196].copy()


@pytest.fixture(scope="session")
def kodak() -> list[Path]:
    """The Kodak images, in order, from the folder that HPCM_KODAK names."""
    folder = os.environ.get("HPCM_KODAK")
    if not folder:
        pytest.skip("HPCM_KODAK does not name a folder of the Kodak images")
    paths = sorted(Path(folder).glob("*.png"))
    if not paths:
        pytest.fail(f"HPCM_KODAK names {folder}, which has no PNG images")
    return paths
