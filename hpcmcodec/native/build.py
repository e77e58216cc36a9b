"""Builds the compiled kernels: ninja or one compiler call, a cache of the results, and a lock.

    python hpcmcodec/native/build.py prebuild     beside the sources (`make kernels`); the wheel takes it along
    python hpcmcodec/native/build.py cache        into the cache, as `hpcm` does in the background

ninja compiles one object for each source, several at once. `prebuild` keeps the objects, so that after a change only
what depends on it is compiled. Where neither the package `ninja` nor a command of that name exists, the compiler is
called once with all sources, which needs nothing but the standard library. Both ways use the same flags.

A library's name contains the hash of the sources and flags. The library repeats the hash (`hpcm_source`), so a stale
one is never used. The name also contains the hash of the file's own bytes, so that a file which was damaged or stripped
is not loaded, and for cached libraries a key of the compiler. A library is written beside its final place and then
renamed, under a lock that the system releases when its holder dies.
"""

from __future__ import annotations

import _ctypes
import contextlib
import ctypes
import hashlib
import os
import platform
import re
import shlex
import shutil
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

HEADERS = ("abi.h", "core.h", "cpu.h", "folded.h", "functions.h", "pool.h", "rans.h", "residual.h")
UNITS = ("avx512.cpp", "avx2.cpp", "sse2.cpp", "plain.cpp", "kernels.cpp", "source.cpp")
SOURCES = HEADERS + UNITS
# -ffp-contract=off: a fused multiply-add would round once where the reference rounds twice. The two flags after it
# change no result: they say that nobody reads errno or the processor's exception flags, without which the compiler does
# not vectorise loops with comparisons or conversions. No flag names an instruction set: each unit sets its own
# (functions.h), and kernels.cpp chooses one at run time.
FLAGS = (
    *("-std=c++17", "-O2", "-ftree-vectorize", "-fvect-cost-model"),
    *("-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math"),
    *("-fPIC", "-pthread", "-fvisibility=hidden", "-Wno-psabi"),
)
TIMEOUT_SECONDS = 300.0
RETRY_SECONDS = 24 * 3600.0  # how long after a failure no build is tried in the background
PATIENCE_SECONDS = 2.0  # how long a process that was told to end may take
OBJECTS = ".build"  # the folder beside the sources where ninja's objects are kept
_PARTIAL = ".build-"
_ROOM = 16 << 20  # bytes; a build takes a third of them
# What compilers, linkers and the C library say where disk or memory run out, and what they die of then.
_WANT = re.compile(
    "No space left|[Qq]uota exceeded|[Oo]ut of memory|memory exhausted|Cannot allocate memory|File too large|"
    "Killed|Bus error|Input/output error"
)


class BuildError(Exception):
    """The kernels cannot be built; the message says why. output: all that the compiler has said."""

    def __init__(self, message: str, output: str = "") -> None:
        super().__init__(message)
        self.output = f"{message}\n{output}"


class Compiler(NamedTuple):
    """A C++ compiler. command: its path and its own arguments; key: a hash that changes when the compiler does."""

    command: tuple[str, ...]
    key: str

    def version(self) -> str:
        """The first line that the compiler prints for --version."""
        try:
            done = subprocess.run(
                [*self.command, "--version"], capture_output=True, text=True, timeout=20, stdin=subprocess.DEVNULL
            )
        except (OSError, subprocess.SubprocessError) as error:
            return f"does not answer: {error}"
        return (done.stdout.splitlines() or ["unknown version"])[0]


def source_folder() -> Path:
    """Where the kernels' sources are: inside an installed package, or beside it in a checkout."""
    package = Path(__file__).resolve().parent.parent
    installed = package / "data" / "kernels"
    return installed if installed.is_dir() else package.parent / "kernels"


def impossible() -> str | None:
    """Why kernels are not built on this system, whatever compiler it has; None where they can be."""
    return None if fcntl else f"kernels are not built on {platform.system()}"


def source_hash(folder: Path, names: Sequence[str] = SOURCES, flags: Sequence[str] = FLAGS) -> str:
    """The hash of sources and flags, 16 hexadecimal digits. Raises BuildError where a source is missing."""
    digest = hashlib.sha256(" ".join(flags).encode())
    for name in names:
        try:
            digest.update(b"\0" + name.encode() + b"\0" + (folder / name).read_bytes())
        except OSError as error:
            raise BuildError(f"the sources of the kernels are not here: {folder / name}: {error.strerror}") from error
    return digest.hexdigest()[:16]


