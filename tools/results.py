"""docs/RESULTS.md and its plots, made from the result files in docs/results and from nothing else.

    python -m tools results            # writes the page and the plots
    python -m tools results --check    # says whether they are what the result files give

Every table names the command that measured it. Beside it stand machine, versions, commit and model, as the result file
has them.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from hpcmcodec.evaluation.codecs import CODECS
from hpcmcodec.evaluation.metrics import METRICS, BDRate
from hpcmcodec.evaluation.plots import THEMES, rd_plot
from hpcmcodec.evaluation.results import Comparison, Series, compare, table
from hpcmcodec.evaluation.store import write_whole
from tools import bench, facts, family, previews, speed, twins
from tools.collect import OURS, series_of

PAGE = "RESULTS.md"

_HEAD = """# Results

This page and its plots are made by one command, `python -m tools results`, from the files in
[`results/`](results/), which hold the bytes and the scores of every coded file. Do not edit it by hand.
[`results/README.md`](results/README.md) says how the files are made anew.
"""

_BD_RATE = """BD-rate is how much larger (+) or smaller (-) the files of `hpcm` are at the same {label}, averaged over
the range that two curves share. "Averaged curves" compares the means over all images, "mean of the images" is the mean
of each image's own BD-rate. Best and worst are single images, so a plus in the last column names a loss."""


@click.command("results")
@click.option("--check", is_flag=True, help="Write nothing; the exit code is 1 where a file would change.")
def command(check: bool) -> None:
    """Make docs/RESULTS.md and its plots from the files in docs/results."""
    docs = facts.RESULTS.parent
    made = {PAGE: page(facts.RESULTS).encode(), **plots(facts.RESULTS)}
    stale = [name for name, data in made.items() if not (docs / name).exists() or (docs / name).read_bytes() != data]
    if check:
        click.echo(f"not what the result files give: {', '.join(stale)}" if stale else "all is as the files give it")
        click.get_current_context().exit(1 if stale else 0)
    for name in stale:
        write_whole(docs / name, made[name])
        click.echo(docs / name)


def plots(folder: Path) -> dict[str, bytes]:
    """File name -> SVG: rate and distortion on Kodak, one plot for each metric and theme. Needs matplotlib.

    Raises:
        InputError: a result file is missing or damaged.
    """
    content = facts.read(folder / "kodak.json")
    series = list(series_of(content).values())
    title = f"Averages over {len(content['images'])} Kodak images"
    return {
        plot_name(metric, theme): rd_plot(series, metric, title=title, theme=theme, image_format="svg")
        for metric in content["metrics"]
        for theme in THEMES
    }


def plot_name(metric: str, theme: str) -> str:
    """The file name of a plot. `rd-kodak.svg` is that of PSNR in the light theme, other names say what differs."""
    return f"rd-kodak{'' if metric == 'psnr' else f'-{metric}'}{'' if theme == 'light' else f'-{theme}'}.svg"


def page(folder: Path) -> str:
    """The text of docs/RESULTS.md.

    Raises:
        InputError: a result file is missing or damaged.
    """
    content = facts.read(folder / "kodak.json")
    series = series_of(content)
    metrics = list(content["metrics"])
    names = _names(content)
    others = [key for key in series if key not in OURS]
    lines = [_HEAD, "## Rate and distortion on Kodak", ""]
    lines += [f"{len(names)} of the 24 Kodak images, whole files, decoded and compared with the original in RGB.", ""]
    lines += _source(content)
    for metric in metrics:
        lines += ["", _picture(metric)]
    lines += ["", *_codecs(content, series)]
    lines += _bd_rates(content, series)
    lines += _published(folder / "kodak-published.json")
    lines += ["", "### Averages", "", *_averages(series, metrics)]
    lines += ["", "### BD-rate of each image, PSNR", "", *_by_image(series, others, names)]
    if (folder / "held-out.json").exists():
        lines += ["", *_held_out(facts.read(folder / "held-out.json"))]
    for name, section in (
        ("previews.json", _previews),
        ("commands.json", _commands),
        ("sizes.json", _sizes),
        ("family.json", _family),
        ("imports.json", _imports),
        ("twins.json", _twins),
    ):
        if (folder / name).exists():
            lines += ["", *section(facts.read(folder / name))]
    return "\n".join(lines) + "\n"


