"""What a process lives through: signals, forks, threads that do not start, memory that ends, inputs that do not."""

from __future__ import annotations

import io
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tiny
from PIL import Image

import hpcmcodec
from hpcmcodec import container, image
from hpcmcodec.errors import InputError, UnsupportedError

MODULE = [sys.executable, "-m", "hpcmcodec"]
CALL_MAIN = "import hpcmcodec.cli; hpcmcodec.cli.main()"
posix = pytest.mark.skipif(os.name != "posix", reason="needs POSIX")
linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs Linux")
PATIENCE = 240  # seconds after which a process is taken to hang


@pytest.fixture(scope="module")
def coded(piece: np.ndarray) -> bytes:
    return hpcmcodec.encode(piece)


@pytest.fixture
def photo(piece: np.ndarray, tmp_path: Path) -> Path:
    path = tmp_path / "photo.png"
    Image.fromarray(piece).save(path)
    return path


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A picture that fills a whole strip of the transforms, 4 megapixels."""
    path = tmp_path_factory.mktemp("wide") / "wide.png"
    Image.linear_gradient("L").resize((2048, 2048)).convert("RGB").save(path, compress_level=1)
    return path


def run(
    *args: object,
    env: dict[str, str] | None = None,
    stdin: object = subprocess.DEVNULL,
    preexec: Callable[[], None] | None = None,
    code: str | None = None,
) -> subprocess.CompletedProcess[bytes]:
    command = MODULE if code is None else [sys.executable, "-c", code]
    return subprocess.run(
        [*command, *map(str, args)],
        capture_output=True,
        check=False,
        stdin=stdin,  # type: ignore[call-overload]
        env={**os.environ, **(env or {})},
        preexec_fn=preexec,
        timeout=PATIENCE,
    )


def assert_refused(result: subprocess.CompletedProcess[bytes], code: int, *words: str) -> None:
    said = result.stderr.decode()
    assert result.returncode == code, said
    assert re.fullmatch(r"hpcm: error: [^\n]+\n", said), said
    assert result.stdout == b""
    for word in words:
        assert word in said


# -------------------------------------------------------------------------------------------------------------- signals

# A call that runs in C for an hour, without Python's lock, as those of onnxruntime and the kernels do for seconds.
AWAY = """
import hashlib, os, pathlib, signal, threading, hpcmcodec.codec as codec
def away(*args, **options):
    threading.Timer(0.5, os.kill, (os.getpid(), signal.{name})).start()
    hashlib.pbkdf2_hmac("sha256", b"", b"", 2**31 - 1)
"""
IN_THE_WORK = AWAY + "codec.encode = away\n"
BEFORE_THE_RENAME = AWAY + "codec.encode = lambda *args, **options: b'coded'\nos.fsync = away\n"
# As modules of C++ do that are being imported when the signal comes.
TAKEN_FOR_A_FAILURE = """
import os, signal, time, hpcmcodec.codec as codec
def failing(*args, **options):
    try:
        os.kill(os.getpid(), signal.{name})
        time.sleep(60)
    except KeyboardInterrupt as error:
        raise ImportError("initialization failed") from error
codec.encode = failing
"""
IN_AN_IMAGE_READER = AWAY + "import hpcmcodec.image; hpcmcodec.image.load = away\n"


@posix
@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
@pytest.mark.parametrize("moment", [IN_THE_WORK, BEFORE_THE_RENAME, IN_AN_IMAGE_READER, TAKEN_FOR_A_FAILURE])
def test_signal_ends_a_program_whose_main_thread_is_away(name: str, moment: str, photo: Path) -> None:
    result = run("encode", photo, code=moment.format(name=name) + CALL_MAIN)
    assert (result.returncode, result.stderr) == (130, b"hpcm: error: interrupted\n")
    assert [path.name for path in photo.parent.iterdir()] == ["photo.png"]


AT_FIRST_PROGRESS = """
import os, signal, hpcmcodec.codec as codec
inner = codec.encode
codec.encode = lambda *args, progress, **options: inner(
    *args, progress=lambda fraction: os.kill(os.getpid(), signal.{name}), **options
)
"""


@posix
def test_hangup_and_interruption_that_were_ignored_at_the_start_stay_ignored(photo: Path) -> None:
    for name in ("SIGHUP", "SIGINT", "SIGTERM"):
        number = getattr(signal, name)
        result = run(
            *("encode", photo, "-f", "--quiet"),
            code=AT_FIRST_PROGRESS.format(name=name) + CALL_MAIN,
            preexec=lambda number=number: signal.signal(number, signal.SIG_IGN),
        )
        assert (result.returncode, result.stderr) == (0, b"")


def test_library_leaves_the_handlers_of_its_program_alone(piece: np.ndarray) -> None:
    numbers = [signal.SIGINT, signal.SIGTERM]
    before = [signal.getsignal(number) for number in numbers]
    hpcmcodec.decode(hpcmcodec.encode(piece))
    assert [signal.getsignal(number) for number in numbers] == before


# ---------------------------------------------------------------------------------------------------- forks and threads

FORK = """
import faulthandler, os, sys, threading, warnings
import numpy as np
warnings.simplefilter("ignore")  # of newer versions of Python, about forks beside threads
from hpcmcodec import codec
picture = np.zeros((64, 96, 3), np.uint8)
expected = codec.encode(picture)
codec.decode(expected)
held, go_on = threading.Event(), threading.Event()
def hold(fraction):
    if fraction > 0.6:  # in the entropy path, whose lock this thread has now
        held.set()
        go_on.wait()
