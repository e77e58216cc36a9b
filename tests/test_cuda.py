"""The CUDA kernels: they compile, and run on the processor, through the same launches, they give the reference's bits.
What only a GPU can show is marked `cuda`.
"""

from __future__ import annotations

import ctypes
import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

import numpy as np
import pytest
import torch

from hpcmcodec import weights
from hpcmcodec.engines.torch import TorchEngine
from hpcmcodec.errors import UnsupportedError
from hpcmcodec.exact.biwkv import biwkv4_exact
from hpcmcodec.exact.namespaces import NUMPY, TorchNamespace
from hpcmcodec.exact.reference import ExactOps
from hpcmcodec.model.coder import LatentCoder
from hpcmcodec.model.synthesis import synthesise
from hpcmcodec.native import abi, build, cuda, doctor, selftest, torch_ops
from hpcmcodec.native.compiled import KernelOps
from hpcmcodec.quality import Quality
from tests import members, tiny
from tests.test_family import mini
from tests.test_kernels import TOKENS, wkv_inputs
from tools.hashes import pixel_hashes

FOLDER = build.source_folder()
KERNELS = set(re.findall(r"^HPCM_KERNEL\((\w+)", (FOLDER / "kernels.cu").read_text(), re.MULTILINE))


# --- compiling --------------------------------------------------------------------------------------------------------


@pytest.fixture(params=["nvcc", "nvrtc"])
def compiler(request: pytest.FixtureRequest) -> cuda.Compiler:
    found = getattr(cuda, request.param)()
    if found is None:
        pytest.skip(f"no {request.param}")
    return found


def test_the_source_compiles_for_gpus_and_fuses_no_multiply_with_an_add(
    compiler: cuda.Compiler, tmp_path: Path
) -> None:
    compiler.make(cuda.target(1000, compiler.architectures()), FOLDER, tmp_path / "k.ptx")
    ptx = (tmp_path / "k.ptx").read_text().rstrip("\0")
    assert set(re.findall(r"\.entry (\w+)\(", ptx)) == KERNELS
    assert "mul.rn.f64" in ptx or "mul.f64" in ptx
    assert "div.rn.f64" in ptx
    assert "fma." not in ptx
    assert "approx" not in ptx


def test_the_source_compiles_to_machine_code(compiler: cuda.Compiler, tmp_path: Path) -> None:
    known = compiler.architectures()
    compiler.make(cuda.target(known[0], known), FOLDER, tmp_path / "k.cubin")
    image = (tmp_path / "k.cubin").read_bytes()
    assert image.startswith(b"\x7fELF")
    assert all(name.encode() in image for name in KERNELS)


def test_a_source_that_does_not_compile_ends_in_one_line(compiler: cuda.Compiler, tmp_path: Path) -> None:
    for name in cuda.SOURCES:
        (tmp_path / name).write_text("this is no C++\n")
    with pytest.raises(build.BuildError, match=r"failed.*error") as error:
        compiler.make(cuda.target(1000, compiler.architectures()), tmp_path, tmp_path / "k.ptx")
    assert "\n" not in str(error.value)


def test_a_compiler_makes_code_for_the_device_where_it_knows_it_and_ptx_for_newer_ones() -> None:
    known = [75, 80, 90, 120]
    for capability, expected in ((80, "sm_80"), (120, "sm_120"), (86, "compute_80"), (130, "compute_120")):
        assert cuda.target(capability, known) == expected
    for capability, compilers in ((70, known), (70, [])):
        with pytest.raises(build.BuildError, match="this one is 70"):
            cuda.target(capability, compilers)


# --- launching, on the processor --------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def shim(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    """kernels.cu compiled by g++ behind a shim of CUDA's driver, which runs a launch's threads one by one."""
    compiler = build.find_compiler()
    if compiler is None:
        pytest.skip("no C++ compiler")
    target = tmp_path_factory.mktemp("cuda") / "kernels.so"
    header = Path(__file__).parent / "cuda_shim.h"
    flags = ["-std=c++17", "-O2", "-ffp-contract=off", "-shared", "-fPIC", "-Wall", "-Wextra", "-Werror"]
    source = ["-include", str(header), "-x", "c++", str(FOLDER / "kernels.cu")]
    subprocess.run([*compiler.command, *flags, *source, "-o", str(target)], check=True)
    return ctypes.CDLL(str(target))


@pytest.fixture
def on_the_processor(shim: ctypes.CDLL) -> cuda.CudaKernels:
    return cuda.CudaKernels(cuda.Driver(shim, b"image"), torch.device("cpu"), lambda: 0)