def find_compiler() -> Compiler | None:
    """$CXX where it is set, else g++ or c++; None where there is none."""
    named = os.environ.get("CXX")
    for command in [shlex.split(named)] if named else [["g++"], ["c++"]]:
        path = shutil.which(command[0]) if command else None
        if path:
            # The key does not include the version: asking for it takes as long as loading the kernels.
            facts = Path(path).resolve().stat()
            key = f"{Path(path).resolve()} {facts.st_size} {facts.st_mtime_ns} {command[1:]}"
            return Compiler((path, *command[1:]), hashlib.sha256(key.encode()).hexdigest()[:8])
    return None


def prebuilt(folder: Path, source: str) -> Path | None:
    """The library beside the sources that is for this machine and from these sources; None where there is none."""
    return next(iter(sorted(folder.glob(f"{prebuilt_stem(source)}-*.so"))), None)


def prebuilt_stem(source: str) -> str:
    """How the prebuilt library's name starts: with the system, the processor and the hash of the sources."""
    return f"libhpcm-{platform.system().lower()}-{platform.machine()}-{source}"


def find_ninja() -> str | None:
    """The ninja of this Python's package, else the command of that name; None where there is neither."""
    try:
        from ninja import BIN_DIR
    except ImportError:
        BIN_DIR = ""
    return (BIN_DIR and shutil.which("ninja", path=BIN_DIR)) or shutil.which("ninja")


def cache_folder() -> Path | None:
    """$XDG_CACHE_HOME/hpcmcodec/kernels, or ~/.cache/hpcmcodec/kernels; None where no home directory is known."""
    named = os.environ.get("XDG_CACHE_HOME")
    if named and Path(named).is_absolute():
        return Path(named, "hpcmcodec", "kernels")
    try:
        return Path.home() / ".cache" / "hpcmcodec" / "kernels"
    except RuntimeError:
        return None


def untrusted(folder: Path, *, make: bool = False) -> str | None:
    """Why libraries of this folder must not be loaded, where another user could have put them there; else None.

    From the root on, each folder of the path is opened inside of the one before, never through a link. It has to belong
    to this user or to root, and nobody else may write to it; the folders above the last one may have the sticky bit
    instead, as /tmp has. A path that passes cannot be changed by others afterwards.

    make: make the folders that are missing, for this user alone. Raises OSError where that fails.
    """
    # On Windows modes say nothing, and nothing is built.
    if not hasattr(os, "geteuid") or os.open not in os.supports_dir_fd:
        return None
    # Links on the way are followed first: what they lead to is judged.
    path = Path(os.path.realpath(folder))
    # Folders that may be passed through need not be readable: O_PATH, where there is one, does not ask for that.
    flags = getattr(os, "O_PATH", os.O_RDONLY) | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    here = os.open(path.anchor, flags)
    try:
        for place in [*reversed(path.parents), path]:
            if place.name:
                above, here = here, _entered(place.name, here, flags, make=make)
                os.close(above)
            reason = _shared(os.fstat(here), sticky=place != path)
            if reason:
                return f"{place} {reason}"
        return None
    except OSError as error:
        if make:
            raise
        missing = isinstance(error, FileNotFoundError)
        return None if missing else f"{folder} cannot be written to or read: {error.strerror}"
    finally:
        os.close(here)


def _entered(name: str, above: int, flags: int, *, make: bool) -> int:
    """A descriptor of the folder of this name in the folder `above`, made first where it is missing, if `make`."""
    try:
        return os.open(name, flags, dir_fd=above)
    except FileNotFoundError:
        if not make:
            raise
    with contextlib.suppress(FileExistsError):  # another process has made it meanwhile
        os.mkdir(name, 0o700, dir_fd=above)
    return os.open(name, flags, dir_fd=above)


def _shared(facts: os.stat_result, *, sticky: bool) -> str | None:
    """How another user could change what these facts are about; None where that is impossible."""
    if facts.st_uid not in (os.geteuid(), 0):
        return "belongs to another user"
    if facts.st_mode & (stat.S_IWGRP | stat.S_IWOTH) and not (sticky and facts.st_mode & stat.S_ISVTX):
        return "can be written to by others"
    return None


