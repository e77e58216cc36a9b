"""Makes curves, BD-rates and tables from records, and reads and writes CompressAI's JSON schema.

The schema of CompressAI's result files is `name`, `description`, and `results`: lists with one value for each quality,
which is the mean over the images. `results.json` has it at its top level for the first codec, and for every codec under
`codecs`, so that tools made for CompressAI's files can read it; this module can read their files too. MS-SSIM is
averaged before it is converted to dB, as in CompressAI's plots.

There are two kinds of BD-rate, which differ and are both in use: that of the averaged curves, and the mean over the
images of each image's own.
"""

from __future__ import annotations

import csv
import io
import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from hpcmcodec.container import take
from hpcmcodec.errors import InputError
from hpcmcodec.evaluation.codecs import CODECS
from hpcmcodec.evaluation.evaluate import Photo
from hpcmcodec.evaluation.metrics import METRICS, BDRate, Curve, bd_rate
from hpcmcodec.evaluation.store import Record

__all__ = [
    "Comparison",
    "Difference",
    "Series",
    "compare",
    "difference",
    "from_records",
    "read_series",
    "table",
    "to_csv",
    "to_json",
    "to_markdown",
]

_KEYS = {"psnr": ("psnr-rgb", "psnr"), "ms-ssim": ("ms-ssim-rgb", "ms-ssim"), "ssimulacra2": ("ssimulacra2",)}
_SAMPLES = 2000  # bootstrap samples
_MAX_RESULTS = 1 << 24  # bytes of a result file, far more than any has


@dataclass(frozen=True)
class Series:
    """Means over the images of one codec, with a value for each quality.

    Attributes:
        name, description: as in CompressAI's schema.
        bpp: bits per pixel.
        scores: metric -> values as result files hold them.
        qualities: empty for series from files.
        seconds: of encoding and of decoding an image.
        images: SHA-256 of an image -> metric -> the curve of this image, with scores as plots show them; empty for
            series from files.
        encode_mps, decode_mps: megapixels a second, None for series from files.
        peak_bytes: peak memory of a whole process that encodes and of one that decodes, None where it was not measured.
    """

    name: str
    description: str
    bpp: tuple[float, ...]
    scores: Mapping[str, tuple[float, ...]]
    qualities: tuple[float, ...] = ()
    seconds: tuple[tuple[float, ...], tuple[float, ...]] = ((), ())
    images: Mapping[str, Mapping[str, Curve]] = field(default_factory=dict)
    encode_mps: float | None = None
    decode_mps: float | None = None
    peak_bytes: tuple[int, int] | None = None

    def curve(self, metric: str) -> Curve:
        """The averaged curve of a metric, with scores as plots show them."""
        return Curve(self.bpp, [METRICS[metric].shown(score) for score in self.scores[metric]])

    def as_json(self) -> dict[str, Any]:
        """The series in CompressAI's schema."""
        results: dict[str, list[float]] = {"quality": list(self.qualities), "bpp": list(self.bpp)}
        results |= {METRICS[metric].key: list(scores) for metric, scores in self.scores.items()}
        results |= dict(zip(("encoding_time", "decoding_time"), map(list, self.seconds), strict=True))
        return {"name": self.name, "description": self.description, "results": results}


@dataclass(frozen=True)
class Comparison:
    """BD-rates of a series against an anchor under one metric.

    Attributes:
        averaged: the BD-rate of the averaged curves, or the reason why there is none.
        images: SHA-256 of an image -> the BD-rate of its own curves.
        refused: SHA-256 of an image -> the reason why it has no BD-rate.
    """

    averaged: BDRate | str
    images: Mapping[str, BDRate]
    refused: Mapping[str, str]


def from_records(
    records: Sequence[Record], metrics: Sequence[str], peaks: Mapping[str, tuple[int, int]] | None = None
) -> dict[str, Series]:
    """Codec -> its averages over the images, with codecs in the order of their first records.

    Args:
        records: those of each codec have the same qualities on every image.
        metrics: keys of `METRICS`.
        peaks: codec -> peak memory in bytes, encoding and decoding.
    """
    result = {}
    for key in dict.fromkeys(record.codec for record in records):
        mine = [record for record in records if record.codec == key]
        qualities = sorted({record.quality for record in mine})
        at = [[record for record in mine if record.quality == quality] for quality in qualities]
        images: dict[str, dict[str, Curve]] = {}
        for digest in dict.fromkeys(record.sha256 for record in mine):
            own = sorted((r for r in mine if r.sha256 == digest), key=lambda r: r.quality)
            images[digest] = {
                metric: Curve([r.bpp for r in own], [METRICS[metric].shown(r.scores[metric]) for r in own])
                for metric in metrics
            }
        megapixels = sum(record.width * record.height for record in mine) / 1e6
        result[key] = Series(
            CODECS[key].name,
            f"{CODECS[key].settings}; {mine[0].version}; averages over {_images(len(images))}",
            tuple(statistics.fmean(r.bpp for r in group) for group in at),
            {metric: tuple(statistics.fmean(r.scores[metric] for r in group) for group in at) for metric in metrics},
            tuple(qualities),
            (
                tuple(statistics.fmean(r.encode_seconds for r in group) for group in at),
                tuple(statistics.fmean(r.decode_seconds for r in group) for group in at),
            ),
            images,
            megapixels / sum(r.encode_seconds for r in mine),
            megapixels / sum(r.decode_seconds for r in mine),
            (peaks or {}).get(key),
        )
    return result