def compare(kernels: cuda.CudaKernels, shape, channels, taps: int = 3, **options) -> None:
    xp = TorchNamespace(str(kernels.memory.device))
    tensors = selftest.layers(*channels, taps)
    reference, ops = ExactOps(NUMPY, tensors, selftest.GRIDS), KernelOps(kernels, tensors, selftest.GRIDS, xp)
    for name, case in selftest.cases(*shape, *channels, **options).items():
        for expected, got in zip(
            selftest.integers(NUMPY, case(reference)), selftest.integers(xp, case(ops)), strict=True
        ):
            np.testing.assert_array_equal(got, expected, err_msg=name)


@pytest.mark.parametrize("channels", [(16, 9, 5), (128, 80, 320), (141, 33, 301)], ids=str)
@pytest.mark.parametrize("shape", [(1, 1, 1), (2, 7, 5)], ids=str)
def test_every_operation_gives_the_bits_of_the_reference(on_the_processor, shape, channels) -> None:
    for extreme in (False, True):
        compare(on_the_processor, shape, channels, extreme=extreme)


def test_depthwise_kernels_of_five_taps_give_the_bits_of_the_reference(on_the_processor) -> None:
    compare(on_the_processor, (2, 7, 5), (80, 16, 4), taps=5)


def test_the_self_test_finds_a_kernel_that_computes_something_else(on_the_processor, monkeypatch) -> None:
    assert cuda.check(on_the_processor) == []
    monkeypatch.setattr(on_the_processor, "add", lambda n, a, b, limit, out: on_the_processor.lrelu(n, a, out))
    block, rows = "block", "block, with rows above"
    assert cuda.check(on_the_processor) == ["add", "add, one row", block, rows, "hyper_latent", "place", "segment"]


@pytest.mark.parametrize("tokens", TOKENS)
def test_biwkv4_gives_the_bits_of_the_reference(on_the_processor, tokens: int) -> None:
    e, v, powers, own = wkv_inputs(tokens, 5, 2, 8)
    got = on_the_processor.biwkv4(
        *(torch.from_numpy(a) for a in (e, v)), None, *map(torch.from_numpy, (powers, own)), 1.0
    )
    assert np.array_equal(got.numpy(), biwkv4_exact(NUMPY, e, v, powers, own))


def training_inputs(tokens: int, dtype: torch.dtype, device: str = "cpu") -> list[torch.Tensor]:
    """k, v, decay, boost and a gradient by y."""
    rng = np.random.RandomState(tokens)
    k, v, g = (torch.from_numpy(rng.standard_normal((2, tokens, 13))) for _ in range(3))
    decay, boost = (torch.from_numpy(rng.uniform(low, 17, 13)) for low in (-1, -17))
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    return [t.to(device, d) for t, d in zip((k, v, decay, boost, g), (dtype, dtype, wide, wide, wide), strict=True)]


def trained_with(inputs: list[torch.Tensor]) -> list[torch.Tensor]:
    *tensors, g = inputs
    y = torch.ops.hpcm.biwkv4(*(t.requires_grad_() for t in tensors))
    return [t.detach().cpu() for t in (y, *torch.autograd.grad(y, tensors, g))]


@pytest.fixture
def cpp(monkeypatch: pytest.MonkeyPatch, kernel_library: Path) -> Iterator[None]:
    """Training on the processor runs in this checkout's C++ kernels."""
    monkeypatch.setattr(build, "prebuilt", lambda folder, source: kernel_library)
    torch_ops._found.cache_clear()
    yield
    torch_ops._found.cache_clear()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("tokens", [1, 2, 16, 255])
