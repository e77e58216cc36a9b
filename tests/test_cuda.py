"""The CUDA source: it compiles for GPUs, and its arithmetic, run on the processor, gives the bits of the reference."""

import ctypes
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hpcmcodec.numerics import NUMPY, ExactOps
from hpcmcodec.ops import build, selftest
from hpcmcodec.ops.biwkv import biwkv4_exact
from hpcmcodec.ops.compiled import _SIGNATURES, KernelOps, Kernels
from tests.test_kernels import TOKENS, wkv_inputs

SOURCE = build.source_folder() / "kernels.cu"
FLAGS = ["-std=c++17", "-O2", "-fmad=false", "--extended-lambda", "-Werror", "all-warnings"]


class OnStream(Kernels):
    """The interface of kernels.cu: a stream behind the arguments, and an error returned."""

    def __init__(self, library: ctypes.CDLL, stream: int = 0) -> None:
        self.library = library
        for name, arguments in _SIGNATURES.items():
            function = getattr(library, name)
            function.argtypes, function.restype = (*arguments, ctypes.c_void_p), ctypes.c_int
            setattr(self, name.removeprefix("hpcm_"), self._checked(function, stream))
        long, number = ctypes.c_int64, ctypes.c_int
        library.hpcm_wkv_scratch.argtypes, library.hpcm_wkv_scratch.restype = (long, long, number, number), long

    @staticmethod
    def _checked(function: Any, stream: int) -> Any:
        def call(*arguments: Any) -> None:
            error = function(*arguments, stream)
            assert error == 0, f"CUDA error {error}"

        return call


@pytest.fixture(scope="session")
def on_the_processor(tmp_path_factory: pytest.TempPathFactory) -> OnStream:
    """kernels.cu compiled by g++ behind a shim of CUDA's launches, which runs its threads one by one."""
    compiler = build.find_compiler()
    if compiler is None:
        pytest.skip("no C++ compiler")
    target = tmp_path_factory.mktemp("cuda") / "kernels.so"
    shim = Path(__file__).parent / "cuda_shim.h"
    flags = ["-std=c++17", "-O2", "-ffp-contract=off", "-shared", "-fPIC", "-Wall", "-Wextra", "-Werror"]
    subprocess.run(
        [*compiler.command, *flags, "-include", str(shim), "-x", "c++", str(SOURCE), "-o", str(target)], check=True
    )
    return OnStream(ctypes.CDLL(str(target)))


def test_the_source_compiles_for_gpus_and_fuses_no_multiply_with_an_add(tmp_path: Path) -> None:
    nvcc = shutil.which("nvcc")
    if nvcc is None:
        pytest.skip("no nvcc")
    targets = ["-gencode", "arch=compute_80,code=sm_80", "-gencode", "arch=compute_80,code=compute_80"]
    outputs = ["-shared", "-Xcompiler", "-fPIC", "-o", str(tmp_path / "k.so"), "--keep", "--keep-dir", str(tmp_path)]
    command = [nvcc, *FLAGS, *targets, *outputs, str(SOURCE)]
    done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    assert done.returncode == 0, done.stdout + done.stderr
    library = ctypes.CDLL(str(tmp_path / "k.so"))
    assert not {name for name in _SIGNATURES if not hasattr(library, name)}
    (path,) = tmp_path.glob("*.ptx")
    ptx = path.read_text()
    assert "mul.rn.f64" in ptx or "mul.f64" in ptx
    assert "div.rn.f64" in ptx
    assert "fma." not in ptx
    assert "approx" not in ptx


@pytest.mark.parametrize("channels", [(16, 9, 5), (128, 80, 320), (141, 33, 301)], ids=str)
@pytest.mark.parametrize("shape", [(1, 1, 1), (2, 7, 5)], ids=str)
def test_every_operation_gives_the_bits_of_the_reference(on_the_processor: OnStream, shape, channels) -> None:
    tensors = selftest.layers(*channels)
    reference, ops = ExactOps(NUMPY, tensors, selftest.GRIDS), KernelOps(on_the_processor, tensors, selftest.GRIDS)
    for extreme in (False, True):
        for name, case in selftest.cases(*shape, *channels, extreme=extreme).items():
            for expected, got in zip(
                selftest.integers(NUMPY, case(reference)), selftest.integers(NUMPY, case(ops)), strict=True
            ):
                np.testing.assert_array_equal(got, expected, err_msg=name)


def test_depthwise_kernels_of_five_taps_give_the_bits_of_the_reference(on_the_processor: OnStream) -> None:
    assert selftest.differences(lambda tensors: KernelOps(on_the_processor, tensors, selftest.GRIDS)) == []


@pytest.mark.parametrize("tokens", TOKENS)
def test_biwkv4_gives_the_bits_of_the_reference(on_the_processor: OnStream, tokens: int) -> None:
    e, v, powers, own = wkv_inputs(tokens, 5, 2, 8)
    expected = biwkv4_exact(NUMPY, e, v, powers, own)
    assert np.array_equal(on_the_processor.biwkv4(e, v, None, powers, own, 1.0), expected)


@pytest.mark.cuda
@pytest.mark.parametrize("tokens", TOKENS)
def test_biwkv4_on_a_gpu_gives_the_bits_of_the_reference(tmp_path: Path, tokens: int) -> None:
    torch = pytest.importorskip("torch")
    nvcc = shutil.which("nvcc")
    if nvcc is None:
        pytest.skip("no nvcc")
    major, minor = torch.cuda.get_device_capability()
    target = tmp_path / "k.so"
    flags = [*FLAGS, f"-arch=sm_{major}{minor}", "-shared", "-Xcompiler", "-fPIC"]
    subprocess.run([nvcc, *flags, str(SOURCE), "-o", str(target)], check=True)
    kernels = OnStream(ctypes.CDLL(str(target)), torch.cuda.current_stream().cuda_stream)
    e, v, powers, own = wkv_inputs(tokens, 13, 2, 8)
    there = [torch.from_numpy(a).cuda() for a in (e, v, powers, own)]
    batch, _, channels = v.shape
    length = len(powers) - 1
    ends = torch.empty(kernels.library.hpcm_wkv_scratch(batch, tokens, channels, length)).double().cuda()
    out = torch.empty_like(there[1])
    at = [t.data_ptr() for t in there]
    kernels.wkv(batch, tokens, channels, length, at[0], at[1], None, at[2], at[3], 1.0, ends.data_ptr(), out.data_ptr())
    assert np.array_equal(out.cpu().numpy(), biwkv4_exact(NUMPY, e, v, powers, own))
