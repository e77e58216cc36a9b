"""The layers of the package, lowest first, and the proof that imports go downwards alone.

Every import statement is read, whether it stands at the top of a module, in a function or behind TYPE_CHECKING: an
upward import in a function is a circle that has not been noticed yet. A module may import those of the rows above its
own, and inside of a package that has one row, its siblings. No circle is left anywhere.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = "hpcmcodec"

LAYERS = (
    # what everybody may use
    ("errors", "quality", "threads", "timing", "interrupts", "ort", "formats", "search"),
    # exact arithmetic: no model, no kernels
    ("exact", "exact.constants"),
    ("exact.schedule", "exact.elementary", "exact.namespaces", "exact.quantisation", "exact.resampling"),
    ("exact.attention", "exact.biwkv", "exact.layers"),
    ("exact.ops",),
    ("exact.base",),
    ("exact.members",),
    ("exact.reference",),
    # bytes: tables of the entropy coder, the file format, sums of the installed files
    ("rans_tables", "container", "checksums", "shortage", "publish"),
    # the kernels' Python side
    ("native",),
    # the entropy coder, whose loops the kernels have too
    ("rans_coders",),
    ("rans", "rans_check"),
    # the model: its entropy path, then what training adds (torch)
    ("model", "model.config", "model.arrange", "model.blocks", "model.entropy", "model.cost"),
    ("model.hyper",),
    ("model.rwkv", "model.family.blocks"),
    ("model.memory", "model.banks"),
    ("model.remember", "model.family.flow"),
    ("model.context", "model.family.synthesis"),
    ("model.synthesis",),
    ("model.declaration", "model.coder"),
    ("model.float_members",),
    ("model.float_ops", "model.parameters", "model.fold", "model.family.fold"),
    ("model.transforms", "model.family.transforms", "model.family.gaussian", "model.validation", "model.distortion"),
    ("model.hpcm",),
    ("model.family.model",),
    # packaged models
    ("weights",),
    ("pretrained",),
    # images, and the engines that code them
    ("engines", "engines.strips"),
    ("image", "engines.light"),
    ("engines.torch",),
    ("engines.base",),
    ("refine", "decoding", "targets"),
    ("codec",),
    ("pillow",),
    # the public names
    ("",),
    # what is done with the codec
    ("evaluation",),
    ("training",),
    ("evaluation.family",),
    # commands; those of many files work on what single files have, too: how they are opened, written and changed
    ("cli.options",),
    ("cli.messages", "cli.needs"),
    ("cli.files",),
    ("cli.metadata",),
    ("batch",),
    ("cli",),
    ("__main__",),
)
ROW = {name: i for i, row in enumerate(LAYERS) for name in row}


def modules() -> dict[str, Path]:
    """Dotted name, without the package's, -> file."""
    found = {}
    for path in sorted((ROOT / PACKAGE).rglob("*.py")):
        parts = path.relative_to(ROOT / PACKAGE).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


MODULES = modules()


def imports(source: str, known: dict[str, Path] = MODULES) -> Iterator[tuple[int, str]]:
    """(line, module) of every import of our own; a name that is no module counts as one of what it is taken from."""
    for node in ast.walk(ast.parse(source)):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            below = [f"{node.module}.{alias.name}" for alias in node.names]
            names = [n if n.removeprefix(f"{PACKAGE}.") in known else str(node.module) for n in below]
        for name in names:
            if name == PACKAGE or name.startswith(f"{PACKAGE}."):
                yield node.lineno, name[len(PACKAGE) + 1 :]


def row_of(module: str) -> tuple[int, str]:
    """The row of a module, and the name that stands there: its own or its package's."""
    name = module
    while name not in ROW and "." in name:
        name = name.rpartition(".")[0]
    assert name in ROW, f"{module} has no row in LAYERS"
    return ROW[name], name


def upward(module: str, source: str) -> list[str]:
    """What a module imports that is not below it."""
    own, package = row_of(module)
    wrong = []
    for line, imported in imports(source):
        row, name = row_of(imported)
        if row >= own and name != package:
            wrong.append(f"{module}:{line} imports {imported or PACKAGE}")
    return wrong


@pytest.mark.parametrize("module", MODULES)
def test_imports_go_downwards(module: str) -> None:
    assert upward(module, MODULES[module].read_text(encoding="utf-8")) == []


def test_no_imports_go_in_circles() -> None:
    graph = {m: {i for _, i in imports(p.read_text(encoding="utf-8")) if i != m} for m, p in MODULES.items()}
    list(TopologicalSorter(graph).static_order())  # raises CycleError, which names the circle


def test_files_and_functions_are_short_or_contributing_says_why() -> None:
    style = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8").partition("Longer, and why:")[2].partition("\n3.")[0]
    excused = set(re.findall(r"`([^`]+)`", style))
    long, functions = set(), []
    for path in (*(ROOT / PACKAGE).rglob("*.py"), *(ROOT / "tools").glob("*.py"), *(ROOT / "kernels").glob("*.[hc]*")):
        text = path.read_text(encoding="utf-8")
        if len(text.splitlines()) > 450:
            long.add(path.relative_to(ROOT).as_posix().removeprefix(f"{PACKAGE}/"))
        if path.suffix == ".py":
            found = (n for n in ast.walk(ast.parse(text)) if isinstance(n, ast.FunctionDef))
            functions += [f"{path.name}: {n.name}" for n in found if (n.end_lineno or 0) - n.lineno >= 70]
    assert long == excused
    assert functions == []


@pytest.mark.parametrize(
    "statement",
    [
        "from hpcmcodec.model.config import Config",
        "import hpcmcodec.native.loader",
        "def f():\n    from hpcmcodec import codec",
        "if TYPE_CHECKING:\n    from hpcmcodec import weights",
        "from hpcmcodec.exact import reference",
        "from hpcmcodec import encode",
    ],
)
def test_an_upward_import_is_found(statement: str) -> None:
    assert len(upward("exact.biwkv", statement)) == 1
    assert upward("cli", statement) == []