def _source(content: Mapping[str, Any]) -> list[str]:
    versions = ", ".join(f"{name} {version}" for name, version in content["versions"].items())
    return [
        "```sh",
        content["command"],
        "```",
        "",
        f"Model {content['model']}, commit {content['commit']}, {content['machine']}.",
        f"Versions: {versions}.",
        *([content["note"]] if "note" in content else []),
    ]


def _picture(metric: str) -> str:
    return (
        f'<picture><source media="(prefers-color-scheme: dark)" srcset="{plot_name(metric, "dark")}">'
        f'<img alt="{_label(metric)} against bits per pixel on Kodak" src="{plot_name(metric, "light")}"></picture>'
    )


def _label(metric: str) -> str:
    return METRICS[metric].label.replace(" (dB)", "")


def _codecs(content: Mapping[str, Any], series: Mapping[str, Series]) -> list[str]:
    rows = [
        [each.name, content["codecs"][key]["settings"], content["codecs"][key]["version"], *_speeds(each)]
        for key, each in series.items()
    ]
    head = ["codec", "settings", "version", "encode, MP/s", "decode, MP/s"]
    note = (
        "Speed is megapixels a second in one thread, between pixels in memory and bytes in memory, over all qualities."
    )
    return [*table(head, rows), "", note]


def _speeds(series: Series) -> list[str]:
    return [f"{value:.2f}" if value is not None else "" for value in (series.encode_mps, series.decode_mps)]


def _bd_rates(content: Mapping[str, Any], series: Mapping[str, Series], where: str = "") -> list[str]:
    """For each metric a heading that ends with `where`, and the tables of this project's codecs against the others."""
    names = _names(content)
    lines: list[str] = []
    for metric in content["metrics"]:
        label = _label(metric)
        lines += ["", f"### BD-rate, {label}{where}", "", _BD_RATE.format(label=label)]
        for key in (key for key in OURS if key in series):
            lines += ["", *_against(series, key, metric, names)]
    return lines


def _against(series: Mapping[str, Series], key: str, metric: str, names: Mapping[str, str]) -> list[str]:
    others = [*(k for k in OURS if k in series and k != key and key != OURS[0]), *(k for k in series if k not in OURS)]
    rows = []
    for other in others:
        found = compare(series[other], series[key], metric)
        rows.append([f"{series[other].name}", _averaged(found, metric), *_spread(found, names)])
    head = [f"{series[key].name} against", "averaged curves", "mean of the images", "best image", "worst image"]
    return table(head, rows)


def _names(content: Mapping[str, Any]) -> dict[str, str]:
    """The images' names by their digests."""
    return {image["sha256"]: image["name"] for image in content["images"]}


def _held_out(content: Mapping[str, Any]) -> list[str]:
    """The section on the photographs that choices were made on."""
    series = series_of(content)
    text = (
        f"{len(content['images'])} photographs that were held out of training. Settings were chosen on them, so the "
        "figures flatter; [the model card](../weights/MODEL_CARD.md) has their sources."
    )
    ours = {key: each for key, each in series.items() if key in OURS}
    return [
        "## The held-out photographs",
        "",
        text,
        "",
        *_source(content),
        *_bd_rates(content, series, " on the held-out photographs"),
        "",
        "### Averages on the held-out photographs",
        "",
        *_averages(ours, list(content["metrics"])),
    ]


def _averaged(found: Comparison, metric: str) -> str:
    if isinstance(found.averaged, str):
        return f"none: {found.averaged}"
    unit = METRICS[metric].unit
    return f"{found.averaged.percent:+.1f}% ({found.averaged.low:.1f} to {found.averaged.high:.1f}{unit})"


def _spread(found: Comparison, names: Mapping[str, str]) -> list[str]:
    if not found.images:
        return ["none"] * 3
    percent = {names[digest]: rate.percent for digest, rate in found.images.items()}
    best, worst = min(percent, key=lambda n: percent[n]), max(percent, key=lambda n: percent[n])
    left_out = f" ({len(found.refused)} images left out)" if found.refused else ""
    return [
        f"{statistics.fmean(percent.values()):+.1f}%{left_out}",
        *(f"{percent[name]:+.1f}% ({Path(name).stem})" for name in (best, worst)),
    ]


