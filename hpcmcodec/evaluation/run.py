"""What `hpcm eval` does: it measures codecs on images and writes a folder of tables, plots and result files.

measurements.jsonl    the measurements of every coded file, which a later run does not repeat (`store`)
memory.json           peak memory of the codecs, which a later run does not repeat either
results.json          averages, BD-rates and files, in CompressAI's schema (`results`)
results.csv           one line for each coded file
results.md            the tables, which are also printed
rd-METRIC.png, .svg   plots; rd-METRIC-dark.png, .svg for dark pages
"""

from __future__ import annotations

import json
import subprocess
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from hpcmcodec.errors import HpcmError, OutputError, UnsupportedError
from hpcmcodec.evaluation import process
from hpcmcodec.evaluation.codecs import CODECS, installed
from hpcmcodec.evaluation.evaluate import Photo, evaluate, find_photos
from hpcmcodec.evaluation.metrics import DEFAULT_METRICS, METRICS, MS_SSIM_SIDE
from hpcmcodec.evaluation.plots import THEMES, rd_plot
from hpcmcodec.evaluation.results import Series, from_records, read_series, to_csv, to_json, to_markdown
from hpcmcodec.evaluation.store import Store, write_whole

__all__ = ["parse_qualities", "run", "usable"]


def usable(codecs: Sequence[str], metrics: Sequence[str], say: Callable[[str], None]) -> tuple[list[str], list[str]]:
    """The codecs and the metrics that are installed; `say` is told what the others need."""
    here = installed(codecs, say)
    unmeasurable = {key: remedy for key in metrics if (remedy := METRICS[key].missing)}
    for key, remedy in unmeasurable.items():
        say(f"metric {key} is left out: {remedy}")
    return here, [key for key in metrics if key not in unmeasurable]


def parse_qualities(texts: Sequence[str]) -> dict[str, tuple[float, ...]]:
    """Texts such as `10,30,50` (for hpcm) and `jpeg=20,40` -> codec -> its qualities in rising order.

    Raises:
        ValueError: a codec is not known, a text is no list of numbers, or a quality is beyond what the codec takes.
    """
    result = {}
    for text in texts:
        key, _, numbers = text.rpartition("=")
        key = key or "hpcm"
        if key not in CODECS:
            raise ValueError(f"{key!r} is not one of {', '.join(CODECS)}")
        try:
            qualities = sorted({float(number) for number in numbers.split(",")})
        except ValueError:
            raise ValueError(f"numbers separated by commas are expected, found {numbers!r}") from None
        low, high, _ = CODECS[key].search
        if not all(low <= quality <= high for quality in qualities):  # not a number fails too
            raise ValueError(f"qualities of {key} are {low:g} to {high:g}, found {numbers}")
        result[key] = tuple(qualities)
    return result


