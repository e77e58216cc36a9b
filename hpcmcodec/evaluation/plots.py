"""Rate-distortion plots, light and dark, as PNG and SVG. Needs matplotlib.

Colours are those of M. Okabe and K. Ito, "Color Universal Design" (2008), which people with any common form of colour
blindness can tell apart. Every curve also has a marker of its own, and curves from result files are dashed. All
settings of a codec share one colour, such as "AVIF" and "AVIF (speed 4)".
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence

from hpcmcodec.evaluation.metrics import METRICS
from hpcmcodec.evaluation.results import Series

__all__ = ["THEMES", "rd_plot"]

# The palette without its yellow, which vanishes on white, and its black, which vanishes on dark. The first codec gets
# the first colour, vermilion.
_COLOURS = ("#D55E00", "#0072B2", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#8C8C8C")
_MARKERS = "osD^vPX*<>"
THEMES = {
    "light": {"paper": "#ffffff", "ink": "#222222", "grid": "#dddddd"},
    "dark": {"paper": "#16181c", "ink": "#e6e6e6", "grid": "#3a3d44"},
}


def rd_plot(
    series: Sequence[Series], metric: str, *, title: str, theme: str = "light", log: bool = True, image_format: str
) -> bytes:
    """A plot of one metric against bits per pixel, as the bytes of a file.

    Args:
        series: the curves, of which the first is drawn strongest. Those without the metric are left out.
        metric: a key of `METRICS`.
        theme: a key of `THEMES`.
        log: whether the axis of the rate is logarithmic.
        image_format: "png" (1600x1100 pixels) or "svg". The same series give the same bytes.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    colours = THEMES[theme]
    settings: Mapping[str, object] = {
        "svg.hashsalt": "hpcmcodec",
        "svg.fonttype": "path",
        "font.size": 11,
        "axes.edgecolor": colours["ink"],
        "axes.labelcolor": colours["ink"],
        "text.color": colours["ink"],
        "xtick.color": colours["ink"],
        "ytick.color": colours["ink"],
    }
    with mpl.rc_context(dict(settings)):
        figure = Figure(figsize=(8, 5.5), layout="constrained", facecolor=colours["paper"])
        axes = figure.subplots()
        axes.set_facecolor(colours["paper"])
        families = list(dict.fromkeys(_family(each) for each in series))
        for i, each in enumerate(series):
            family = families.index(_family(each))
            if metric not in each.scores:
                continue
            points = sorted(zip(*each.curve(metric), strict=True))
            axes.plot(
                *zip(*points, strict=True),
                label=each.name,
                color=_COLOURS[1 + (family - 1) % (len(_COLOURS) - 1)] if family else _COLOURS[0],
                marker=_MARKERS[i % len(_MARKERS)],
                markersize=6 if i == 0 else 4.5,
                linewidth=2.6 if i == 0 else 1.5,
                linestyle="-" if each.images else "--",
                zorder=3 if i == 0 else 2,
            )
        if log:
            axes.set_xscale("log")
            axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
            axes.xaxis.set_major_formatter(FuncFormatter(lambda bpp, _: f"{bpp:g}"))
            axes.xaxis.set_minor_formatter(NullFormatter())
        axes.set_xlabel("bits per pixel" + (" (logarithmic)" if log else ""))
        axes.set_ylabel(METRICS[metric].label)
        axes.set_title(title, fontsize=12)
        axes.grid(color=colours["grid"], linewidth=0.8)
        axes.set_axisbelow(True)
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
        axes.legend(loc="lower right", frameon=True, facecolor=colours["paper"], edgecolor=colours["grid"])
        file = io.BytesIO()
        metadata = {"Date": None, "Creator": "hpcmcodec"} if image_format == "svg" else {"Software": "hpcmcodec"}
        figure.savefig(file, format=image_format, dpi=200, metadata=metadata, facecolor=colours["paper"])
    return file.getvalue()


def _family(series: Series) -> str:
    return series.name.split(" (")[0]
