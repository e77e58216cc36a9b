"""The options and arguments that commands share."""

from __future__ import annotations

import math
import os
from typing import TYPE_CHECKING, Any, TypeVar

import click

from hpcmcodec import __version__
from hpcmcodec.container import DEFAULT_MAX_PIXELS, DEFAULT_MAX_SIDE, Limits

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    Function = TypeVar("Function", bound=Callable[..., object])


class Settings:
    """The options that every command shares, wherever on the line they stand."""

    def __init__(self) -> None:
        self.debug = False
        self.quiet = False
        self.max_pixels: int | None = None
        self.max_side: int | None = None
        self.threads: int | None = None

    @property
    def limits(self) -> Limits:
        """The arguments `max_pixels` and `max_side` of the library."""
        return Limits(max_pixels=self.max_pixels or DEFAULT_MAX_PIXELS, max_side=self.max_side or DEFAULT_MAX_SIDE)


def _store(ctx: click.Context, parameter: click.Parameter, value: Any) -> None:
    if value and parameter.name:
        setattr(ctx.ensure_object(Settings), parameter.name, value)


def _limit_threads(ctx: click.Context, parameter: click.Parameter, value: int | None) -> None:
    """Sets what numpy's BLAS, onnxruntime and the kernels read when they are loaded, which no option comes before."""
    if value:
        ctx.ensure_object(Settings).threads = value
        os.environ["OMP_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = str(value)


def shared_options(function: Function) -> Function:
    """The options that work before and after the name of a command."""
    for decorate in (
        click.version_option(__version__, prog_name="hpcm", message="%(prog)s %(version)s"),
        click.option("--debug", is_flag=True, expose_value=False, callback=_store, help="Show tracebacks."),
        click.option("--quiet", is_flag=True, expose_value=False, callback=_store, help="Say nothing but errors."),
        click.option(
            "--threads",
            type=click.IntRange(min=1),
            metavar="N",
            expose_value=False,
            callback=_limit_threads,
            help="Use at most this many threads.  [default: one for each core]",
        ),
        click.option(
            "--max-pixels",
            type=click.IntRange(min=1),
            metavar="N",
            expose_value=False,
            callback=_store,
            help=f"Refuse images of more pixels, padded to multiples of 16.  [default: {DEFAULT_MAX_PIXELS}; for info: "
            "no limit]",
        ),
        click.option(
            "--max-side",
            type=click.IntRange(min=1),
            metavar="N",
            expose_value=False,
            callback=_store,
            help=f"Refuse images with a longer side, in pixels.  [default: {DEFAULT_MAX_SIDE}; for info: no limit]",
        ),
    ):
        function = decorate(function)
    return function


# click does not check whether files can be read: it would report wrong usage, exit code 2. Opening them checks it.
input_argument = click.argument("source", metavar="INPUT", type=click.Path(allow_dash=True, readable=False))
inputs_argument = click.argument(
    "sources", metavar="INPUT...", nargs=-1, required=True, type=click.Path(allow_dash=True, readable=False)
)
# Of commands that take a list of files in the place of inputs: `many_options` checks that there is one of the two.
inputs_or_list_argument = click.argument(
    "sources", metavar="INPUT...", nargs=-1, type=click.Path(allow_dash=True, readable=False)
)
force_option = click.option("-f", "--force", is_flag=True, help="Overwrite the output if it exists.")
device_option = click.option(
    "--device", type=click.Choice(["cpu", "cuda"]), default="cpu", show_default=True, help="Where to compute."
)


def background_option(text: str) -> Callable[[Function], Function]:
    """The option ``--background``, a colour that `rgb` reads."""
    return click.option("--background", metavar="COLOR", help=f"{text} A name as in CSS, or #RRGGBB.")


def rgb(background: str | None) -> tuple[int, int, int] | None:
    """8-bit RGB of the option ``--background``. Raises click.BadParameter where it names no colour; loads Pillow."""
    if background is None:
        return None
    from hpcmcodec.image.colour import rgb_of

    try:
        return rgb_of(background)
    except ValueError as error:
        raise click.BadParameter(f"{background!r} names no opaque colour", param_hint="'--background'") from error


def output_option(text: str, metavar: str = "OUTPUT") -> Callable[[Function], Function]:
    """The option ``-o`` with this help."""
    path = click.Path(allow_dash=True, readable=False)
    return click.option("-o", "--output", "target", metavar=metavar, type=path, help=text)


class Number(click.FloatRange):
    """A number between two others; a text that is none is reported as one is."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The number. Raises click.BadParameter for anything else."""
        try:
            number = float(value)
        except ValueError:
            number = math.nan
        if not math.isfinite(number):  # NaN passes click's check of the range, as comparisons with it are false
            self.fail(f"{value!r} is not a number{self._range()}", param, ctx)
        return super().convert(value, param, ctx)

    def _range(self) -> str:
        return f" from {self.min:g} to {self.max:g}" if self.max is not None else ""


def region_of(ctx: click.Context, parameter: click.Parameter, value: str | None) -> tuple[int, int, int, int] | None:
    """A callback of click that reads X,Y,W,H. Raises click.BadParameter for anything but four whole numbers."""
    if value is None:
        return None
    numbers = value.split(",")
    if len(numbers) != 4 or not all(n.isascii() and n.isdigit() and len(n) < 10 for n in numbers):
        raise click.BadParameter(f"{value!r} is not X,Y,W,H: four whole numbers of pixels", ctx, parameter)
    x, y, width, height = map(int, numbers)
    return x, y, width, height


def names(text: str, known: Iterable[str], option: str) -> list[str]:
    """The names in `text`, which are separated by commas. Raises click.BadParameter for one that is not in `known`."""
    names = list(dict.fromkeys(name for name in text.split(",") if name))
    for name in names:
        if name not in known:
            raise click.BadParameter(f"{name!r} is not one of {', '.join(known)}", param_hint=f"'{option}'")
    return names