def _stem(source: str) -> str:
    return f"{platform.machine()}-{source}"


def whole(folder: Path, pattern: str) -> list[Path]:
    """The files of a cache folder that match a pattern, without links, without those that other users own or may write
    to, and without those that were damaged after they were written.
    """
    return [path for path in sorted(folder.glob(pattern)) if _is_ours(path) and is_whole(path)]


def _is_ours(path: Path) -> bool:
    try:
        facts = path.lstat()
    except OSError:
        return False
    return stat.S_ISREG(facts.st_mode) and not (hasattr(os, "geteuid") and _shared(facts, sticky=False))


def is_whole(path: Path) -> bool:
    """Whether a file can be read and has the hash that its name ends with."""
    try:
        return _digest(path) == path.stem.rpartition("-")[2]
    except OSError:
        return False


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]


def cached(folder: Path, source: str, compiler: Compiler | None) -> list[Path]:
    """Undamaged cached libraries of these sources; where a compiler is given, those alone that it built."""
    return whole(folder, f"{_stem(source)}-{compiler.key if compiler else '*'}-*.so")


def failure(folder: Path, source: str, compiler: Compiler) -> str | None:
    """The message of the last failed build of these sources with this compiler, if it failed within RETRY_SECONDS."""
    path = folder / f"{_stem(source)}-{compiler.key}.failed"
    try:
        age = time.time() - path.stat().st_mtime
        return path.read_text(encoding="utf-8", errors="replace") if 0 <= age < RETRY_SECONDS else None
    except OSError:
        return None


def run(command: Sequence[str], folder: Path, timeout: float) -> str:
    """Run a compiler, with `folder` for its temporary files; returns its output. Raises BuildError where it fails."""
    try:
        # The compiler starts processes of its own. In a session of its own, all of them can be ended at a time-out.
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env=os.environ | {"LC_ALL": "C", "TMPDIR": str(folder)},
        )
    except OSError as error:
        raise BuildError(f"{command[0]} cannot be run: {error.strerror or error}") from error
    try:
        output, _ = process.communicate(timeout=timeout)
    except BaseException as error:  # no compiler may be left running, not even after an interruption
        _end(process)
        if isinstance(error, subprocess.TimeoutExpired):
            raise BuildError(f"{command[0]} did not end within {timeout:g} s") from error
        raise
    text = output.decode(errors="replace")
    if process.returncode:
        raise BuildError(f"{command[0]} failed with exit code {process.returncode}: {complaint(text)}", text)
    return text


