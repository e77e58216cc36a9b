"""The papers: what they link to exists, and the commands they name do."""

import re
from pathlib import Path

import click
import pytest

from hpcmcodec.cli import cli
from tools.__main__ import main as tools

ROOT = Path(__file__).parent.parent
PAPERS = sorted({*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("weights/**/*.md")})


def slug(heading: str) -> str:
    """The anchor that GitHub gives a heading."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


@pytest.mark.parametrize("paper", PAPERS, ids=lambda path: str(path.relative_to(ROOT)))
def test_everything_linked_in_the_repository_exists(paper: Path) -> None:
    text = paper.read_text(encoding="utf-8")
    links = re.findall(r"\]\(([^)\s]+)\)", text) + re.findall(r'(?:src|srcset)="([^"]+)"', text)
    broken = []
    for link in links:
        if "://" in link:
            continue
        name, _, anchor = link.partition("#")
        target = paper.parent / name if name else paper
        if not target.exists():
            broken.append(link)
        elif anchor:
            headings = re.findall(r"^#+ (.*)$", target.read_text(encoding="utf-8"), re.MULTILINE)
            if anchor not in map(slug, headings):
                broken.append(link)
    assert broken == []


TEMPLATES = {"MODEL", "NAME"}  # what the reader names
RESULTS = {"demo/", "results.md"}  # what commands write


@pytest.mark.parametrize("paper", ["README.md", "CONTRIBUTING.md", "RELEASING.md", "docs/ARCHITECTURE.md"])
def test_every_file_named_exists(paper: str) -> None:
    """In backquotes, and in README's layout: from the root, or from inside of the package."""
    text = (ROOT / paper).read_text(encoding="utf-8")
    named = re.findall(r"`([\w./-]+(?:/|\.(?:py|h|cpp|cu|md|toml|sh)))`", text)
    named += re.findall(r"^ {4,6}([\w./]+(?:/|\.py)) ", text, re.MULTILINE)
    named += re.findall(r"\b(?:[a-z_]+/)*[a-z_]+\.py\b", text)
    missing = {
        name
        for name in set(named) - RESULTS
        if not any((folder / name).exists() for folder in (ROOT, ROOT / "hpcmcodec"))
        and not TEMPLATES & set(Path(name).with_suffix("").parts)
    }
    assert missing == set()


@pytest.mark.parametrize("paper", PAPERS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_command_and_option_named_exists(paper: Path) -> None:
    pytest.importorskip("torch")
    from hpcmcodec.training.__main__ import main as training

    text = paper.read_text(encoding="utf-8").replace("\\\n", " ")
    # A command in running text may go on in the next line.
    text = re.sub(r"(?<!`)`[^`]+`(?!`)", lambda code: " ".join(code.group().split()), text)
    spoken = r"^\s*(?:\$ )?|`"
    groups: dict[str, click.Group] = {"python -m tools": tools, "python -m hpcmcodec.training": training, "hpcm": cli}
    wrong = []
    for prefix, group in groups.items():
        pattern = rf"(?:{spoken}){re.escape(prefix)} ([a-z]+)((?: [^`\n#]*)?)"
        for name, rest in re.findall(pattern, text, re.MULTILINE):
            command = group.get_command(click.Context(group), name)
            if command is None:
                wrong.append(f"{prefix} {name}")
                continue
            known = {"--help"} | {option for each in command.params for option in (*each.opts, *each.secondary_opts)}
            named = set(re.findall(r"(?<=\s)--[a-z][a-z-]+", rest))
            wrong += [f"{prefix} {name} {option}" for option in sorted(named - known)]
    assert wrong == []