def _published(path: Path) -> list[str]:
    """The section on published codecs, made from BD-rates, since the tables are not part of the repository."""
    if not path.exists():
        return []
    content = facts.read(path)
    rates: dict[tuple[str, str, str], dict[str, str]] = {}
    for each in content["rates"]:
        cell = each.get("refused") or f"{each['percent']:+.1f}% ({each['low']:.1f} to {each['high']:.1f} dB)"
        rates.setdefault((each["against"], each["metric"], each["source"]), {})[each["codec"]] = cell
    keys = [key for key in OURS if any(key in cells for cells in rates.values())]
    rows = [
        [against, _label(metric), *(cells.get(key, "") for key in keys), source]
        for (against, metric, source), cells in rates.items()
    ]
    text = (
        "Averaged curves against tables that others have published for Kodak. The tables are not part of this "
        "repository; the last column says where they are published."
    )
    return [
        "",
        "### BD-rate against published tables",
        "",
        text,
        "",
        "```sh",
        content["command"],
        "```",
        "",
        *table(["against", "metric", *(CODECS[key].name for key in keys), "table"], rows),
    ]


def _averages(series: Mapping[str, Series], metrics: Sequence[str]) -> list[str]:
    rows = [
        [each.name, f"{quality:g}", f"{each.bpp[i]:.3f}"]
        + [f"{each.curve(metric).score[i]:.{METRICS[metric].decimals}f}" for metric in metrics]
        for each in series.values()
        for i, quality in enumerate(each.qualities)
    ]
    return table(["codec", "quality", "bits per pixel", *(METRICS[metric].label for metric in metrics)], rows)


def _by_image(series: Mapping[str, Series], others: Sequence[str], names: Mapping[str, str]) -> list[str]:
    test = series[OURS[0]]
    found = {other: compare(series[other], test, "psnr") for other in others}
    slow = OURS[1] in series
    if slow:
        found[OURS[1]] = compare(test, series[OURS[1]], "psnr")
    head = ["image", *(f"hpcm against {series[other].name}" for other in others)]
    head += ["effort 9 against none"] if slow else []
    rows = [[Path(name).stem, *(_cell(each, digest) for each in found.values())] for digest, name in names.items()]
    return table(head, rows)


def _cell(found: Comparison, digest: str) -> str:
    rate = found.images.get(digest)
    return f"{rate.percent:+.1f}%" if isinstance(rate, BDRate) else found.refused.get(digest, "none")


def _previews(content: Mapping[str, Any]) -> list[str]:
    text = "PSNR of what the first scales of a file give, averages over the images."
    tables = previews.markdown(content["psnr"], content["qualities"])
    return ["## Previews", "", text, "", *_source(content), "", tables]


def _commands(content: Mapping[str, Any]) -> list[str]:
    text = (
        'Whole commands from start to exit, medians; the unit is `python -c "import torch"` on the same machine, in '
        "the same run."
    )
    return ["## Whole commands", "", text, "", *_source(content), "", speed.markdown(content["seconds"])]


def _family(content: Mapping[str, Any]) -> list[str]:
    text = (
        "Members of [the family](FAMILY.md) at full size with random weights, coding 768 x 512 pixels in one process: "
        "medians, means of the ratios of turns with their 95% intervals, and what a process takes at most beyond its "
        "imports. An interval that holds zero shows no difference."
    )
    return ["## Time and memory of the research members", "", text, *_pairs(content)]


def _imports(content: Mapping[str, Any]) -> list[str]:
    text = "The same of HPCM-Base with codes of 16 bits, which [imports](FAMILY.md#published-checkpoints) have."
    return ["### Imports", "", text, *_pairs(content)]


def _pairs(content: Mapping[str, Any]) -> list[str]:
    return ["", *_source(content), "", *family.markdown(content["pairs"])]


def _twins(content: Mapping[str, Any]) -> list[str]:
    text = (
        "Members of [the family](FAMILY.md) at a tenth of its size, trained alike on the transforms of one stage A, "
        f"coding {content['images']} Kodak images. Differences have 95% intervals over the images and over the "
        "seeds of the first member; one that holds zero shows no difference. After equal seconds, each has trained for "
        "as long as the first member's steps take, and rates are those of validation. Minutes of training at this size "
        "say little about weeks at full size."
    )
    return ["## Rates of the research members", "", text, "", *_source(content), "", *twins.markdown(content)]


def _sizes(content: Mapping[str, Any]) -> list[str]:
    runs = {
        size: {codec: {kind: bench.Run(**run) for kind, run in both.items()} for codec, both in each.items()}
        for size, each in content["results"].items()
    }
    text = f"Seconds and peak memory by size of the picture, with {content['threads']} threads."
    tables = bench.markdown(runs, content["macs_per_pixel"], content["gemm_flops"])
    return ["## Speed and memory by size", "", text, "", *_source(content), "", tables]
