"""The kernels on an NVIDIA GPU: kernels.cu, compiled for the device and launched through the CUDA driver.

The image, which is the compiled form of kernels.cu, comes from the first of these that is there:

    1. a cached image for this device (`$XDG_CACHE_HOME/hpcmcodec/kernels`, keyed by sources, flags and architecture)
    2. nvcc, where there is one: `$CUDA_HOME/bin`, PATH, /usr/local/cuda/bin
    3. NVRTC, which torch's CUDA builds bring along

`python -m hpcmcodec.native.cuda 90` compiles into the cache for devices of capability 9.0.

The image is machine code for the device. For a device that is newer than the compiler it is PTX, which the driver
translates. torch owns the device, its memory and its streams: kernels run on torch's current stream and get the
addresses of torch's tensors. Only code that uses torch imports this module.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from hpcmcodec.errors import UnsupportedError
from hpcmcodec.exact.namespaces import TorchNamespace
from hpcmcodec.native import abi, build, selftest
from hpcmcodec.native.compiled import KernelOps
from hpcmcodec.native.library import SIGNATURES, Kernels

__all__ = ["CudaKernels", "Found", "find"]

SOURCES = ("abi.h", "core.h", "kernels.cu")  # the last one is compiled and includes the others
FLAGS = (
    "--std=c++17",
    "--fmad=false",
)  # for nvcc and NVRTC alike; a fused multiply-add would round once where the reference rounds twice
_THREADS = 256
_SEQUENCE_THREADS = 32  # per CUDA block where a thread does a whole sequence: few threads for many processors
_SUCCESS = 0

_pointer, _long, _int = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int


# --- compiling --------------------------------------------------------------------------------------------------------


class Compiler(NamedTuple):
    """A CUDA compiler. `architectures()`: those it knows; `make(architecture, folder, target)` writes an image.

    Both raise BuildError.
    """

    name: str
    architectures: Callable[[], list[int]]
    make: Callable[[str, Path, Path], None]


def target(capability: int, known: Sequence[int]) -> str:
    """`sm_N` where the compiler knows this capability (90: 9.0), else `compute_N`, the newest PTX that runs on it.

    Raises BuildError where the compiler knows only newer devices.
    """
    if capability in known:
        return f"sm_{capability}"
    older = [n for n in known if n <= capability]
    if not older:
        raise build.BuildError(f"it compiles for devices from {min(known, default=0)} on, this one is {capability}")
    return f"compute_{max(older)}"


def nvcc() -> Compiler | None:
    """The compiler of a CUDA toolkit; None where there is none."""
    homes = [os.environ.get(name) for name in ("CUDA_HOME", "CUDA_PATH")]
    path = next((p for home in homes if home and (p := shutil.which("nvcc", path=str(Path(home, "bin"))))), None)
    path = path or shutil.which("nvcc") or shutil.which("nvcc", path="/usr/local/cuda/bin")
    if path is None:
        return None
    command = path

    def architectures() -> list[int]:
        listed = build.run([command, "--list-gpu-code"], Path.cwd(), build.TIMEOUT_SECONDS)
        return sorted(int(n) for n in re.findall(r"sm_(\d+)\b", listed))

    def make(architecture: str, folder: Path, out: Path) -> None:
        form = "-cubin" if architecture.startswith("sm_") else "-ptx"
        arguments = [*FLAGS, form, f"-arch={architecture}", str(folder / SOURCES[-1]), "-o", str(out)]
        build.run([command, *arguments], out.parent, build.TIMEOUT_SECONDS)

    return Compiler(command, architectures, make)


def nvrtc() -> Compiler | None:
    """NVRTC, NVIDIA's compiler as a library; None where it is not installed."""
    library = _nvrtc_library()
    if library is None:
        return None
    rtc, name = library

    def architectures() -> list[int]:
        count = _int()
        _checked_rtc(rtc, rtc.nvrtcGetNumSupportedArchs(ctypes.byref(count)))
        known = (_int * count.value)()
        _checked_rtc(rtc, rtc.nvrtcGetSupportedArchs(known))
        return sorted(known)

    def make(architecture: str, folder: Path, out: Path) -> None:
        *headers, source = ((folder / n).read_bytes() for n in SOURCES)
        program, names = _pointer(), [n.encode() for n in SOURCES[:-1]]
        several = ctypes.c_char_p * len(headers)
        created = rtc.nvrtcCreateProgram(
            *(ctypes.byref(program), source, SOURCES[-1].encode(), len(headers), several(*headers), several(*names))
        )
        _checked_rtc(rtc, created)
        try:
            options = [o.encode() for o in (*FLAGS, f"--gpu-architecture={architecture}")]
            code = rtc.nvrtcCompileProgram(program, len(options), (ctypes.c_char_p * len(options))(*options))
            if code != _SUCCESS:
                log = _of_program(rtc, program, "ProgramLog").decode(errors="replace")
                raise build.BuildError(f"NVRTC failed: {build.complaint(log)}")
            out.write_bytes(_of_program(rtc, program, "CUBIN" if architecture.startswith("sm_") else "PTX"))
        finally:
            rtc.nvrtcDestroyProgram(ctypes.byref(program))

    return Compiler(f"NVRTC ({name})", architectures, make)


