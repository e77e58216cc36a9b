"""Folders and lists of files: the options, and a run over them by workers or on a cluster, with a manifest."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import click

from hpcmcodec import threads
from hpcmcodec.cli.batch import SOME_FAILED
from hpcmcodec.cli.files import about, descriptor_of, is_folder, is_there, opened, write_stdout
from hpcmcodec.cli.messages import mention_kernels, printable, say
from hpcmcodec.cli.needs import require
from hpcmcodec.cli.options import Number
from hpcmcodec.errors import InputError, OutputError

if TYPE_CHECKING:
    from hpcmcodec.batch.manifest import Manifest
    from hpcmcodec.batch.plan import Found
    from hpcmcodec.batch.records import Record, Task
    from hpcmcodec.cli.options import Settings

    Function = TypeVar("Function", bound=Callable[..., object])

_UNITS = "KMGT"  # powers of 1024, of 1000 with a B behind them alone: 1.5G, 1.5Gi and 1.5GiB, but 1.5GB


class Many(NamedTuple):
    """The options as they were given; `OPTIONS` has their help."""

    recursive: bool = False
    files_from: str | None = None
    jobs: str | None = None
    manifest: str | None = None
    if_exists: str | None = None
    checksum: bool = False
    retries: int | None = None
    timeout: float | None = None
    max_memory: int | None = None
    shard: tuple[int, int] | None = None
    cluster: str | None = None
    dry_run: bool = False
    preserve_times: bool = False
    smaller_or_skip: bool = False

    @property
    def wanted(self) -> bool:
        """Whether any of the options was given; else the command works on its inputs one by one."""
        return self != Many()


def _jobs(ctx: click.Context, parameter: click.Parameter, value: str | None) -> str | None:
    if value not in (None, "auto") and not re.fullmatch("[1-9][0-9]{0,3}", value or ""):
        raise click.BadParameter(f"{value!r} is neither a number of processes nor 'auto'", ctx, parameter)
    return value


def _bytes(ctx: click.Context, parameter: click.Parameter, value: str | None) -> int | None:
    if value is None:
        return None
    match = re.fullmatch(r"([0-9]{1,12}(?:\.[0-9]{1,6})?) ?(?:([KMGT])(I?B?))?", value.upper())
    if not match or not float(match[1]):
        raise click.BadParameter(f"{value!r} is no size: a number, with K, M or G behind it", ctx, parameter)
    power = _UNITS.index(match[2]) + 1 if match[2] else 0
    return int(float(match[1]) * (1000 if match[3] == "B" else 1024) ** power)


def _shard(ctx: click.Context, parameter: click.Parameter, value: str | None) -> tuple[int, int] | None:
    if value is None:
        return None
    from hpcmcodec.batch.plan import parsed_shard

    try:
        return parsed_shard(value)
    except ValueError as error:
        raise click.BadParameter(str(error), ctx, parameter) from error


def _address(ctx: click.Context, parameter: click.Parameter, value: str | None) -> str | None:
    # Dask takes half a minute and a traceback to refuse what is none.
    match = re.fullmatch(r"(?:(?:tcp|tls|ws|wss|ucx)://)?[^\s/]+:([0-9]{1,5})", value or "")
    if value not in (None, "local") and not (match and 0 < int(match[1]) < 65536):
        raise click.BadParameter(f"{value!r} is neither an address such as tcp://HOST:8786 nor 'local'", ctx, parameter)
    return value


_path = click.Path(allow_dash=True, readable=False)
OPTIONS: dict[str, Callable[[Any], Any]] = {
    "recursive": click.option("-r", "--recursive", is_flag=True, help="Take the files below folders; keep their tree."),
    "files_from": click.option(
        "--files-from", metavar="LIST", type=_path, help="Take the files that LIST names, a line each; '-' reads it."
    ),
    "jobs": click.option(
        "-j", "--jobs", metavar="N|auto", callback=_jobs, help="Processes at a time.  [default: auto, one a core]"
    ),
    "manifest": click.option(
        "--manifest",
        metavar="FILE.jsonl",
        type=click.Path(readable=False),
        help="Append a line of JSON for each file, and leave out what it says was done.",
    ),
    "if_exists": click.option(
        "--if-exists",
        type=click.Choice(["error", "skip", "update"]),
        help="An output that is there is an error, stays, or is made anew where its input or the settings have changed."
        "  [default: error]",
    ),
    "checksum": click.option(
        "--checksum", is_flag=True, help="Put SHA-256 of inputs into the manifest, and tell changes by it."
    ),
    "retries": click.option(
        "--retries",
        type=click.IntRange(min=0),
        metavar="N",
        help="Try a file again N times whose process died or took too long.  [default: 1]",
    ),
    "timeout": click.option(
        "--timeout",
        type=Number(min=0, min_open=True),
        metavar="SECONDS",
        help="Give up a file that takes longer.",
    ),
    "max_memory": click.option(
        "--max-memory",
        metavar="SIZE",
        callback=_bytes,
        help="Start files only while their estimates are below 80% of this, such as 1500M.  [default: what is free]",
    ),
    "shard": click.option(
        "--shard", metavar="I/N", callback=_shard, help="Take the I-th of N parts of the files, told by their names."
    ),
    "cluster": click.option(
        "--cluster",
        metavar="ADDRESS",
        callback=_address,
        help="Work on Dask: tcp://HOST:8786 of its scheduler, or 'local'.",
    ),
    "dry_run": click.option("--dry-run", is_flag=True, help="Print what would be done, and do nothing."),
    "preserve_times": click.option("--preserve-times", is_flag=True, help="Give outputs the times of their inputs."),
    "smaller_or_skip": click.option(
        "--smaller-or-skip", is_flag=True, help="Write no file that is not smaller than its input."
    ),
}


def many_options(*left_out: str) -> Callable[[Function], Function]:
    """The options of many files, without those that the command has no use for; its function gets them as `many`."""
    names = [name for name in OPTIONS if name not in left_out]

    def decorate(function: Function) -> Function:
        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> object:
            many = Many(**{name: kwargs.pop(name) for name in names})
            if not kwargs["sources"] and many.files_from is None:
                raise click.UsageError("Missing argument 'INPUT...'")
            return function(*args, many=many, **kwargs)

        for name in reversed(names):
            call = OPTIONS[name](call)
        return call  # type: ignore[return-value]

    return decorate


class Work(NamedTuple):
    """What is done to each file.

    Attributes:
        kind: "encode", "decode" or "verify".
        settings: of `batch.encode_file` and its like, without those that are the default.
        inputs: suffixes that are looked for in folders.
        suffix: of outputs; None where there are none.
        memory: the kind of `batch.memory.needed`.
    """

    kind: str
    settings: dict[str, Any]
    inputs: Sequence[str]
    suffix: str | None
    memory: str


def run(
    settings: Settings, many: Many, work: Work, sources: Sequence[str], target: str | None = None, force: bool = False
) -> None:
    """Works on all the files that are named. Raises click.exceptions.Exit with exit code 7 where some failed.

    Args:
        settings, many: the options of the command.
        work: what to do.
        sources: paths of files and, with `recursive`, of folders.
        target: the folder of outputs, or for one file the output.
        force: whether outputs that exist are replaced.

    Raises before any work: `InputError` for a folder without files or a list that cannot be read, `OutputError` where
    two inputs have one output, or the manifest cannot be written.
    """
    for name in sources:
        if name == "-" or descriptor_of(name) is not None:
            raise click.UsageError(f"{name!r} is an input on its own, without the options for many files")
    if target is not None and (target == "-" or descriptor_of(target) is not None):
        raise click.UsageError(f"{target!r} is no output of worker processes, which the options for many files ask for")
    if force and many.if_exists:
        raise click.UsageError("--force and --if-exists exclude each other")
    from hpcmcodec.batch import plan
    from hpcmcodec.batch.manifest import Manifest

    pairs, part = _pairs(many, work, sources, target), ""
    n_all = len(pairs)
    if many.shard is not None:
        part = ".{}-{}".format(*many.shard)
        pairs = [pair for pair in pairs if plan.shard(pair[0].place, *many.shard)]
    path = Path(many.manifest) if many.manifest is not None else None
    rules = plan.Rules("force" if force else many.if_exists or "error", work.settings, _model_id(work), many.checksum)
    with Manifest(path, part, writing=not many.dry_run) as manifest:
        left = list(plan.left_to_do(pairs, manifest, rules))
        tasks = [task for task in left if not isinstance(task, str)]
        tasks.sort(key=lambda task: -task.size)
        if many.dry_run:
            _print(settings, tasks, len(left) - len(tasks), n_all)
            return
        failures = _carry_out(settings, many, work, tasks, manifest, skipped=len(left) - len(tasks))
    mention_kernels(settings, "cpu")
    if failures:
        raise click.exceptions.Exit(failures[0] if n_all == 1 and not many.recursive else SOME_FAILED)


def _pairs(many: Many, work: Work, sources: Sequence[str], target: str | None) -> list[tuple[Found, str]]:
    """Inputs and outputs."""
    from hpcmcodec.batch import plan

    files: list[Found] = list(plan.found(sources, work.inputs, recursive=many.recursive))
    if many.files_from is not None:
        with about(many.files_from), opened(many.files_from) as stream:
            files += plan.listed(stream)
        if not files:
            raise InputError(f"{many.files_from}: names no files")
    if work.suffix is None:
        return [(file, "") for file in dict.fromkeys(files)]
    one = len(files) == 1 and many.files_from is None and not is_folder(sources[0])
    if one and target is not None and not is_folder(target):
        return [(files[0], target)]
    if target is not None and is_there(target) and not is_folder(target):
        raise OutputError(f"{target}: for several inputs the output is a directory, and this is none")
    return plan.named(files, target, work.suffix)


def _carry_out(
    settings: Settings, many: Many, work: Work, tasks: list[Task], manifest: Manifest, skipped: int
) -> list[int]:
    """Works on the tasks; returns the exit codes of those that failed."""
    from hpcmcodec.batch import memory, supervisor
    from hpcmcodec.batch.records import FAILED, Record
    from hpcmcodec.batch.supervisor import Limits, Lost
    from hpcmcodec.batch.work import perform
    from hpcmcodec.cli.board import Board

    failures: list[int] = []
    folders: set[Path] = set()

    def begun(task: Task) -> None:
        if task.target:
            manifest.begin(task.target)
            _make_folder(Path(task.target).parent, folders)

    def done(task: Task, result: Record | Lost) -> None:
        if isinstance(result, Lost):
            error = f"{task.source}: {result.why}"
            result = Record(
                task.source, task.target, FAILED, result.exit_code, error, task.size, settings=work.settings
            )
        manifest.add(result)
        if result.status == FAILED:
            failures.append(result.exit_code)
        board.add(result)

    # The limits of pictures are no settings: they change no output.
    options = {**work.settings, **settings.limits}
    function = partial(perform, work.kind, options, many.checksum, many.preserve_times)
    allowed = memory.available() if many.max_memory is None else many.max_memory
    cores = min(threads.cores(), settings.threads or threads.cores()) if many.jobs in (None, "auto") else int(many.jobs)
    limits = Limits(
        cores,
        None if allowed is None else int(memory.SHARE * allowed),
        1 if many.retries is None else many.retries,
        many.timeout,
    )
    with Board(settings, work.kind, len(tasks), sum(task.size for task in tasks), skipped) as board:
        if many.cluster:
            require("--cluster", "dask", "dask", "distributed")
            from hpcmcodec.batch import cluster

            cluster.run(function, tasks, done, limits, address=many.cluster, begun=begun)
        else:
            need = partial(_need, work.memory)
            supervisor.run(function, tasks, done, limits, need=need, begun=begun)
    return failures


def _need(kind: str, task: Task) -> int:
    from hpcmcodec.batch import memory

    return memory.needed(kind, task.source)


def _make_folder(folder: Path, made: set[Path]) -> None:
    """Makes a folder of outputs. Where that fails, the file says so that was to be written there."""
    if folder not in made:
        made.add(folder)
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError:
            return


def _model_id(work: Work) -> str:
    """The id of the model that encodes, in hexadecimal; files that are read say theirs."""
    if work.kind != "encode":
        return ""
    from hpcmcodec import weights

    return weights.read_metadata(weights.located(work.settings.get("model", weights.DEFAULT_MODEL)))["model_id"]


def _print(settings: Settings, tasks: Iterable[Task], skipped: int, n_all: int) -> None:
    """Says what a run would do: a line for each file on standard output."""
    n = 0
    for n, task in enumerate(tasks, 1):  # noqa: B007
        there = " (exists already)" if task.target and not task.overwrite and is_there(task.target) else ""
        arrow = f" -> {task.target}" if task.target else ""
        write_stdout(f"{printable(task.source + arrow)}{there}\n".encode())
    if not settings.quiet:
        say(f"{n_all} inputs: {n} to do, {skipped} done already, {n_all - n - skipped} of other shards")
