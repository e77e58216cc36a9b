"""One codec, one image, one process: times by phase and peak memory, printed as JSON.

    python -m hpcmcodec.evaluation.process encode CODEC IMAGE FILE --quality Q [--threads N] [--started SECONDS]
    python -m hpcmcodec.evaluation.process decode CODEC FILE IMAGE [--threads N] [--started SECONDS]

`run` starts such a process and adds the seconds that the whole of it took. CODEC is one of `codecs.CODECS`, or a model
of CompressAI (`compressai_models.MODELS`). The phases are in seconds and do not overlap:

    start-up      from the parent's call to the end of the imports
    load          weights, sessions, tables
    I/O           reading and writing of files, PNG included
    transform     hpcm: g_a and h_a, or g_s
    entropy path  hpcm: h_s and the context model, without rANS
    rANS          hpcm: the entropy coder
    coding        the rest of coding: for hpcm the container, for other codecs all of it
    other         the time between these

Peak memory is VmHWM, the largest amount of resident memory since the program was loaded. getrusage would also count the
parent's pages, which the process has before its program is loaded; it is asked where there is no VmHWM.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

PHASES = ("start-up", "load", "I/O", "transform", "entropy path", "rANS", "coding", "other")
THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
"""The variables from which numpy's BLAS, the light engine and torch take the number of their threads."""


class Phases:
    """Seconds by phase. The time of a phase inside another one counts for the inner one alone.

    started: when the process was started, in seconds of the monotonic clock.
    """

    def __init__(self, started: float) -> None:
        self.seconds = dict.fromkeys(PHASES, 0.0)
        self._stack = ["other"]
        self._since = time.monotonic()
        self.seconds["start-up"] = self._since - started

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Charge the time inside to the phase `name`."""
        self._charge()
        self._stack.append(name)
        try:
            yield
        finally:
            self._charge()
            self._stack.pop()

    def end(self) -> None:
        """Charge the time since the last change of phase to the present one."""
        self._charge()

    def _charge(self) -> None:
        now = time.monotonic()
        self.seconds[self._stack[-1]] += now - self._since
        self._since = now


def run(
    direction: str, codec: str, source: Path, target: Path, *, quality: float = 0, threads: int = 1
) -> dict[str, float]:
    """Run this module in a process; returns seconds by phase, "total" (seconds of the whole process) and "peak_bytes".

    Raises:
        subprocess.CalledProcessError: the process failed; the error's ``stderr`` says why.
    """
    start = time.monotonic()
    command = [sys.executable, "-m", __name__, direction, codec, str(source), str(target)]
    command += ["--quality", str(quality), "--threads", str(threads), "--started", repr(start)]
    environment = os.environ | dict.fromkeys(THREAD_VARIABLES, str(threads))
    done = subprocess.run(
        command, env=environment, check=True, capture_output=True, stdin=subprocess.DEVNULL, text=True
    )
    return {**json.loads(done.stdout), "total": time.monotonic() - start}


def peak_bytes() -> int:
    """Peak of this process's resident memory, in bytes; 0 where the system does not say."""
    try:
        for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
            if line.startswith("VmHWM:"):
                return 1024 * int(line.split()[1])
    except OSError:
        pass
    try:
        import resource
    except ImportError:  # Windows
        return 0
    unit = 1 if sys.platform == "darwin" else 1024
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def main() -> int:
    """Code one image or file; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m hpcmcodec.evaluation.process", description=__doc__.split("\n")[0])
    parser.add_argument("direction", choices=("encode", "decode"))
    parser.add_argument("codec")
    parser.add_argument("source", type=Path)
    parser.add_argument("target", type=Path)
    parser.add_argument("--quality", type=float, default=50)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--started", type=float, default=time.monotonic(), help="of the parent's monotonic clock")
    options = parser.parse_args()
    encode, decode, load = _coder(options.codec)
    from hpcmcodec import image, timing

    phases = Phases(options.started)
    with phases.phase("load"):
        load()
    if options.direction == "encode":
        with phases.phase("I/O"):
            pixels = image.plain(image.load(options.source, max_pixels=None)).pixels
        with phases.phase("coding"), timing.listening(phases.phase):
            data = encode(pixels, options.quality, options.threads)
        with phases.phase("I/O"):
            options.target.write_bytes(data)
    else:
        with phases.phase("I/O"):
            data = options.source.read_bytes()
        with phases.phase("coding"), timing.listening(phases.phase):
            pixels = decode(data, options.threads)
        with phases.phase("I/O"), options.target.open("wb") as file:
            image.write_png(image.to_image(image.Picture(pixels)), file)
    phases.end()
    print(json.dumps({**phases.seconds, "peak_bytes": peak_bytes()}))
    return 0


def _coder(name: str) -> tuple[Callable[..., bytes], Callable[..., Any], Callable[[], object]]:
    """The codec's encode and decode, and a function that loads it. Only what the codec needs is imported."""
    if name == "hpcm":
        import numpy as np

        from hpcmcodec import codec

        def encode(pixels: Any, quality: float, threads: int) -> bytes:
            return codec.encode(pixels, quality, max_pixels=None, max_side=None)

        def decode(data: bytes, threads: int) -> Any:
            return np.asarray(codec.decode(data, max_pixels=None, max_side=None))

        return encode, decode, lambda: None
    from hpcmcodec.evaluation.codecs import CODECS

    if name in CODECS:
        chosen = CODECS[name]
        return chosen.encode, chosen.decode, chosen.version  # asking for the version imports a plugin
    from hpcmcodec.evaluation.compressai_models import Model

    model = Model(name)
    return model.encode, model.decode, model.load


if __name__ == "__main__":
    sys.exit(main())
