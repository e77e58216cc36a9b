"""`python -m hpcmcodec.training`: cache, train, pack, export."""

from __future__ import annotations

from pathlib import Path

import click


@click.group()
def main() -> None:
    """Train and export the weights of hpcm."""


@main.command()
@click.argument("out", type=click.Path(path_type=Path))
@click.argument("folders", nargs=-1, required=True, type=click.Path(exists=True, path_type=Path))
def cache(out: Path, folders: tuple[Path, ...]) -> None:
    """Decode the photographs of FOLDERS once into OUT."""
    from hpcmcodec.training.data import build_cache

    click.echo(f"{build_cache(out, folders)} images in {out}")


@main.command()
@click.option("--preset", default="lite", show_default=True)
@click.option("--cache", required=True, type=click.Path(exists=True, path_type=Path))
@click.option(
    "--run", required=True, type=click.Path(path_type=Path), help="Folder of the run; resumed where it exists."
)
@click.option("--stage", type=click.Choice(["b", "c"]), default="b", show_default=True)
@click.option("--steps", default=100000, show_default=True)
@click.option("--batch", default=8, show_default=True)
@click.option("--size", default=256, show_default=True, help="Side of the crops in pixels.")
@click.option("--lr", default=2e-3, show_default=True, help="Muon's rate (matrices).")
@click.option("--adam-lr", default=1e-3, show_default=True, help="AdamW's rate (the rest).")
@click.option(
    "--hold", default=500, show_default=True, help="Steps at the full rates; then they fall as 1 / sqrt(step)."
)
@click.option("--warm", default=100, show_default=True, help="Steps of warm-up.")
@click.option("--decay-from", type=int, help="From this step the rates also fall linearly, to nothing at --steps.")
@click.option("--fake-from", type=int, help="Fake quantisation from this step on.")
@click.option(
    "--calibrate-at", type=int, multiple=True, help="Fix the grids from the activations' spread at this step."
)
@click.option("--validation", type=click.Path(exists=True, path_type=Path))
@click.option("--every", default=500, show_default=True, help="Steps between validations.")
@click.option("--images", default=16, show_default=True, help="Validation images to use.")
@click.option(
    "--init",
    type=click.Path(exists=True, path_type=Path),
    help="Start from another run's EMA (last.pt, or a packed state).",
)
@click.option("--stage-a", type=click.Path(exists=True, path_type=Path), help="Start from a packed state of stage A.")
@click.option("--device", default="cpu", show_default=True)
@click.option("--polite", is_flag=True, help="Leave cores to other work as it comes and goes.")
@click.option("--seed", default=0, show_default=True)
@click.option("--without-context", is_flag=True, help="The yardstick: a 1x1 head on h_s alone in the context's place.")
def train(**options: object) -> None:
    """Train stage B (context, rate alone) or C (everything)."""
    from hpcmcodec.training.train import train as run

    run(**options)  # type: ignore[arg-type]


@main.command()
@click.argument("state", type=click.Path(exists=True, path_type=Path))
@click.argument("out", type=click.Path(path_type=Path))
def pack(state: Path, out: Path) -> None:
    """Keep the EMA of STATE (a run's last.pt) in half precision in one small file OUT, for --init-from elsewhere."""
    from hpcmcodec.training.train import pack as run

    run(state, out)


@main.command()
@click.argument("state", type=click.Path(exists=True, path_type=Path))
@click.option("--name", default="lite-0", show_default=True)
@click.option("-o", "--out", required=True, type=click.Path(path_type=Path), help="Folder of the weights.")
@click.option("--cache", required=True, type=click.Path(exists=True, path_type=Path), help="Where the crops come from.")
@click.option("--crops", default=120, show_default=True, help="Crops of 384 pixels to fit the tables to.")
def export(state: Path, name: str, out: Path, cache: Path, crops: int) -> None:
    """Write the weights and graphs that ship from STATE (last.pt, or a packed state)."""
    from hpcmcodec.training.export import crops_at_all_qualities
    from hpcmcodec.training.export import export as run
    from hpcmcodec.training.report import load_state

    model_id = run(load_state(state), name, out, crops_at_all_qualities(cache, crops))
    click.echo(f"{name}: model id {model_id.hex()}")


@main.command()
@click.argument("state", type=click.Path(exists=True, path_type=Path))
@click.argument("folder", type=click.Path(exists=True, path_type=Path))
@click.option("--qualities", default="10,30,50,70,90", show_default=True)
@click.option("--against", type=click.Path(exists=True, path_type=Path), help="Another state, --without-context's say.")
def worth(state: Path, folder: Path, qualities: str, against: Path | None) -> None:
    """Estimated bpp of STATE over the PNGs of FOLDER: exact arithmetic against float, or against another state."""
    from hpcmcodec.training.report import load_state, mean_bpp

    steps = [float(v) for v in qualities.split(",")]
    model = load_state(state)
    ours = mean_bpp(model, folder, steps, fake=against is None)
    theirs = mean_bpp(load_state(against) if against else model, folder, steps, fake=False)
    for q, a, b in zip(steps, ours, theirs, strict=True):
        click.echo(f"q {q:5.1f}  {a:.4f} bpp against {b:.4f}: {100 * (a / b - 1):+.2f}%")
    mean = sum(a / b for a, b in zip(ours, theirs, strict=True)) / len(steps)
    click.echo(f"mean of the ratios: {100 * (mean - 1):+.2f}%")


if __name__ == "__main__":
    main()
