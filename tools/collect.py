"""Makes the small result files that are committed from the measurements of an evaluation, which are not.

    hpcm eval path/to/kodak --codecs hpcm,hpcm-slow,jpeg,... --metrics psnr,ms-ssim -o evaluation
    python -m tools collect evaluation path/to/kodak -o docs/results/kodak.json
    python -m tools published docs/results/kodak.json path/to/vtm.json ... -o docs/results/kodak-published.json

`collect` keeps the bytes and the scores of every coded file, and the mean times. Run it on the machine of the
evaluation, since the result file names the machine. `published` compares with tables that others have published and
that are not part of this repository. It keeps only the BD-rates, with the name and the source of each table.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from hpcmcodec.errors import InputError
from hpcmcodec.evaluation.codecs import CODECS
from hpcmcodec.evaluation.evaluate import Photo, find_photos
from hpcmcodec.evaluation.metrics import METRICS, BDRate
from hpcmcodec.evaluation.results import Series, compare, from_records, read_series
from hpcmcodec.evaluation.store import Record, Store
from tools import facts

OURS = ("hpcm", "hpcm-slow")
"""The codecs that the page of results is about."""

KODAK_IMAGES = 24
"""Published tables are averages over all Kodak images, and cannot be compared with averages over fewer."""

_DECIMALS = {"psnr": 4, "ms-ssim": 6, "ssimulacra2": 3, "butteraugli": 4}  # too fine to change a BD-rate of one decimal


@click.command("collect")
@click.argument("evaluation", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.argument("paths", metavar="IMAGE...", nargs=-1, required=True, type=click.Path(exists=True, path_type=Path))
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), metavar="JSON")
@click.option("--commit", help="Of the code that measured.  [default: the checkout's]")
@click.option("--note", help="A sentence on the circumstances, for the page of results.")
def collect(evaluation: Path, paths: tuple[Path, ...], output: Path, commit: str | None, note: str | None) -> None:
    """Keep what `hpcm eval` has measured in the folder EVALUATION on the images (or folders of images) named."""
    photos = find_photos(paths, None)
    content = collected(list(Store(evaluation / "measurements.jsonl")), photos)
    command = _command(content["codecs"], content["metrics"], [path.name for path in paths])
    facts.write(output, facts.about(command, commit) | ({"note": note} if note else {}) | content)
    click.echo(f"{output}: {', '.join(content['codecs'])} on {len(photos)} images")


@click.command("published")
@click.argument("measured", type=click.Path(exists=True, path_type=Path))
@click.argument("tables", nargs=-1, required=True, type=click.Path(exists=True, path_type=Path))
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), metavar="JSON")
def published(measured: Path, tables: tuple[Path, ...], output: Path) -> None:
    """BD-rates of the result file MEASURED against published TABLES in CompressAI's JSON schema."""
    content = facts.read(measured)
    series = series_of(content)
    if len(content["images"]) != KODAK_IMAGES:
        raise InputError(
            f"{measured}: measured on {len(content['images'])} images, while published tables are averages over "
            f"{KODAK_IMAGES}: measure all Kodak images first"
        )
    rates = []
    for table in tables:
        anchor = read_series(table)
        for metric in (m for m in METRICS if m in anchor.scores):
            for key in (k for k in OURS if k in series and metric in series[k].scores):
                rate = compare(anchor, series[key], metric).averaged
                rates.append({"against": anchor.name, "metric": metric, "codec": key, **_rounded(rate)})
                rates[-1]["source"] = anchor.description.partition("source ")[2] or anchor.description
    names = " ".join(f"path/to/{table.name}" for table in tables)
    told = f"python -m tools published docs/results/{measured.name} {names}"
    facts.write(output, facts.about(told) | {"rates": rates})
    click.echo(f"{output}: {len(rates)} BD-rates")