thread = threading.Thread(target=lambda: codec.encode(picture, progress=hold), daemon=True)
thread.start()
held.wait()
child = os.fork()
if not child:
    faulthandler.dump_traceback_later(60, exit=True)
    assert codec.encode(picture) == expected
    codec.decode(expected)
    {end}(0)
_, status = os.waitpid(child, 0)
go_on.set()
thread.join()
assert codec.encode(picture) == expected
os._exit(os.waitstatus_to_exitcode(status))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
@pytest.mark.parametrize("end", ["os._exit", "sys.exit"])
def test_child_of_a_process_that_is_coding_codes_and_ends(end: str) -> None:
    result = run(code=FORK.format(end=end))
    assert result.returncode == 0, result.stderr


POOL = """
import multiprocessing, os, warnings
import numpy as np
warnings.simplefilter("ignore")
from hpcmcodec import codec
data = codec.encode(np.zeros((64, 96, 3), np.uint8))
def size(n): return codec.decode(data).size
codec.decode(data)
with multiprocessing.get_context("fork").Pool(2) as pool:
    assert pool.map_async(size, range(4)).get(timeout=100) == [(96, 64)] * 4
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_pool_of_forked_processes_codes_after_its_parent_has() -> None:
    result = run(code=POOL)
    assert result.returncode == 0, result.stderr


SHIM = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
int pthread_create(pthread_t* thread, const pthread_attr_t* attributes, void* (*body)(void*), void* argument) {
    static int started;
    if (__atomic_fetch_add(&started, 1, __ATOMIC_SEQ_CST) >= atoi(getenv("THREADS_ALLOWED"))) return EAGAIN;
    int (*real)(pthread_t*, const pthread_attr_t*, void* (*)(void*), void*);
    *(void**)&real = dlsym(RTLD_NEXT, "pthread_create");
    return real(thread, attributes, body, argument);
}
"""


@pytest.fixture(scope="module")
def few_threads(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """An environment in which pthread_create fails after THREADS_ALLOWED calls."""
    compiler = shutil.which("gcc")
    if compiler is None or not sys.platform.startswith("linux"):
        pytest.skip("needs Linux and gcc")
    folder = tmp_path_factory.mktemp("shim")
    (folder / "shim.c").write_text(SHIM)
    subprocess.run(
        [compiler, "-shared", "-fPIC", str(folder / "shim.c"), "-o", str(folder / "shim.so"), "-ldl"], check=True
    )
    # Unset, so that each library wants as many threads as there are cores.
    return {"LD_PRELOAD": str(folder / "shim.so"), "OMP_NUM_THREADS": "", "OPENBLAS_NUM_THREADS": "1"}


@pytest.mark.parametrize("allowed", ["0", "1", "2"])
def test_threads_that_do_not_start_are_done_without(
    allowed: str, few_threads: dict[str, str], photo: Path, coded: bytes
) -> None:
    result = run("encode", photo, "-o", "-", "--quiet", env={**few_threads, "THREADS_ALLOWED": allowed})
    assert (result.returncode, result.stderr) == (0, b"")
    assert container.parse_header(result.stdout).width == 96
    result = run("decode", "-o", "-", photo.with_suffix(".hpcm"), env={**few_threads, "THREADS_ALLOWED": allowed})
    assert_refused(result, 3, "No such file")


KERNELS = """
import ctypes, sys
import numpy as np
from hpcmcodec.native.library import Kernels
kernels = Kernels(ctypes.CDLL(sys.argv[1]), 4)
x = np.arange(1 << 20, dtype=np.int16)
out = np.empty_like(x)
for _ in range(3):
    kernels.add(x.size, x.ctypes.data, x.ctypes.data, 8191, out.ctypes.data)
    assert (out == np.clip(2 * x.astype(np.int32), -8191, 8191)).all()
"""


@pytest.mark.parametrize("allowed", ["0", "1", "2"])
def test_kernels_go_on_with_the_threads_they_have(
    allowed: str, few_threads: dict[str, str], kernel_library: Path
) -> None:
    result = run(kernel_library, code=KERNELS, env={**few_threads, "THREADS_ALLOWED": allowed})
    assert result.returncode == 0, result.stderr


# --------------------------------------------------------------------------------------------------------------- memory


def limited_to(megabytes: int) -> Callable[[], None]:
    def limit() -> None:
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (megabytes << 20, megabytes << 20))

    return limit