def test_biwkv4_for_training_gives_the_bits_of_the_cpp_kernels(
    cpp, on_the_processor, monkeypatch: pytest.MonkeyPatch, tokens: int, dtype: torch.dtype
) -> None:
    expected = trained_with(training_inputs(tokens, dtype))
    monkeypatch.setattr(torch_ops, "kernels_for", lambda device: on_the_processor)
    for a, b in zip(trained_with(training_inputs(tokens, dtype)), expected, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("size", [(1, 1), (9, 14), (33, 20)])
def test_latents_are_coded_to_the_same_bytes_as_in_numpy(on_the_processor, size: tuple[int, int]) -> None:
    w, xp = tiny.load(), TorchNamespace()
    tensors, tables = w.under("entropy"), w.under("tables")
    coders = [
        LatentCoder(w.config, ops, tables)
        for ops in (ExactOps(NUMPY, tensors, w.grids), KernelOps(on_the_processor, tensors, w.grids, xp))
    ]
    y, z = tiny.latents(*size)
    (expected, y_hat), (got, got_y_hat) = (c.encode(y, z, Quality(4321)) for c in coders)
    assert got == expected
    np.testing.assert_array_equal(y_hat, got_y_hat)


MEMBERS = ("phase1", "linear", *(pytest.param(n, marks=pytest.mark.slow) for n in ("baseline", "phase4", "handover")))


@pytest.mark.parametrize("name", MEMBERS)
def test_a_member_codes_and_shows_through_the_kernels_what_it_does_in_numpy(on_the_processor, name: str) -> None:
    """What its operations have no kernel for runs in torch's own operators, beside the kernels."""
    w, xp = weights.load_file(members.path_of(mini(name))), TorchNamespace()
    tables, y = w.under("tables"), np.random.RandomState(1).standard_normal((9, 14, 16)).astype(np.float32) * 4
    z = np.random.RandomState(2).standard_normal((3, 4, 8)).astype(np.float32) * 2
    results = []
    for namespace, make in ((NUMPY, ExactOps), (xp, lambda *of: KernelOps(on_the_processor, *of, xp))):
        of = (namespace,) if make is ExactOps else ()
        coder = LatentCoder(w.config, make(*of, w.under("entropy"), w.grids), tables)
        streams, y_hat = coder.encode(y, z, Quality(0))
        decoded = coder.decode({s: c.data for s, c in streams.items()}, None, Quality(0), 9, 14)
        np.testing.assert_array_equal(decoded, y_hat)
        ops = make(*of, w.synthesis(), w.grids)
        with namespace.exact_mode():
            shown = synthesise(ops, w.config, namespace.array(y_hat[None]), [Quality(0)])
        results.append((streams, y_hat, namespace.numpy(shown)))
    assert results[0][0] == results[1][0]
    for expected, got in zip(results[0][1:], results[1][1:], strict=True):
        np.testing.assert_array_equal(got, expected)


def test_an_image_that_takes_the_shared_structs_for_something_else_is_not_used(
    shim: ctypes.CDLL, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(abi.VALUES, "the place of Biwkv4.sums", 0)
    with pytest.raises(UnsupportedError, match=r"the place of Biwkv4.sums is \d+ in the kernels, 0 in Python"):
        cuda.CudaKernels(cuda.Driver(shim, b"image"), torch.device("cpu"), lambda: 0)


def test_the_drivers_errors_are_told_in_one_line(shim: ctypes.CDLL, on_the_processor) -> None:
    with pytest.raises(UnsupportedError, match="image cannot be loaded: an error of the shim \\(218\\)"):
        cuda.Driver(shim, b"rubbish")
    with pytest.raises(UnsupportedError, match="no kernel hpcm_none"):
        on_the_processor.driver.launch("hpcm_none", 1, 1, 0, [])
    with pytest.raises(UnsupportedError, match="hpcm_add cannot be launched"):
        on_the_processor.driver.launch("hpcm_add", 1, 2**32, 0, [])  # no threads in a block, as 32 bits see it
    on_the_processor.driver.launch("hpcm_add", 0, 256, 0, [])  # nothing to do is no launch


# --- finding ----------------------------------------------------------------------------------------------------------


class Made:
    """Stands in for a compiler: counts what it is asked for, or fails."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        self.asked: list[str] = []
        self.monkeypatch = monkeypatch
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
        monkeypatch.setattr(cuda, "nvcc", lambda: None)
        monkeypatch.setattr(cuda, "nvrtc", lambda: cuda.Compiler("a compiler", lambda: [80], self.make))

    def make(self, architecture: str, folder: Path, out: Path) -> None:
        self.asked.append(architecture)
        out.write_bytes(b"image")

    def fail(self, architecture: str, folder: Path, out: Path) -> NoReturn:
        raise build.BuildError("no such thing")


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Made:
    return Made(monkeypatch, tmp_path)


def test_an_image_is_compiled_once_for_each_kind_of_device(made: Made) -> None:
    for _ in range(2):
        for capability in (80, 90):
            assert cuda.image_for(capability, [], wait=True)[0] == b"image"
    assert made.asked == ["sm_80", "compute_80"]
    assert "cached in" in cuda.image_for(80, [], wait=False)[1]


def test_where_one_compiler_fails_the_next_one_is_asked(made: Made) -> None:
    made.monkeypatch.setattr(cuda, "nvcc", lambda: cuda.Compiler("another", lambda: [80], made.fail))
    reasons: list[str] = []
    assert cuda.image_for(80, reasons, wait=True) == (b"image", "a compiler")
    assert reasons == ["another: no such thing"]


@pytest.mark.parametrize("how", ["there is none", "it fails", "it is too new"])
def test_without_a_compiler_that_works_the_reasons_are_given(made: Made, how: str) -> None:
    compilers = {
        "there is none": None,
        "it fails": cuda.Compiler("another", lambda: [80], made.fail),
        "it is too new": cuda.Compiler("another", lambda: [90], made.make),
    }
    made.monkeypatch.setattr(cuda, "nvrtc", lambda: compilers[how])
    reasons: list[str] = []
    with pytest.raises(build.BuildError, match="neither nvcc nor NVRTC"):
        cuda.image_for(80, reasons, wait=True)
    assert len(reasons) == (how != "there is none")
    assert cuda.main(["80"]) == 1


def test_coding_does_not_wait_for_the_compiler_unless_it_is_told_to(made: Made) -> None:
    started: list[list[str]] = []

    class Process:
        def __init__(self, command: list[str], **options: object) -> None:
            started.append(command)

        def wait(self) -> int:
            return 0

    made.monkeypatch.setattr(cuda.subprocess, "Popen", Process)
    with pytest.raises(build.BuildError, match="in the background"):
        cuda.image_for(80, [], wait=False)
    (command,) = started
    assert command[-3:] == ["-m", "hpcmcodec.native.cuda", "80"]
    assert cuda.main(command[-1:]) == 0  # what it does
    assert cuda.image_for(80, [], wait=False)[0] == b"image"


@pytest.mark.parametrize("name", ["tiny-7x5", "tiny-40x52", "tiny-extreme"])
def test_golden_files_show_the_same_pixels(name: str, on_the_processor) -> None:
    engine = TorchEngine(tiny.load(), "cpu")
    engine.synthesis = KernelOps(on_the_processor, tiny.load().synthesis(), tiny.load().grids, engine.namespace)
    with tiny.installed():
        found = pixel_hashes((tiny.DATA / f"{name}.hpcm").read_bytes(), engine)
    golden = json.loads((tiny.DATA / "golden.json").read_text(encoding="utf-8"))[name]
    assert found == {k: golden[k] for k in found}


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch, on_the_processor) -> Iterator[list[cuda.Found]]:
    """A GPU as far as the engine can tell: tensors stay on the processor, `found[0]` is what it finds."""
    found = [cuda.Found(on_the_processor, "a test", ())]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: "a GPU")
    monkeypatch.setattr(cuda, "find", lambda index, *, wait: found[0])
    return found


def engine_ops(monkeypatch: pytest.MonkeyPatch, choice: str) -> ExactOps:
    """The operations of a torch engine on the GPU of `gpu`."""
    monkeypatch.setenv("HPCM_OPS", choice)
    engine = object.__new__(TorchEngine)
    engine.namespace = TorchNamespace()
    engine.namespace.device = torch.device("cuda")
    w = tiny.load()
    monkeypatch.setattr(engine.namespace, "array", torch.from_numpy)
    return engine._exact_ops(w.under("entropy"), w.grids)


@pytest.mark.parametrize(("choice", "kind"), [("auto", KernelOps), ("cuda", KernelOps), ("reference", ExactOps)])
def test_the_torch_engine_takes_the_kernels_on_a_gpu(gpu, monkeypatch: pytest.MonkeyPatch, choice, kind) -> None:
    assert type(engine_ops(monkeypatch, choice)) is kind


def test_without_kernels_the_torch_engine_warns_and_a_forced_choice_fails(gpu, monkeypatch: pytest.MonkeyPatch) -> None:
    gpu[0] = cuda.Found(None, "", ("nvcc: no such thing", "no compiler for GPUs"))
    with pytest.warns(RuntimeWarning, match="no CUDA kernels: nvcc: no such thing; no compiler"):
        assert type(engine_ops(monkeypatch, "auto")) is ExactOps
    with pytest.raises(UnsupportedError, match=r"HPCM_OPS=cuda.*no such thing; no compiler"):
        engine_ops(monkeypatch, "cuda")


def test_training_takes_the_kernels_of_the_device(gpu, monkeypatch: pytest.MonkeyPatch, on_the_processor) -> None:
    for choice, expected in (("auto", on_the_processor), ("cuda", on_the_processor), ("reference", None)):
        monkeypatch.setenv("HPCM_OPS", choice)
        torch_ops._found.cache_clear()
        assert torch_ops.kernels_for(torch.device("cuda")) is expected
    gpu[0] = cuda.Found(None, "", ("no compiler for GPUs",))
    torch_ops._found.cache_clear()
    monkeypatch.setenv("HPCM_OPS", "cuda")
    with pytest.raises(UnsupportedError, match="no compiler for GPUs"):
        torch_ops.kernels_for(torch.device("cuda"))
    monkeypatch.setenv("HPCM_OPS", "auto")
    with pytest.warns(RuntimeWarning, match="no compiler for GPUs; Bi-WKV4 runs in torch's own"):
        assert torch_ops.kernels_for(torch.device("cuda")) is None
    monkeypatch.setenv("HPCM_OPS", "cuda")
    assert torch_ops.kernels_for(torch.device("cpu")) is None
    torch_ops._found.cache_clear()


def test_doctor_says_what_is_in_use_on_the_gpu(gpu, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HPCM_OPS", "cuda")
    facts = dict(doctor.report())
    assert facts["In use"] == "CUDA kernels on a GPU, with --device cuda"
    assert facts["Compiled by"] == "a test"
    gpu[0] = cuda.Found(None, "", ("no compiler for GPUs",))
    with pytest.raises(UnsupportedError, match="no compiler for GPUs"):
        list(doctor.report())


@pytest.mark.skipif("torch.cuda.is_available()", reason="there is a GPU")
def test_without_a_gpu_a_forced_choice_ends_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HPCM_OPS", "cuda")
    with pytest.raises(UnsupportedError, match="needs an NVIDIA GPU"):
        TorchEngine(tiny.load(), "cuda")
    with pytest.raises(UnsupportedError, match=r"no CUDA kernels: (torch .* has no CUDA|no GPU is usable)"):
        list(doctor.report())


# --- on a GPU ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def on_a_gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, request: pytest.FixtureRequest) -> cuda.CudaKernels:
    """The kernels compiled by one of the compilers alone, for the GPU here."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for name in {"nvcc", "nvrtc"} - {request.param}:
        monkeypatch.setattr(cuda, name, lambda: None)
    if getattr(cuda, request.param)() is None:
        pytest.skip(f"no {request.param}")
    cuda.find.cache_clear()
    found = cuda.find(torch.cuda.current_device(), wait=True)
    cuda.find.cache_clear()
    assert found.kernels, found.reasons
    return found.kernels


both_compilers = pytest.mark.parametrize("on_a_gpu", ["nvcc", "nvrtc"], indirect=True)


@pytest.mark.cuda
@both_compilers
def test_on_a_gpu_every_operation_gives_the_bits_of_the_reference(on_a_gpu) -> None:
    for shape in ((1, 1, 1), (2, 7, 5), (1, 96, 100)):
        compare(on_a_gpu, shape, (141, 33, 301))
        compare(on_a_gpu, shape, (80, 16, 4), taps=5)
    for tokens in TOKENS:
        e, v, powers, own = (torch.from_numpy(a).cuda() for a in wkv_inputs(tokens, 13, 2, 8))
        expected = biwkv4_exact(NUMPY, *wkv_inputs(tokens, 13, 2, 8))
        assert np.array_equal(on_a_gpu.biwkv4(e, v, None, powers, own, 1.0).cpu().numpy(), expected)


@pytest.mark.cuda
@both_compilers
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_on_a_gpu_biwkv4_for_training_gives_the_bits_of_the_cpp_kernels(
    cpp, on_a_gpu, monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype
) -> None:
    for tokens in (1, 2, 16, 255, 1536):
        expected = trained_with(training_inputs(tokens, dtype))
        with monkeypatch.context() as patch:
            patch.setattr(torch_ops, "kernels_for", lambda device: on_a_gpu)
            got = trained_with(training_inputs(tokens, dtype, "cuda"))
        for a, b in zip(got, expected, strict=True):
            assert torch.equal(a, b)


@pytest.mark.cuda
def test_on_a_gpu_files_decode_to_their_checksums_with_kernels_and_without(monkeypatch: pytest.MonkeyPatch) -> None:
    for choice in ("cuda", "reference"):
        monkeypatch.setenv("HPCM_OPS", choice)
        engine = TorchEngine(tiny.load(), "cuda")
        assert type(engine.coder.ops) is (KernelOps if choice == "cuda" else ExactOps)
        for name in tiny.PICTURES:
            header, streams, verify = tiny.parts_of((tiny.DATA / f"{name}.hpcm").read_bytes())
            engine.coder.decode(streams, verify, header.quality, header.latent_height, header.latent_width)