def _end(process: subprocess.Popen[bytes]) -> None:
    """End the process that leads a session, and all processes that it started."""
    if hasattr(os, "killpg"):
        # ninja gives each compiler a process group of its own, which SIGKILL would miss. ninja passes a SIGTERM on.
        with contextlib.suppress(OSError):
            os.killpg(process.pid, signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(PATIENCE_SECONDS)
        with contextlib.suppress(OSError):
            os.killpg(process.pid, signal.SIGKILL)
    else:
        process.kill()
    process.communicate()


def complaint(output: str) -> str:
    """The first line of a compiler's output that names an error."""
    lines = output.splitlines()
    return next((line for line in lines if "error" in line), lines[0] if lines else "no message")


def run_compiler(
    compiler: Compiler, folder: Path, source: str, target: Path, timeout: float, objects: Path | None = None
) -> None:
    """Compile to `target` and load the result once. Raises BuildError.

    objects: the folder where ninja finds earlier objects and keeps those that it makes; only one process may use it at
    a time. None stands for a folder beside `target`.
    """
    deadline = time.monotonic() + timeout
    ninja = find_ninja()
    if ninja is None or not _run_ninja(ninja, compiler, folder, source, target, timeout, objects):
        # Where ninja failed, this call fails too, with the compiler's own message.
        left = deadline - time.monotonic()
        if left <= 0:
            raise BuildError(f"{ninja} did not end within {timeout:g} s")
        sources = [str(folder / unit) for unit in UNITS]
        command = [*compiler.command, *FLAGS, "-shared", f'-DHPCM_SOURCE="{source}"', *sources, "-o", str(target)]
        run(command, target.parent, left)
    try:
        library = ctypes.CDLL(str(target))
        said_source = source_of(library)
    except (OSError, AttributeError) as error:
        raise BuildError(f"what {compiler.command[0]} built cannot be loaded: {error}") from error
    # The library is unloaded again: a process dies when it reads a page of a mapped file that has been cut short.
    if hasattr(_ctypes, "dlclose"):
        _ctypes.dlclose(library._handle)
    if said_source != source:
        raise BuildError(f"{compiler.command[0]} built something else")


def _run_ninja(
    ninja: str, compiler: Compiler, folder: Path, source: str, target: Path, timeout: float, objects: Path | None
) -> bool:
    """Build `target` with ninja; returns whether that succeeded."""
    objects = objects or target.parent / "objects"
    objects.mkdir(exist_ok=True)
    # ninja compares times. A copy is written only where the bytes differ, so an older source that replaces a newer one
    # counts as a change. Names of copies have no folders either, so they need no quoting.
    for name in SOURCES:
        _write_changed(objects / name, (folder / name).read_bytes())
    _write_changed(objects / "build.ninja", ninja_file(compiler, source).encode())
    try:
        run([ninja, "-C", str(objects)], target.parent, timeout)
    except BuildError:
        return False
    shutil.copyfile(objects / "library", target)
    return True


def _write_changed(path: Path, data: bytes) -> None:
    if not path.exists() or path.read_bytes() != data:
        path.write_bytes(data)


def ninja_file(compiler: Compiler, source: str) -> str:
    """The text of build.ninja: an object for each unit, with the headers that the compiler reports, and one library."""

    def quoted(arguments: Sequence[str]) -> str:
        return shlex.join(arguments).replace("$", "$$")

    objects = {unit: Path(unit).with_suffix(".o").name for unit in UNITS}
    compile_, name = quoted([*compiler.command, *FLAGS]), quoted([f'-DHPCM_SOURCE="{source}"'])
    rules = (
        f"rule object\n  command = {compile_} $name -MD -MF $out.d -c $in -o $out\n  depfile = $out.d\n  deps = gcc\n"
        f"rule library\n  command = {compile_} -shared $in -o $out\n"
    )
    # Only source.cpp gets the hash of the sources, so that other units need not be compiled again when it changes.
    edges = [
        f"build {target}: object {unit}\n" + (f"  name = {name}\n" if unit == "source.cpp" else "")
        for unit, target in objects.items()
    ]
    return rules + "".join(edges) + f"build library: library {' '.join(objects.values())}\n"


def source_of(library: ctypes.CDLL) -> str:
    """The hash of the sources that a library was built from. Raises AttributeError where it has no such function."""
    library.hpcm_source.restype = ctypes.c_char_p
    return str(library.hpcm_source().decode())


@contextlib.contextmanager
def _locked(path: Path, timeout: float) -> Iterator[None]:
    """A context that holds the lock on `path`. Raises BuildError where it is not free within `timeout` seconds."""
    why_not = impossible()
    if why_not:
        raise BuildError(why_not)
    deadline = time.monotonic() + timeout
    # The lock is the system's, not the existence of a file, so it ends with its holder, however that process ends.
    with path.open("a") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    raise BuildError("another process is building the kernels") from None
                time.sleep(0.05)
            except (
                OSError
            ):  # a file system without locks: two builds at once cost time, and each publishes a whole file
                break
        yield


def build_cached(
    folder: Path, source: str, compiler: Compiler, cache: Path, *, timeout: float = TIMEOUT_SECONDS, wait: float = 0
) -> Path:
    """Build the library in the cache, unless another process has done so meanwhile; returns its path.

    wait: how many seconds another process that builds is waited for. Raises BuildError, and stores a compiler's failure
    where `failure` finds it.
    """

    def make(target: Path) -> None:
        run_compiler(compiler, folder, source, target, timeout)

    return publish(cache, f"{_stem(source)}-{compiler.key}", ".so", make, wait)


def publish(cache: Path, stem: str, suffix: str, make: Callable[[Path], None], wait: float) -> Path:
    """The undamaged file STEM-DIGEST.SUFFIX of the cache. Where there is none, `make` writes it, one process at a time.

    Raises BuildError. The message of an error that `make` raises is stored in STEM.failed, unless the disk is full.
    """
    from tempfile import TemporaryDirectory  # takes 3 ms, which finding a library should not cost

    failed = cache / f"{stem}.failed"
    try:
        reason = untrusted(cache, make=True)
        if reason:
            raise BuildError(reason)
        with _locked(cache / f"{stem}.lock", wait):
            there = whole(cache, f"{stem}-*{suffix}")
            if there:
                return there[0]
            for old in cache.glob(f"{_PARTIAL}{stem}-*"):  # left by builds that were killed
                shutil.rmtree(old, ignore_errors=True)
            with TemporaryDirectory(prefix=f"{_PARTIAL}{stem}-", dir=cache, ignore_cleanup_errors=True) as made:
                built = Path(made, f"kernels{suffix}")
                try:
                    make(built)
                except BuildError as error:
                    if not _passes(error, cache):
                        failed.write_text(str(error), encoding="utf-8")
                    raise
                target = cache / f"{stem}-{_digest(built)}{suffix}"
                built.chmod(0o700)
                built.replace(target)
            for damaged in set(cache.glob(f"{stem}-*{suffix}")) - {target}:
                damaged.unlink(missing_ok=True)
            failed.unlink(missing_ok=True)
            return target
    except OSError as error:
        raise BuildError(f"the cache {cache} cannot be written to: {error.strerror or error}") from error


def _passes(error: BuildError, folder: Path) -> bool:
    """Whether a build failed for want of disk or memory, which says nothing about the compiler."""
    free = getattr(os, "statvfs", None) and os.statvfs(folder)
    return bool(_WANT.search(error.output) or (free and free.f_bavail * free.f_frsize < _ROOM))


def prebuild(folder: Path, source: str, compiler: Compiler, timeout: float = TIMEOUT_SECONDS) -> Path:
    """Build the library beside the sources, replacing older ones, and keep the objects. Raises BuildError."""
    from tempfile import TemporaryDirectory

    kept = folder / OBJECTS
    try:
        kept.mkdir(exist_ok=True)
        with _locked(kept / "lock", timeout):
            # Files that killed builds left, and objects of other compilers.
            for old in set(kept.iterdir()) - {kept / "lock", kept / compiler.key}:
                shutil.rmtree(old, ignore_errors=True)
            with TemporaryDirectory(prefix=_PARTIAL, dir=kept) as made:
                built = Path(made, "kernels.so")
                run_compiler(compiler, folder, source, built, timeout, kept / compiler.key)
                target = folder / f"{prebuilt_stem(source)}-{_digest(built)}.so"
                built.replace(target)
        for old in set(folder.glob(f"{prebuilt_stem('*')}.so")) - {target}:
            old.unlink(missing_ok=True)
    except OSError as error:
        raise BuildError(f"{folder} cannot be written to: {error.strerror or error}") from error
    return target


def main(arguments: Sequence[str] | None = None) -> int:
    """Build where the argument says, `prebuild` or `cache`; returns the exit code, 1 where the build failed."""
    import argparse

    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("where", choices=["prebuild", "cache"])
    parser.add_argument("--optional", action="store_true", help="no compiler is no error")
    parser.add_argument("--idle", action="store_true", help="run only while nothing else wants the processor")
    options = parser.parse_args(arguments)
    if options.idle:
        with contextlib.suppress(AttributeError, OSError):
            os.nice(19)
            os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    try:
        folder = source_folder()
        source, compiler, cache = source_hash(folder), find_compiler(), cache_folder()
        if compiler is None:
            print("kernels: no C++ compiler found; the numpy reference will be used", file=sys.stderr)
            return 0 if options.optional else 1
        if options.where == "prebuild":
            there = prebuilt(folder, source)
            target = there if there and is_whole(there) else prebuild(folder, source, compiler)
        elif cache is None:
            raise BuildError("there is no cache directory: neither XDG_CACHE_HOME nor a home is set")
        else:
            target = build_cached(folder, source, compiler, cache)
        print(f"kernels: {target}", file=sys.stderr)
    except BuildError as error:
        print(f"kernels: {error}", file=sys.stderr)
        return 0 if options.optional else 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