def run(
    paths: Sequence[Path],
    folder: Path,
    *,
    codecs: Sequence[str],
    metrics: Sequence[str] | None,
    qualities: Mapping[str, Sequence[float]],
    anchors: Sequence[str],
    jobs: int,
    log: bool,
    max_pixels: int | None,
    say: Callable[[str], None],
    progress: Callable[[float], None] | None = None,
) -> str:
    """Measure, and write all files of `folder`; returns the tables.

    Args:
        paths: images, and folders of images.
        codecs, metrics: keys of `CODECS` and `METRICS`. One that is not installed is left out, and `say` is told so.
            Without metrics, `DEFAULT_METRICS` are measured, as far as they are defined for all images.
        qualities: codec -> qualities; a codec that is not named is measured at its default ones.
        anchors: for BD-rates, keys among `codecs` or paths of result files; none: every codec but the first.
        jobs: number of processes.
        log: whether plots have a logarithmic rate.
        max_pixels: the largest image that is read; None: no limit.
        say: called with lines for people.
        progress: called with the fraction of the work that is done, in [0, 1].

    Raises:
        InputError, UnsupportedError: an image or a result file cannot be used, or no codec or metric is left.
        OutputError: the folder cannot be written.
    """
    # Inputs first: a line on what is left out would only stand in the way of an error about them.
    photos = find_photos(paths, max_pixels)
    files = {anchor: read_series(Path(anchor)) for anchor in anchors if anchor not in CODECS}
    given = metrics is not None
    codecs, metrics = usable(codecs, DEFAULT_METRICS if metrics is None else metrics, say)
    if not codecs or not metrics:
        raise UnsupportedError(f"nothing to measure: no {'codec' if not codecs else 'metric'} is left")
    if not given and "ms-ssim" in metrics and any(min(p.width, p.height) < MS_SSIM_SIDE for p in photos):
        say(f"metric ms-ssim is left out: it needs images of {MS_SSIM_SIDE} pixels a side")
        metrics.remove("ms-ssim")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{folder}: {error.strerror or error}") from error
    plan = {key: tuple(qualities.get(key, CODECS[key].qualities)) for key in codecs}
    store = Store(folder / "measurements.jsonl")
    records = evaluate(photos, plan, metrics, store, jobs=jobs, max_pixels=max_pixels, progress=progress)
    largest = max(photos, key=lambda photo: photo.width * photo.height)
    peaks = _peaks(folder / "memory.json", largest, plan)
    series = from_records(records, metrics, peaks)
    chosen = _anchors(series, anchors, files)
    write_whole(folder / "results.json", to_json(series, chosen, metrics, photos, records))
    write_whole(folder / "results.csv", to_csv(photos, metrics, records))
    for metric in metrics:
        title = f"Averages over {len(photos)} image{'s' if len(photos) > 1 else ''}"
        shown = [*series.values(), *(each for each in chosen.values() if each not in series.values())]
        for theme in THEMES:
            for image_format in ("png", "svg"):
                name = f"rd-{metric}{'' if theme == 'light' else f'-{theme}'}.{image_format}"
                plot = rd_plot(shown, metric, title=title, theme=theme, log=log, image_format=image_format)
                write_whole(folder / name, plot)
    tables = to_markdown(series, chosen, metrics, len(photos), jobs)
    write_whole(folder / "results.md", tables)
    return tables


def _anchors(series: Mapping[str, Series], anchors: Sequence[str], files: Mapping[str, Series]) -> dict[str, Series]:
    if not anchors:
        return dict(list(series.items())[1:])
    result: dict[str, Series] = {}
    for anchor in anchors:
        if anchor in files:
            name = files[anchor].name
            result[name if name not in result and name not in series else anchor] = files[anchor]
        elif anchor in series:  # an anchor that is neither is a codec that is not installed
            result[anchor] = series[anchor]
    return result


def _peaks(path: Path, photo: Photo, plan: Mapping[str, Sequence[float]]) -> dict[str, tuple[int, int]]:
    """codec -> peak memory, in bytes, of encoding and of decoding the photo at the middle one of its qualities."""
    known: dict[str, list[int]] = {}
    if path.exists():
        try:
            known = json.loads(path.read_bytes())
        except ValueError:
            known = {}  # a damaged file is measured again
    result = {}
    for codec, qualities in plan.items():
        quality = qualities[len(qualities) // 2]
        key = " | ".join([photo.sha256, codec, CODECS[codec].settings, CODECS[codec].version(), f"{quality:g}"])
        if key not in known:
            with tempfile.TemporaryDirectory() as folder:
                coded, decoded = Path(folder, "coded"), Path(folder, "decoded.png")
                try:
                    encoding = process.run("encode", codec, photo.path, coded, quality=quality)
                    decoding = process.run("decode", codec, coded, decoded)
                except subprocess.CalledProcessError as error:
                    raise HpcmError(f"{photo.name}, {CODECS[codec].name}: {error.stderr.strip()}") from error
            known[key] = [int(each["peak_bytes"]) for each in (encoding, decoding)]
            write_whole(path, json.dumps(known, indent=1) + "\n")
        result[codec] = (known[key][0], known[key][1])
    return result