def read_series(path: Path) -> Series:
    """A codec's averages from a result file in CompressAI's schema, `results.json` included.

    Raises:
        InputError: the file is not there, or not of this schema.
    """
    try:
        with path.open("rb") as file:
            content = json.loads(take(file, _MAX_RESULTS))  # a longer file, perhaps endless, is cut and then is no JSON
        results = content["results"]
        bpp = tuple(map(float, results["bpp"]))
        scores = {
            metric: tuple(map(float, next(results[key] for key in keys if key in results)))
            for metric, keys in _KEYS.items()
            if any(key in results for key in keys)
        }
        name, description = str(content["name"]), str(content.get("description", ""))
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}") from error
    except (KeyError, TypeError, ValueError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise InputError(f"{path}: not a result file in CompressAI's schema ({reason})") from error
    if not scores or any(len(values) != len(bpp) for values in scores.values()):
        raise InputError(f"{path}: needs bpp and a metric ({', '.join(_KEYS)}) with as many values")
    return Series(name, description, bpp, scores)


def compare(anchor: Series, test: Series, metric: str) -> Comparison:
    """BD-rates of `test` against `anchor`: that of the averaged curves, and one for each image that both measured."""
    if not (metric in anchor.scores and metric in test.scores):
        return Comparison("not measured", {}, {})
    averaged = bd_rate_in(anchor.curve(metric), test.curve(metric), metric)
    own = {
        digest: bd_rate_in(anchor.images[digest][metric], curves[metric], metric)
        for digest, curves in test.images.items()
        if digest in anchor.images
    }
    return Comparison(
        averaged,
        {digest: each for digest, each in own.items() if isinstance(each, BDRate)},
        {digest: each for digest, each in own.items() if isinstance(each, str)},
    )


def bd_rate_in(anchor: Curve, test: Curve, metric: str) -> BDRate | str:
    """The BD-rate in a metric, over the scores that it is averaged over; why there is none, in words."""
    try:
        return bd_rate(anchor, test, between=METRICS[metric].between)
    except ValueError as error:
        return str(error)


def to_json(
    series: Mapping[str, Series],
    anchors: Mapping[str, Series],
    metrics: Sequence[str],
    photos: Sequence[Photo],
    records: Sequence[Record],
) -> str:
    """The text of `results.json`."""
    names = {photo.sha256: photo.name for photo in photos}
    entries = {key: each.as_json() for key, each in series.items()}
    rates: dict[str, Any] = {}
    for metric in metrics:
        for anchor_key, anchor in anchors.items():
            for key, test in series.items():
                if test is not anchor:
                    found = compare(anchor, test, metric)
                    rates.setdefault(metric, {}).setdefault(anchor_key, {})[key] = {
                        "averaged_curves": _jsonable(found.averaged),
                        "images": {names[digest]: _jsonable(each) for digest, each in found.images.items()},
                        "refused": {names[digest]: reason for digest, reason in found.refused.items()},
                    }
    content = {
        **next(iter(entries.values())),
        "codecs": entries,
        "anchors": {key: anchor.as_json() for key, anchor in anchors.items() if key not in series},
        "bd_rate": rates,
        "megapixels_per_second": {
            key: {"encode": each.encode_mps, "decode": each.decode_mps} for key, each in series.items()
        },
        "peak_bytes": {
            key: dict(zip(("encode", "decode"), each.peak_bytes, strict=True))
            for key, each in series.items()
            if each.peak_bytes
        },
        "images": [
            {"name": photo.name, "sha256": photo.sha256, "width": photo.width, "height": photo.height}
            for photo in photos
        ],
        "files": [
            {
                "image": names[record.sha256],
                "codec": record.codec,
                "quality": record.quality,
                "bytes": record.n_bytes,
                **{METRICS[metric].key: record.scores[metric] for metric in metrics},
            }
            for record in records
        ],
        "metric_versions": {metric: records[0].metric_versions[metric] for metric in metrics},
    }
    return json.dumps(_finite(content), indent=1, allow_nan=False) + "\n"


def _finite(value: Any) -> Any:
    """A JSON value in which null stands for numbers that JSON lacks, such as the infinite PSNR of an equal picture."""
    if isinstance(value, dict):
        return {key: _finite(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _jsonable(rate: BDRate | str) -> dict[str, Any]:
    return {"refused": rate} if isinstance(rate, str) else dict(rate._asdict())


def to_csv(photos: Sequence[Photo], metrics: Sequence[str], records: Sequence[Record]) -> str:
    """The text of `results.csv`: a heading, and a line for each coded file."""
    names = {photo.sha256: photo.name for photo in photos}
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    head = ["image", "width", "height", "codec", "quality", "bytes", "bpp"]
    writer.writerow([*head, *(METRICS[metric].key for metric in metrics), "encode_seconds", "decode_seconds"])
    for r in records:
        values = [f"{r.scores[metric]:.6f}" for metric in metrics]
        seconds = [f"{r.encode_seconds:.4f}", f"{r.decode_seconds:.4f}"]
        head = [names[r.sha256], str(r.width), str(r.height), r.codec, f"{r.quality:g}", str(r.n_bytes), f"{r.bpp:.6f}"]
        writer.writerow([*head, *values, *seconds])
    return text.getvalue()


def to_markdown(
    series: Mapping[str, Series], anchors: Mapping[str, Series], metrics: Sequence[str], n_images: int, jobs: int
) -> str:
    """The tables: settings and speed, BD-rates of the averaged curves and image by image, rate and distortion."""
    lines = [f"{_images(n_images)[0].upper()}{_images(n_images)[1:]}. Files hold the picture alone.", ""]
    lines += table(
        ["codec", "settings", "encode, MP/s", "decode, MP/s", "peak MB, encode", "decode"],
        [
            [
                each.name,
                each.description.rpartition("; ")[0],
                f"{each.encode_mps:.2f}",
                f"{each.decode_mps:.2f}",
                *([f"{n / 1e6:.0f}" for n in each.peak_bytes] if each.peak_bytes else ["", ""]),
            ]
            for each in series.values()
        ],
    )
    together = "" if jobs == 1 else f", {jobs} images at a time"
    lines += [
        "",
        f"Speed: one thread{together}, all qualities, between pixels in memory and bytes in memory. "
        "Memory: whole process, the largest image once.",
    ]
    shown = {**{key: each for key, each in anchors.items() if key not in series}, **series}
    for metric in metrics:
        columns = [anchor for anchor in anchors.values() if metric in anchor.scores]
        rows = [
            [each.name, *("" if each is anchor else _rate_cell(anchor, each, metric) for anchor in columns)]
            for each in shown.values()
            if metric in each.scores
        ]
        if rows and columns:
            title = f"BD-rate, {METRICS[metric].label.replace(' (dB)', '')}, averaged curves"
            lines += ["", *table([title, *(f"against {anchor.name}" for anchor in columns)], rows)]
        lines += _per_image(series, anchors, metric)
    lines += ["", *_averages(series, metrics)]
    return "\n".join(lines) + "\n"


def _rate_cell(anchor: Series, test: Series, metric: str) -> str:
    found = compare(anchor, test, metric).averaged
    if isinstance(found, str):
        return f"none: {found}"
    decimals, unit = METRICS[metric].decimals - 1, METRICS[metric].unit
    return f"{found.percent:+.2f}% ({found.low:.{decimals}f} to {found.high:.{decimals}f}{unit})"


def _per_image(series: Mapping[str, Series], anchors: Mapping[str, Series], metric: str) -> list[str]:
    """A table of BD-rates of single images: the first codec against each anchor that was measured."""
    test = next(iter(series.values()))
    rows = []
    for anchor in anchors.values():
        found = compare(anchor, test, metric)
        percents = [each.percent for each in found.images.values()]
        if percents and anchor is not test:
            left_out = f"{len(found.refused)} left out" if found.refused else "all"
            spread = [f"{value:+.1f}%" for value in (statistics.fmean(percents), min(percents), max(percents))]
            rows.append([anchor.name, *spread, left_out])
    if not rows:
        return []
    title = f"{test.name}, BD-rate of each image, {METRICS[metric].label.replace(' (dB)', '')}"
    return ["", *table([title, "mean", "best", "worst", "images"], rows)]


def _averages(series: Mapping[str, Series], metrics: Sequence[str]) -> list[str]:
    rows = []
    for each in series.values():
        for i, (quality, bpp) in enumerate(zip(each.qualities, each.bpp, strict=True)):
            scores = [f"{each.curve(m).score[i]:.{METRICS[m].decimals}f}" for m in metrics]
            rows.append([each.name, f"{quality:g}", f"{bpp:.3f}", *scores])
    return table(["codec", "quality", "bpp", *(METRICS[metric].label for metric in metrics)], rows)


class Difference(NamedTuple):
    """The mean relative difference of the second's values from the first's, and its 95% interval."""

    mean: float
    low: float
    high: float

    def line(self) -> str:
        verdict = "" if self.low <= 0 <= self.high else ": a difference"
        return f"{self.mean:+.2%} [{self.low:+.2%}, {self.high:+.2%}]{verdict}"


def difference(first: Sequence[float], second: Sequence[float]) -> Difference:
    """Of paired positive values, through the mean of the logarithms of their ratios."""
    ratios = np.log(np.asarray(second, float) / np.asarray(first, float))
    drawn = np.random.RandomState(0).randint(0, len(ratios), (_SAMPLES, len(ratios)))
    low, high = np.percentile(ratios[drawn].mean(1), (2.5, 97.5))
    return Difference(*(math.expm1(v) for v in (ratios.mean(), low, high)))


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a Markdown table."""
    return [f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows)]


def _images(count: int) -> str:
    return "1 image" if count == 1 else f"{count} images"