def _nvrtc_library() -> tuple[ctypes.CDLL, str] | None:
    """The NVRTC library and its name: a wheel's, torch's own, or what the system's loader finds."""
    wheels = [Path(p, "nvidia") for p in sys.path if p]
    folders = [Path(torch.__file__).parent / "lib", *(f for w in wheels for f in sorted(w.glob("*/lib"), reverse=True))]
    files = [str(p) for folder in folders for p in sorted(folder.glob("libnvrtc.so.*"), reverse=True)]
    major = (torch.version.cuda or "").partition(".")[0]
    for name in [*files, *([f"libnvrtc.so.{major}"] if major else []), "libnvrtc.so"]:
        try:
            # NVRTC opens the library of its built-in functions by its bare name, which works once it is loaded.
            for builtins in sorted(Path(name).parent.glob("libnvrtc-builtins.so.*")) if "/" in name else []:
                ctypes.CDLL(str(builtins))
            library = ctypes.CDLL(name)
        except OSError:
            continue
        library.nvrtcGetErrorString.restype = ctypes.c_char_p
        library.nvrtcCompileProgram.argtypes = (_pointer, _int, _pointer)
        return library, name
    return None


def _checked_rtc(rtc: ctypes.CDLL, code: int) -> None:
    if code != _SUCCESS:
        raise build.BuildError(f"NVRTC failed: {rtc.nvrtcGetErrorString(code).decode()}")


def _of_program(rtc: ctypes.CDLL, program: ctypes.c_void_p, what: str) -> bytes:
    size = ctypes.c_size_t()
    _checked_rtc(rtc, getattr(rtc, f"nvrtcGet{what}Size")(program, ctypes.byref(size)))
    data = ctypes.create_string_buffer(size.value)
    _checked_rtc(rtc, getattr(rtc, f"nvrtcGet{what}")(program, data))
    return data.raw


# --- launching --------------------------------------------------------------------------------------------------------


