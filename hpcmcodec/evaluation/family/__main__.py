"""Runs the commands; an error of the codec is one line, with its exit code."""

from __future__ import annotations

import sys

import click

from hpcmcodec.errors import HpcmError
from hpcmcodec.evaluation.family import family

if __name__ == "__main__":
    try:
        family(prog_name="python -m hpcmcodec.evaluation.family")
    except HpcmError as error:
        click.echo(f"error: {error}", err=True)
        sys.exit(error.exit_code)
