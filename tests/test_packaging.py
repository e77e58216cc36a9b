"""What is installed and distributed, and that it works away from the repository, on other systems and beside the
oldest versions allowed.
"""

import ast
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tarfile
import textwrap
import zipfile
from pathlib import Path

import click
import pytest
from packaging.requirements import Requirement
from packaging.tags import parse_tag, sys_tags
from packaging.version import Version
from PIL import Image

import hpcmcodec
from hpcmcodec.cli import EXIT_CODES, cli
from hpcmcodec.native import build as kernels
from tools import desktop

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parent.parent
# Distributions whose modules have other names.
MODULES = {
    "pillow": "PIL",
    "pillow-heif": "pillow_heif",
    "pillow-jxl-plugin": "pillow_jxl",
    "pytorch-msssim": "pytorch_msssim",
}


def build(kind: str, folder: Path, checkout: Path = ROOT) -> Path:
    """Build a ``wheel`` or an ``sdist`` of a checkout with the hatchling of this environment."""
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", kind, "-d", str(folder)],
        cwd=checkout,
        check=True,
        capture_output=True,
    )
    (path,) = folder.iterdir()
    return path


def run(python: str | Path, *arguments: object, cwd: Path, **environment: str) -> str:
    """Run ``python`` with arguments, in ``cwd``; its standard output."""
    command = [str(argument) for argument in (python, *arguments)]
    done = subprocess.run(
        command, cwd=cwd, env=os.environ | environment, capture_output=True, text=True, stdin=subprocess.DEVNULL
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


# --- dependencies ----------------------------------------------------------------------------------------------------


def declared() -> dict[str, dict[str, Requirement]]:
    """Extra ("": none) -> distribution -> requirement, as pyproject.toml has them."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    groups = {"": project["dependencies"], **project["optional-dependencies"]}
    return {extra: {(r := Requirement(line)).name: r for line in lines} for extra, lines in groups.items()}


def modules(group: dict[str, Requirement]) -> set[str]:
    return {MODULES.get(name, name) for name in group} - {"hpcmcodec"}


def imported(tree: ast.AST) -> set[str]:
    """The top names of all modules that a module imports, anywhere in it."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module.partition(".")[0])
    return names - sys.stdlib_module_names - {"hpcmcodec"}


def test_the_package_imports_what_is_declared_and_what_is_declared_is_imported() -> None:
    groups = declared()
    sources = [path.read_text(encoding="utf-8") for path in (ROOT / "hpcmcodec").rglob("*.py")]
    found = set().union(*(imported(ast.parse(source)) for source in sources))
    assert found <= set().union(*(modules(group) for group in groups.values()))
    assert set().union(*(modules(groups[extra]) for extra in ("", "eval", "torch", "train"))) <= found


def test_coding_needs_nothing_beyond_the_core_dependencies(photos: dict[str, Path], tmp_path: Path) -> None:
    """With every other package that pyproject.toml names made impossible to import."""
    groups = declared()
    others = set().union(*(modules(group) for group in groups.values())) - modules(groups[""]) - {"compressai"}
    assert {"torch", "einops", "matplotlib"} <= others
    code = f"import sys; sys.modules |= dict.fromkeys({sorted(others)!r}); from hpcmcodec.cli import main; main()"
    run(sys.executable, "-c", code, "encode", photos["chelsea"], "-o", "cat.hpcm", cwd=tmp_path)
    run(sys.executable, "-c", code, "decode", "cat.hpcm", cwd=tmp_path)


@pytest.mark.parametrize(
    ("statement", "extra"),
    [
        ("import hpcmcodec; hpcmcodec.load_model", "torch"),
        ("from hpcmcodec.engines import base; base.find('lite-1', 'cpu', 'torch')", "torch"),
        ("from hpcmcodec.native import doctor; list(doctor.report())", "torch"),
        ("import runpy; runpy.run_module('hpcmcodec.training', run_name='__main__')", "train"),
    ],
)
def test_what_needs_more_names_the_extra_in_one_line(statement: str, extra: str, tmp_path: Path) -> None:
    code = f"import sys; sys.modules['torch'] = None; sys.argv[1:] = ['worth', {str(tmp_path)!r}, {str(tmp_path)!r}]"
    done = subprocess.run(
        [sys.executable, "-c", f"{code}; {statement}"],
        env=os.environ | {"HPCM_OPS": "cuda", "PYTHONPATH": str(ROOT)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode
    last = done.stderr.splitlines()[-1]
    assert "needs torch, which is not installed" in last
    assert f'pip install "hpcmcodec[{extra}]"' in last


def test_makefile_and_constraints_install_what_is_declared() -> None:
    makefile, groups = (ROOT / "Makefile").read_text(encoding="utf-8"), declared()

    def listed(variable: str) -> list[str]:
        (line,) = re.findall(rf"^{variable} = (.*)$", makefile, re.MULTILINE)
        return list(line.split())

    assert set(listed("CODING")) == set(groups[""])
    assert set(listed("EVALUATION")) | {"pillow"} == set(groups["eval"])
    oldest = {name: Version(version) for name, version in (pin.split("==") for pin in listed("OLDEST"))}
    assert oldest == {name: Version(str(r.specifier).removeprefix(">=")) for name, r in groups[""].items()}
    constraints = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    pinned = set(re.findall(r"^([A-Za-z0-9_-]+)==", constraints, re.MULTILINE))
    assert {d for group in groups.values() for d in group} - {"hpcmcodec"} <= pinned
    for variable in ("CODING", "CHECKS", "EVALUATION", "BARE"):
        assert set(listed(variable)) <= pinned


# --- wheel and source distribution -----------------------------------------------------------------------------------


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A copy of what a wheel is made of, without weights and without a built library."""
    copy = tmp_path / "checkout"
    for folder in ("hpcmcodec", "kernels", "docs"):
        ignored = shutil.ignore_patterns("__pycache__", "*.so", ".build*", "*.png", "*.svg")
        shutil.copytree(ROOT / folder, copy / folder, ignore=ignored)
    (copy / "weights").mkdir()
    (copy / "weights" / "MODEL_CARD.md").write_text("none here\n")
    for name in ("hatch_build.py", "pyproject.toml", "README.md", "LICENSE", "CHANGELOG.md", "Makefile"):
        shutil.copy(ROOT / name, copy)
    return copy


def libraries(wheel: Path) -> list[str]:
    with zipfile.ZipFile(wheel) as archive:
        return [Path(name).name for name in archive.namelist() if name.endswith(".so")]


def test_a_wheel_without_kernels_is_for_any_platform(checkout: Path, tmp_path: Path) -> None:
    wheel = build("wheel", tmp_path / "wheel", checkout)
    assert wheel.name == f"hpcmcodec-{hpcmcodec.__version__}-py3-none-any.whl"
    assert not libraries(wheel)


def test_a_wheel_with_kernels_is_for_this_platform_and_promises_nothing_of_others(
    checkout: Path, tmp_path: Path
) -> None:
    folder = checkout / "kernels"
    content = b"built here"
    stem = kernels.prebuilt_stem(kernels.source_hash(folder))
    library = folder / f"{stem}-{hashlib.sha256(content).hexdigest()[:16]}.so"
    library.write_bytes(content)
    (folder / ".build").mkdir()
    (folder / ".build" / "avx2.o").write_bytes(b"an object")
    wheel = build("wheel", tmp_path / "wheel", checkout)
    tag = wheel.stem.split("-", 2)[2]
    assert tag.startswith("py3-none-")
    assert "any" not in tag
    assert "linux" not in tag.replace("-linux", ""), "no manylinux, no musllinux"
    assert parse_tag(tag) <= set(sys_tags()), "pip takes it here"
    assert libraries(wheel) == [library.name]
    with zipfile.ZipFile(wheel) as archive:
        assert b"Root-Is-Purelib: false" in archive.read(f"hpcmcodec-{hpcmcodec.__version__}.dist-info/WHEEL")
        assert not [name for name in archive.namelist() if ".build" in name]


def test_a_library_of_other_sources_or_machines_or_a_damaged_one_stays_here(checkout: Path, tmp_path: Path) -> None:
    damaged = f"{kernels.prebuilt_stem(kernels.source_hash(checkout / 'kernels'))}-0123456789abcdef.so"
    others = (f"libhpcm-{at}-0123456789abcdef-0123456789abcdef.so" for at in ("linux-x86_64", "plan9-mips"))
    for name in (damaged, *others):
        (checkout / "kernels" / name).write_bytes(b"built elsewhere")
    wheel = build("wheel", tmp_path / "wheel", checkout)
    assert wheel.name.endswith("-py3-none-any.whl")
    assert not libraries(wheel)


def test_the_source_distribution_holds_what_builds_and_tests_it_and_nothing_built(
    checkout: Path, tmp_path: Path
) -> None:
    (checkout / "kernels" / "libhpcm-linux-x86_64-0123456789abcdef.so").write_bytes(b"built here")
    (checkout / "kernels" / ".build").mkdir()
    (checkout / "kernels" / ".build" / "avx2.o").write_bytes(b"an object")
    with tarfile.open(build("sdist", tmp_path / "sdist", checkout)) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {"hatch_build.py", "pyproject.toml", "README.md", "LICENSE", "docs/PLATFORMS.md"} <= names
    assert {f"kernels/{name}" for name in (*kernels.SOURCES, "kernels.cu")} <= names
    assert not [name for name in names if name.endswith((".so", ".o")) or "__pycache__" in name]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build("wheel", tmp_path_factory.mktemp("wheel"))


def test_the_wheel_carries_the_weights_and_not_what_training_resumes_from(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    weights = {name.removeprefix("hpcmcodec/data/weights/") for name in names if "data/weights/" in name}
    graphs = {f"lite-1.{graph}.onnx" for graph in ("analysis", "gradient")}
    assert {"lite-1.safetensors", "MODEL_CARD.md", "SHA256SUMS"} | graphs <= weights
    assert not any("/" in name for name in weights), "weights/state is not distributed"
    assert "hpcmcodec/py.typed" in names
    assert {f"hpcmcodec/data/kernels/{name}" for name in (*kernels.SOURCES, "kernels.cu")} <= names


def test_the_wheel_holds_the_package_alone(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        tops = {name.split("/")[0] for name in archive.namelist()}
        metadata = archive.read(f"hpcmcodec-{hpcmcodec.__version__}.dist-info/METADATA").decode()
        scripts = archive.read(f"hpcmcodec-{hpcmcodec.__version__}.dist-info/entry_points.txt").decode()
        installed = {name.partition(".data/data/")[2] for name in archive.namelist() if ".data/data/" in name}
    assert tops == {"hpcmcodec"} | {f"hpcmcodec-{hpcmcodec.__version__}.{kind}" for kind in ("data", "dist-info")}
    assert installed == {
        "share/man/man1/hpcm.1",
        "share/bash-completion/completions/hpcm",
        "share/zsh/site-functions/_hpcm",
        "share/fish/vendor_completions.d/hpcm.fish",
        "share/mime/packages/hpcm.xml",
    }
    assert f"\nVersion: {hpcmcodec.__version__}\n" in metadata
    assert "hpcm = hpcmcodec.cli:main" in scripts


def test_the_manual_and_the_completions_are_what_the_commands_say() -> None:
    for name, text in desktop.generated().items():
        assert (desktop.FOLDER / name).read_text(encoding="utf-8") == text, f"`python -m tools desktop` makes {name}"


def test_the_manual_names_every_command_option_and_exit_code() -> None:
    page = desktop.manual().replace(r"\-", "-")
    top = click.Context(cli, info_name="hpcm")
    for name in cli.list_commands(top):
        command = cli.get_command(top, name)
        assert command is not None
        assert f'.SS "hpcm {name} ' in page
        for option in command.params:
            assert all(flag in page for flag in option.opts if flag.startswith("-"))
    for code, meaning in EXIT_CODES.items():
        assert f".B {code}\n{meaning}\n" in page


def test_the_source_distribution_builds_the_same_wheel(wheel: Path, tmp_path: Path) -> None:
    with tarfile.open(build("sdist", tmp_path / "sdist")) as archive:
        archive.extractall(tmp_path, filter="data")
    (source,) = tmp_path.glob("hpcmcodec-*")
    run(sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", tmp_path / "wheel", cwd=source)
    (again,) = (tmp_path / "wheel").iterdir()
    with zipfile.ZipFile(wheel) as first, zipfile.ZipFile(again) as second:
        # A wheel from the checkout takes along what `make kernels` has built for this machine.
        assert [name for name in first.namelist() if not name.endswith(".so")] == second.namelist()


def test_the_wheel_works_away_from_the_repository(wheel: Path, photos: dict[str, Path], tmp_path: Path) -> None:
    installed = tmp_path / "installed"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(installed)
    environment = {"PYTHONPATH": str(installed)}
    code = "import hpcmcodec, hpcmcodec.weights as w; print(hpcmcodec.__file__, *w.packaged().values(), sep='\\n')"
    for path in run(sys.executable, "-c", code, cwd=tmp_path, **environment).splitlines():
        assert Path(path).is_relative_to(installed)
    hpcm = [sys.executable, "-m", "hpcmcodec"]
    run(*hpcm, "encode", photos["chelsea"], "-o", "cat.hpcm", cwd=tmp_path, **environment)
    run(*hpcm, "decode", "cat.hpcm", cwd=tmp_path, **environment)
    with Image.open(tmp_path / "cat.png") as image:
        assert image.size == (451, 300)


@pytest.mark.slow
def test_files_pass_between_the_oldest_and_the_pinned_versions(photos: dict[str, Path], tmp_path: Path) -> None:
    """Both ways: a file decodes only where the latent integers have the checksum that the encoder wrote."""
    oldest = os.environ.get("HPCM_OLDEST")
    if not oldest:
        pytest.skip("HPCM_OLDEST does not name the Python of an environment with the oldest versions allowed")
    code = "import numpy; print(numpy.__version__)"
    assert run(oldest, "-c", code, cwd=tmp_path).startswith("1.26.")
    assert not run(sys.executable, "-c", code, cwd=tmp_path).startswith("1.")
    for encoder, decoder in ((oldest, sys.executable), (sys.executable, oldest)):
        run(encoder, "-m", "hpcmcodec", "encode", photos["chelsea"], "-o", "cat.hpcm", "-f", cwd=tmp_path)
        run(decoder, "-m", "hpcmcodec", "decode", "cat.hpcm", "-f", cwd=tmp_path)


# --- other systems ---------------------------------------------------------------------------------------------------

# What a system that is not Linux lacks: names of modules, whole modules, and everything under /proc.
ELSEWHERE = """
import _ctypes, importlib, multiprocessing, os, signal, subprocess, sys, tempfile

for module, names in (
    (os, "sched_getaffinity sched_setscheduler sched_param SCHED_IDLE nice"),
    (os, "killpg geteuid getuid getpgid setsid fork register_at_fork"),
    (signal, "SIGHUP SIGKILL SIGPIPE SIGUSR1 pthread_sigmask"),
    (_ctypes, "dlclose"),
):
    for name in names.split():
        if hasattr(module, name):
            delattr(module, name)
sys.modules |= dict.fromkeys(("fcntl", "resource", "pwd", "grp", "termios"))

def refuse(event, arguments):
    if event == "open" and str(arguments[0]).startswith("/proc"):
        raise FileNotFoundError(2, "No such file or directory", arguments[0])

sys.addaudithook(refuse)
from hpcmcodec.native import build
build.prebuilt = lambda folder, source: None
from hpcmcodec import cli
cli.main()
"""


def test_where_linux_calls_are_missing_a_photograph_is_coded_with_the_reference(
    photos: dict[str, Path], tmp_path: Path
) -> None:
    script = tmp_path / "elsewhere.py"
    script.write_text(textwrap.dedent(ELSEWHERE))
    environment = {"PYTHONPATH": str(ROOT), "XDG_CACHE_HOME": str(tmp_path / "cache"), "HPCM_OPS": ""}
    doctor = run(sys.executable, script, "doctor", cwd=tmp_path, **environment)
    assert "the numpy reference" in doctor
    assert "kernels are not built on" in doctor
    run(sys.executable, script, "encode", photos["chelsea"], "-o", "cat.hpcm", cwd=tmp_path, **environment)
    run(sys.executable, script, "decode", "cat.hpcm", cwd=tmp_path, **environment)
    with Image.open(tmp_path / "cat.png") as image:
        assert image.size == (451, 300)
    assert not (tmp_path / "cache" / "hpcmcodec").exists()