class Driver:
    """The kernels of an image. library: libcuda, or a stand-in for tests. Raises UnsupportedError where it fails."""

    def __init__(self, library: ctypes.CDLL, image: bytes) -> None:
        self.library = library
        library.cuLaunchKernel.argtypes = (_pointer, *[ctypes.c_uint] * 7, _pointer, _pointer, _pointer)
        library.cuModuleGetFunction.argtypes = (_pointer, _pointer, ctypes.c_char_p)
        self.module = _pointer()
        self._image = ctypes.create_string_buffer(image)  # a buffer that ends in a zero byte, as PTX must
        self._check(library.cuModuleLoadData(ctypes.byref(self.module), self._image), "the image cannot be loaded")
        self._functions: dict[str, ctypes.c_void_p] = {}

    def _check(self, code: int, what: str) -> None:
        if code != _SUCCESS:
            text = ctypes.c_char_p()
            self.library.cuGetErrorString(code, ctypes.byref(text))
            raise UnsupportedError(f"CUDA kernels: {what}: {(text.value or b'unknown error').decode()} ({code})")

    def launch(self, kernel: str, elements: int, threads: int, stream: int, parameters: Sequence[Any]) -> None:
        """Run a kernel with one thread per element; parameters: its arguments as ctypes objects."""
        if elements < 1:
            return
        if kernel not in self._functions:
            function = _pointer()
            found = self.library.cuModuleGetFunction(ctypes.byref(function), self.module, kernel.encode())
            self._check(found, f"no kernel {kernel}")
            self._functions[kernel] = function
        addresses = (_pointer * len(parameters))(*(ctypes.addressof(p) for p in parameters))
        blocks = -(-elements // threads)
        code = self.library.cuLaunchKernel(
            *(self._functions[kernel], blocks, 1, 1, threads, 1, 1, 0, stream, addresses, None)
        )
        self._check(code, f"{kernel} cannot be launched")


class _DeviceMemory:
    """What `compiled.HostMemory` does for numpy arrays, for tensors of one device."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def empty(self, shape: Sequence[int] | int, dtype: Any) -> Tensor:
        shape = (shape,) if isinstance(shape, int) else tuple(shape)
        return torch.empty(shape, dtype=_DTYPES[np.dtype(dtype)], device=self.device)

    def contiguous(self, x: Tensor, dtype: Any) -> Tensor:
        return x.to(_DTYPES[np.dtype(dtype)]).contiguous()

    @staticmethod
    def at(x: Tensor) -> int:
        return x.data_ptr()

    @staticmethod
    def broadcast(*xs: Tensor) -> Sequence[Tensor]:
        out: Sequence[Tensor] = torch.broadcast_tensors(*xs)  # type: ignore[no-untyped-call]
        return out


_DTYPES = {
    np.dtype(a): b
    for a, b in (
        *((np.int16, torch.int16), (np.int32, torch.int32), (np.int64, torch.int64)),
        *((np.uint8, torch.uint8), (np.uint16, torch.uint16)),
        *((np.float32, torch.float32), (np.float64, torch.float64)),
    )
}


class CudaKernels(Kernels):
    """The interface of `Kernels` over tensors of a device. stream: returns the handle of the stream to launch on.

    Raises UnsupportedError where the image was compiled with other values of abi.h than Python's.
    """

    in_one_pass = False

    def __init__(self, driver: Driver, device: torch.device, stream: Callable[[], int]) -> None:
        self.driver, self.stream, self.memory = driver, stream, _DeviceMemory(device)
        values = self.memory.empty(len(abi.VALUES), np.int64)
        self._launch("hpcm_abi", len(abi.VALUES), [_pointer(values.data_ptr())])
        abi.check(values.tolist())
        for name, count in _ELEMENTS.items():
            setattr(self, name, self._simple(name, count))

    @property
    def variant(self) -> str:
        """The name that stands where other kernels name an instruction set."""
        return "CUDA"

    def _launch(self, kernel: str, elements: int, parameters: Sequence[Any], threads: int = _THREADS) -> None:
        if self.memory.device.type == "cuda":
            with torch.cuda.device(self.memory.device):
                self.driver.launch(kernel, elements, threads, self.stream(), parameters)
        else:
            self.driver.launch(kernel, elements, threads, self.stream(), parameters)

    def _simple(self, name: str, count: Callable[..., int]) -> Callable[..., None]:
        types = SIGNATURES[f"hpcm_{name}"]

        def call(*arguments: Any) -> None:
            parameters = [t(a) for t, a in zip(types, arguments, strict=True)]
            self._launch(f"hpcm_{name}", count(*arguments), parameters)

        return call

    def linear(self, call: abi.Linear) -> None:
        self._launch("hpcm_linear", call.rows * call.outputs, [call])

    def wkv(self, *arguments: Any) -> None:
        batch, tokens, channels, length, k, v, table, powers, own, factor, limit, ends, out = arguments
        blocks = -(-tokens // length)
        shape = [_long(batch), _long(tokens), _long(blocks), _int(channels), _int(length)]
        inputs = [_pointer(a) for a in (k, v, table)]
        items, weights, sums = batch * blocks * channels, _pointer(powers), _pointer(ends)
        self._launch("hpcm_wkv_ends", items, [*shape, *inputs, weights, sums])
        few = [_long(batch), _long(blocks), _int(channels), _int(length), weights, sums]
        self._launch("hpcm_wkv_carries", batch * channels * 4, few)
        rest = [weights, _pointer(own), ctypes.c_double(factor), _int(limit), sums, _pointer(out)]
        self._launch("hpcm_wkv_out", items, [*shape, *inputs, *rest])

    def set_threads(self, n: int) -> None:
        """Does nothing, since the device distributes the work itself."""

    def wkv_scratch(self, batch: int, tokens: int, channels: int, length: int) -> int:
        return batch * -(-tokens // length) * channels * 4

    def float_biwkv4(self, call: abi.Biwkv4) -> int:
        self._sequences(call, 3)
        return 0

    def float_biwkv4_gradients(self, call: abi.Biwkv4, g_decay: int, g_boost: int) -> int:
        self._sequences(call, 5)
        self._launch("hpcm_float_biwkv4_sum", call.channels, [call, _pointer(g_decay), _pointer(g_boost)])
        return 0

    def _sequences(self, call: abi.Biwkv4, kept: int) -> None:
        """Run with one thread per sample and channel; each needs scratch memory for `kept` numbers per token."""
        items = call.batch * call.channels
        scratch = self.memory.empty((kept, call.tokens, items), np.float64)
        call.scratch = scratch.data_ptr()
        self._launch("hpcm_float_biwkv4", items, [call], _SEQUENCE_THREADS)


# How many threads each kernel needs, computed from its arguments.
_ELEMENTS: dict[str, Callable[..., int]] = {
    "depthwise": lambda batch, height, width, channels, *_: batch * height * width * channels,
    "norm": lambda rows, *_: rows,
    "lrelu": lambda n, *_: n,
    "relu_squared": lambda n, *_: n,
    "gate": lambda n, *_: n,
    "add": lambda n, *_: n,
    "latent_code": lambda n, *_: n,
    "narrow": lambda rows, channels, *_: rows * channels,
    "pixels": lambda n, *_: n,
    "channel_scale": lambda rows, channels, *_: rows * channels,
    "blend": lambda rows, channels, *_: rows * channels,
    "sum_rows": lambda rows, channels, *_: channels,
}


# --- finding ----------------------------------------------------------------------------------------------------------


class Found(NamedTuple):
    """kernels: None where there are none. made_by: their compiler, or the cached file. reasons: why attempts failed."""

    kernels: CudaKernels | None
    made_by: str
    reasons: tuple[str, ...]


@cache
def find(index: int, *, wait: bool) -> Found:
    """The kernels for the GPU of this number, which have passed the self-test. They are looked for once per process.

    wait: where they are not in the cache, compile them at once (this takes seconds) instead of in the background.
    """
    if not torch.cuda.is_available():
        return Found(None, "", (no_device(),))
    device = torch.device("cuda", index)
    reasons: list[str] = []
    try:
        torch.zeros(1, device=device)  # makes torch's context the current one
        major, minor = torch.cuda.get_device_capability(device)
        image, made_by = image_for(10 * major + minor, reasons, wait=wait)
        with torch.cuda.device(device):
            driver = Driver(ctypes.CDLL("libcuda.so.1"), image)
        kernels = CudaKernels(driver, device, lambda: torch.cuda.current_stream(device).cuda_stream)
        wrong = check(kernels)
    except (OSError, build.BuildError, UnsupportedError) as error:
        return Found(None, "", (*reasons, str(error)))
    if wrong:
        return Found(None, "", (*reasons, f"they differ from the reference: {', '.join(wrong)}"))
    return Found(kernels, made_by, tuple(reasons))


def no_device() -> str:
    """Why torch has no GPU."""
    return "no GPU is usable here" if torch.version.cuda else f"torch {torch.__version__} has no CUDA"


def check(kernels: CudaKernels) -> list[str]:
    """Names of the exact operations whose results differ from the numpy reference's."""
    xp = TorchNamespace(str(kernels.memory.device))
    with xp.exact_mode():
        return selftest.differences(lambda tensors: KernelOps(kernels, tensors, selftest.GRIDS, xp))


def image_for(capability: int, reasons: list[str], *, wait: bool) -> tuple[bytes, str]:
    """The image for devices of this capability, and what compiled it or the cached file. Raises BuildError."""
    folder, store = build.source_folder(), build.cache_folder()
    stem = f"cuda-{capability}-{build.source_hash(folder, SOURCES, FLAGS)}"
    if store is None:
        raise build.BuildError("no cache directory: neither XDG_CACHE_HOME nor a home is set")
    distrust = build.untrusted(store)
    if distrust:
        raise build.BuildError(f"{distrust}, so nothing is loaded from there")
    for path in build.whole(store, f"{stem}-*.image"):
        return path.read_bytes(), f"cached in {path}"
    why_not = build.impossible()
    if why_not:
        raise build.BuildError(why_not)
    if not wait:
        _compile_in_background(capability)
        raise build.BuildError("they are being compiled in the background")
    for compiler in (nvcc(), nvrtc()):
        if compiler is None:
            continue
        made_by = compiler

        def make(out: Path, compiler: Compiler = made_by) -> None:
            compiler.make(target(capability, compiler.architectures()), folder, out)

        try:
            return build.publish(store, stem, ".image", make, build.TIMEOUT_SECONDS).read_bytes(), compiler.name
        except build.BuildError as error:
            reasons.append(f"{compiler.name}: {error}")
    raise build.BuildError("no compiler for GPUs: neither nvcc nor NVRTC works here")


def _compile_in_background(capability: int) -> None:
    with contextlib.suppress(OSError):
        process = subprocess.Popen(
            [sys.executable, "-m", "hpcmcodec.native.cuda", str(capability)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            cwd="/",
            env=os.environ | {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
        )
        threading.Thread(target=process.wait, daemon=True).start()  # so that no zombie stays


def main(arguments: Sequence[str]) -> int:
    """Compile for the capability that the argument names; returns the exit code, 1 where that fails."""
    reasons: list[str] = []
    try:
        print(image_for(int(arguments[0]), reasons, wait=True)[1], file=sys.stderr)
    except build.BuildError as error:
        print("; ".join([*reasons, str(error)]), file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
