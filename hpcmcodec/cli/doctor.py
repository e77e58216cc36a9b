"""``hpcm doctor``: says which kernels, entropy coder and models are used on this machine, and why."""

from __future__ import annotations

import click

from hpcmcodec.cli.files import write_stdout
from hpcmcodec.cli.messages import printable
from hpcmcodec.cli.needs import require_memory
from hpcmcodec.cli.options import shared_options


@click.command("doctor")
@click.option("--build", is_flag=True, help="First compile the kernels, if that has not been done; needs g++.")
@shared_options
def command(build: bool) -> None:
    """Say what coding computes with, and why: compiled kernels or plain numpy, which entropy coder; and which models.

    Files and pictures are the same with all. HPCM_OPS chooses: auto, reference, cpp, cuda; and HPCM_CODER: auto,
    compressai, native.
    """
    require_memory()
    from itertools import chain

    from hpcmcodec import rans_check, weights
    from hpcmcodec.native import doctor as examination

    if build:
        examination.build_now()
    for name, fact in chain(examination.report(), rans_check.report(), weights.report()):
        write_stdout(f" * {name:<10} : {printable(fact)}\n".encode())