@linux
@pytest.mark.parametrize("megabytes", [64, 100, 160, 240])
def test_limit_below_what_the_libraries_take_is_exit_code_4_before_they_are_loaded(
    megabytes: int, photo: Path, coded: bytes
) -> None:
    file = photo.with_suffix(".hpcm")
    file.write_bytes(coded)
    assert_refused(run("encode", photo, "-o", "-", preexec=limited_to(megabytes)), 4, "not enough memory")
    assert_refused(run("decode", file, "-o", "-", preexec=limited_to(megabytes)), 4, "not enough memory")
    assert run("info", file, preexec=limited_to(megabytes)).returncode == 0


@linux
@pytest.mark.parametrize("megabytes", [400, 450])
def test_image_that_needs_more_memory_than_there_is_is_exit_code_4(megabytes: int, wide: Path) -> None:
    assert_refused(run("encode", wide, preexec=limited_to(megabytes)), 4, "wide.png", "not enough memory")
    assert [path.name for path in wide.parent.iterdir()] == ["wide.png"]


ONNXRUNTIMES_WORDS = [
    "Exception during initialization: std::bad_alloc",
    "Failed to allocate memory for requested buffer of size 55296000",
]


@pytest.mark.parametrize("words", [*ONNXRUNTIMES_WORDS, None])
def test_library_reports_the_end_of_memory_in_its_own_family(
    words: str | None, piece: np.ndarray, coded: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    from hpcmcodec.ort import onnxruntime

    RuntimeException = onnxruntime.capi.onnxruntime_pybind11_state.RuntimeException

    from hpcmcodec.engines import light

    def fail(*args: object) -> None:
        raise MemoryError if words is None else RuntimeException(words)

    for function in ("analyse", "synthesise"):
        monkeypatch.setattr(light.LightEngine, function, fail)
    with pytest.raises(UnsupportedError, match="not enough memory"):
        hpcmcodec.encode(piece)
    with pytest.raises(UnsupportedError, match="not enough memory"):
        hpcmcodec.decode(coded)


def test_other_failures_of_onnxruntime_are_not_taken_for_want_of_memory(
    piece: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    from hpcmcodec.ort import onnxruntime

    RuntimeException = onnxruntime.capi.onnxruntime_pybind11_state.RuntimeException

    from hpcmcodec.engines import light

    def fail(*args: object) -> None:
        raise RuntimeException("Got invalid dimensions for input")

    monkeypatch.setattr(light.LightEngine, "analyse", fail)
    with pytest.raises(RuntimeException, match="invalid dimensions"):
        hpcmcodec.encode(piece)


# ------------------------------------------------------------------------------------------------------- endless inputs


@linux
def test_device_without_end_is_exit_code_3(photo: Path, coded: bytes, tmp_path: Path) -> None:
    file = photo.with_suffix(".hpcm")
    file.write_bytes(coded)
    zero, limit = Path("/dev/zero"), limited_to(1500)
    results = tmp_path / "results"
    for args in (
        ("info", zero),
        ("decode", zero, "-o", "-"),
        ("encode", zero, "-o", "-"),
        ("compare", zero, file, "-o", "-"),
        ("compare", photo, zero, "-o", "-"),
        ("eval", zero, "-o", results),
        ("eval", photo, "--anchor", zero, "-o", results),
    ):
        assert_refused(run(*args, preexec=limit), 3, "/dev/zero")
    for args in (("info", "-"), ("decode", "-"), ("encode", "-")):
        with zero.open("rb") as stream:
            assert_refused(run(*args, stdin=stream, preexec=limit), 3, "standard input")


class Endless(io.RawIOBase):
    """`start`, then zeros for ever; counts what it is asked for."""

    def __init__(self, start: bytes) -> None:
        self.start, self.n_read = start, 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: bytearray) -> int:  # type: ignore[override]
        n = min(len(buffer), 1 << 16)
        buffer[:n] = self.start[self.n_read : self.n_read + n].ljust(n, b"\0")
        self.n_read += n
        return n


def test_file_that_goes_on_without_end_is_read_to_its_own_end(coded: bytes) -> None:
    stream = Endless(coded)
    with pytest.raises(InputError, match="more stand behind its end"):
        hpcmcodec.decode(stream)  # type: ignore[arg-type]
    assert stream.n_read <= len(coded) + (1 << 17)


def test_no_image_is_read_beyond_its_first_bytes() -> None:
    stream = Endless(b"")
    with pytest.raises(InputError, match="no format that is read"):
        image.load(stream, max_pixels=None)  # type: ignore[arg-type]
    assert stream.n_read <= 1 << 17
    with pytest.raises(InputError, match="chunks of 4294967295 bytes"):
        container.read(io.BytesIO(with_long_chunk()), max_pixels=256)


def test_image_that_goes_on_without_end_is_refused_at_a_limit_that_follows_the_pixels() -> None:
    for max_pixels in (1000, 1_000_000):
        stream = Endless(b"\xff\xd8\xff\xe0")
        with pytest.raises(UnsupportedError, match=f"limit for {max_pixels} pixels"):
            image.load(stream, max_pixels=max_pixels)  # type: ignore[arg-type]
        limit = container.max_bytes(max_pixels)
        assert limit is not None
        assert limit < stream.n_read <= limit + (1 << 17)


@linux
def test_hollow_file_of_many_gigabytes_is_not_read_into_memory(tmp_path: Path, coded: bytes) -> None:
    for name, start in (("a.webp", b"RIFF\0\0\0\0WEBPVP8 "), ("a.hpcm", coded)):
        path = tmp_path / name
        path.write_bytes(start)
        os.truncate(path, 1 << 36)
        command, code = ("encode", 4) if name == "a.webp" else ("decode", 3)
        assert_refused(run(command, path, "-o", "-", preexec=limited_to(2000)), code, name)
    facts = run("info", path, preexec=limited_to(500))
    assert facts.returncode == 0, facts.stderr
    assert f"{1 << 36} bytes" in facts.stdout.decode()


def test_header_cannot_announce_more_than_is_read(coded: bytes) -> None:
    huge = coded[:5] + b"\xff\xff\xff\xff\x0f"
    stream = Endless(huge)
    with pytest.raises(UnsupportedError, match="the header takes"):
        container.read(stream, max_pixels=None)  # type: ignore[arg-type]
    assert stream.n_read <= 1 << 17
    with pytest.raises(InputError, match="chunks of 4294967295 bytes"):
        container.read(io.BytesIO(with_long_chunk()), max_pixels=256)


def with_long_chunk() -> bytes:
    """A header whose one chunk has 2^32 - 1 bytes, without what follows it."""
    fields = bytes(4) + bytes((64, 1, 1, 0)) + b"\1EXIF\0" + b"\xff\xff\xff\xff\x0f" + bytes(4)
    header = container.MAGIC + b"\2" + bytes((len(fields) + 2,)) + fields
    return tiny.resealed(header, b"")[:-4]


@posix
def test_info_of_a_pipe_counts_all_bytes_and_ends_far_behind_the_file(coded: bytes) -> None:
    for behind, complete in ((0, "true"), (100_000, "false")):
        result = subprocess.run(
            [*MODULE, "info", "-", "--json"], input=coded + bytes(behind), capture_output=True, check=True
        )
        assert f'"bytes": {len(coded) + behind},' in result.stdout.decode()
        assert f'"complete": {complete}' in result.stdout.decode()
    line = ["sh", "-c", '(cat "$0"; cat /dev/zero) | "$@"', "/dev/stdin", *MODULE, "info", "-"]
    result = subprocess.run(line, input=coded, capture_output=True, check=False, timeout=PATIENCE)
    assert_refused(result, 3, "standard input", "without end")