def collected(records: Sequence[Record], photos: Sequence[Photo]) -> dict[str, Any]:
    """The latest record of every image, codec and quality, in the form of a result file (docs/results/README.md).

    Raises:
        InputError: there is no record of these images, or a codec was not measured at the same qualities, with the same
            settings and version, on each of them.
    """
    wanted = {photo.sha256 for photo in photos}
    latest = {(r.codec, r.quality, r.sha256): r for r in records if r.sha256 in wanted}
    if not latest:
        raise InputError(f"no measurements of these {len(photos)} images: `hpcm eval` has not measured them there")
    codecs: dict[str, Any] = {}
    for codec in (key for key in CODECS if any(key == k[0] for k in latest)):
        mine = [r for r in latest.values() if r.codec == codec]
        kinds = {(r.settings, r.version) for r in mine}
        if len(kinds) > 1:
            raise InputError(f"{codec} was measured in several versions: {'; '.join(sorted(v for _, v in kinds))}")
        ((settings, version),) = kinds
        qualities = sorted({r.quality for r in mine})
        gaps = [(q, photo.name) for q in qualities for photo in photos if (codec, q, photo.sha256) not in latest]
        if gaps:
            raise InputError(f"{codec} at quality {gaps[0][0]:g} was not measured on {gaps[0][1]}; {len(gaps)} gaps")
        at = [[latest[codec, q, photo.sha256] for photo in photos] for q in qualities]
        metrics = [m for m in METRICS if all(m in r.scores for r in mine)]
        codecs[codec] = {
            "settings": settings,
            "version": version,
            "quality": qualities,
            "bytes": [[r.n_bytes for r in row] for row in at],
            **{m: [[round(r.scores[m], _DECIMALS[m]) for r in row] for row in at] for m in metrics},
            "encode_seconds": [round(statistics.fmean(r.encode_seconds for r in row), 4) for row in at],
            "decode_seconds": [round(statistics.fmean(r.decode_seconds for r in row), 4) for row in at],
        }
    shared = [m for m in METRICS if all(m in each for each in codecs.values())]
    versions = next(iter(latest.values())).metric_versions
    return {
        "metrics": {m: versions[m] for m in shared},
        "images": [
            {"name": photo.name, "width": photo.width, "height": photo.height, "sha256": photo.sha256}
            for photo in photos
        ],
        "codecs": codecs,
    }


def series_of(content: Mapping[str, Any]) -> dict[str, Series]:
    """The curves of a result file that `collect` has made, by codec.

    Raises:
        InputError: the content is not that of such a file.
    """
    try:
        metrics = list(content["metrics"])
        records = [
            Record(
                image["sha256"],
                image["width"],
                image["height"],
                codec,
                each["settings"],
                each["version"],
                quality,
                each["bytes"][i][j],
                {m: each[m][i][j] for m in metrics},
                dict(content["metrics"]),
                each["encode_seconds"][i],
                each["decode_seconds"][i],
            )
            for codec, each in content["codecs"].items()
            for j, image in enumerate(content["images"])
            for i, quality in enumerate(each["quality"])
        ]
        return from_records(records, metrics)
    except (KeyError, IndexError, TypeError, AttributeError) as error:
        raise InputError(f"not a result file of `collect`: {type(error).__name__}: {error}") from error


def _command(codecs: Mapping[str, Any], metrics: Mapping[str, Any], names: Sequence[str]) -> str:
    """The `hpcm eval` command that measures the same, with placeholders for the folders of images."""
    paths = " ".join(f"path/to/{name}" for name in names)
    parts = [f"hpcm eval {paths} --codecs {','.join(codecs)}"]
    for codec, each in codecs.items():
        if tuple(each["quality"]) != CODECS[codec].qualities:
            parts.append(f"--qualities {codec}={','.join(f'{q:g}' for q in each['quality'])}")
    return " ".join([*parts, f"--metrics {','.join(metrics)}", "-o evaluation"])


def _rounded(rate: BDRate | str) -> dict[str, Any]:
    if isinstance(rate, str):
        return {"refused": rate}
    return {"percent": round(rate.percent, 2), "low": round(rate.low, 2), "high": round(rate.high, 2)}
