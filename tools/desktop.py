"""`python -m tools desktop`: the manual page and the completion scripts in docs/desktop, made from the commands' help.

The wheel carries them, and pip puts them below the environment's share/, where man and the shells look.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from pathlib import Path

import click
from click.shell_completion import BashComplete, FishComplete, ShellComplete, ZshComplete

from hpcmcodec.cli import EXIT_CODES, cli

FOLDER = Path(__file__).parents[1] / "docs" / "desktop"
_SHELLS: dict[str, type[ShellComplete]] = {"hpcm.bash": BashComplete, "_hpcm": ZshComplete, "hpcm.fish": FishComplete}


@click.command("desktop")
def command() -> None:
    """Write the manual page and the completion scripts into docs/desktop."""
    for name, text in generated().items():
        (FOLDER / name).write_text(text, encoding="utf-8")


def generated() -> dict[str, str]:
    """The text of each file that is made from the commands, by its name."""
    scripts = {name: shell(cli, {}, "hpcm", "_HPCM_COMPLETE").source() for name, shell in _SHELLS.items()}
    return {"hpcm.1": manual(), **{name: text.strip() + "\n" for name, text in scripts.items()}}


def manual() -> str:
    """hpcm(1) in roff's man macros (groff_man(7)): every command with its options, examples and exit codes."""
    top = click.Context(cli, info_name="hpcm", **cli.context_settings)
    about, examples, rest = _described(cli.help or "")
    lines = [
        '.TH HPCM 1 "" "hpcmcodec" "User Commands"',
        ".SH NAME",
        f"hpcm \\- {_roff(about[0][0].lower() + about[0][1:].rstrip('.'))}",
        ".SH SYNOPSIS",
        r".B hpcm",
        r"[\fIOPTIONS\fR] \fICOMMAND\fR [\fIARGS\fR]...",
        ".SH DESCRIPTION",
        *_paragraphs(rest),
        ".SH OPTIONS",
        "Every command takes these.",
        *_options(cli, top),
        ".SH COMMANDS",
    ]
    shared = {parameter.name for parameter in cli.get_params(top)}
    for name in cli.list_commands(top):
        sub = cli.get_command(top, name)
        if sub is None:
            raise LookupError(f"no command {name}")
        context = click.Context(sub, info_name=name, parent=top)
        paragraphs, more, others = _described(sub.help or "")
        lines += [f'.SS "hpcm {name} {_roff(" ".join(sub.collect_usage_pieces(context)))}"']
        lines += _paragraphs(paragraphs + others) + _verbatim(more) + _options(sub, context, shared)
    lines += [".SH EXAMPLES", *_verbatim(examples), ".SH EXIT STATUS"]
    for code, meaning in EXIT_CODES.items():
        lines += [".TP", f".B {code}", _roff(meaning)]
    return "\n".join(lines) + "\n"


def _described(text: str) -> tuple[list[str], list[str], list[str]]:
    r"""The first paragraph of a help text, its examples (after click's mark ``\b``), and the other paragraphs."""
    blocks = [block for block in re.split(r"\n\s*\n", text.strip()) if block.strip()]
    examples = [line.strip() for block in blocks if block.lstrip().startswith("\b") for line in block.splitlines()[1:]]
    plain = [" ".join(block.split()) for block in blocks if not block.lstrip().startswith("\b")]
    return plain[:1], examples, plain[1:]


def _options(command: click.Command, context: click.Context, without: Collection[str | None] = ()) -> list[str]:
    lines: list[str] = []
    for parameter in command.get_params(context):
        record = parameter.get_help_record(context)
        if record and record[1] and parameter.name not in without:
            lines += [".TP", f".B {_roff(record[0])}", _roff(" ".join(record[1].split()))]
    return lines


def _paragraphs(texts: list[str]) -> list[str]:
    return [line for text in texts for line in (".PP", _roff(text))]


def _verbatim(lines: list[str]) -> list[str]:
    return [".PP", ".nf", *map(_roff, lines), ".fi"] if lines else []


def _roff(text: str) -> str:
    r"""Text as roff reads it: no line begins with a control character, and a hyphen can be copied into a shell."""
    escaped = text.replace("\\", r"\e").replace("-", r"\-").replace('"', r"\(dq")
    return rf"\&{escaped}" if escaped.startswith((".", "'")) else escaped
