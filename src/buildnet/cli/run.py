"""`buildnet run -- CMD…`: run a command somewhere, or have its result from the cache; exit as it did."""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import IO, TYPE_CHECKING

import click

from buildnet.cli import determinism, options, told_effects
from buildnet.errors import InvalidRequest

if TYPE_CHECKING:
    from buildnet.client import LogPiece, RunResult
    from buildnet.model.amounts import Amounts
    from buildnet.model.digest import Digest

_COPY_BYTES = 1 << 20


def _pairs(values: Iterable[str], option: str) -> list[tuple[str, str]]:
    pairs = []
    for value in values:
        name, separator, rest = value.partition("=")
        if not separator or not name:
            raise InvalidRequest(f"{option} takes NAME=VALUE, not {value!r}", field=option)
        pairs.append((name, rest))
    return pairs


def _by_name(values: Iterable[str], option: str) -> dict[str, str]:
    """The same where a name can have one value: which one was meant cannot be told."""
    pairs: dict[str, str] = {}
    for name, value in _pairs(values, option):
        if pairs.setdefault(name, value) != value:
            raise InvalidRequest(f"{option} gives {name} twice, with different values; give it once", field=option)
    return pairs


def _inputs(values: Iterable[str]) -> dict[str, str | Path | bytes]:
    inputs: dict[str, str | Path | bytes] = {}
    for value in values:
        source, separator, dest = value.partition(":")
        path = Path(source)
        if not separator:
            if path.is_absolute() or ".." in path.parts:
                raise InvalidRequest(
                    f"{source} is not below this directory; write --input {source}:NAME", field="input"
                )
            dest = str(path)
        if inputs.setdefault(dest, path) != path:
            raise InvalidRequest(f"--input puts two things at {dest}; give each a place of its own", field="input")
    return inputs


def _resources(cpus: str | None, memory: str | None, disk: str | None, gpus: int) -> Amounts:
    from buildnet.model.amounts import Amounts
    from buildnet.model.quantity import milli_of, size_bytes_of

    return Amounts(
        cpu_milli=milli_of(cpus, "--cpus") if cpus else 0,
        memory_bytes=size_bytes_of(memory, "--memory") if memory else 0,
        disk_bytes=size_bytes_of(disk, "--disk") if disk else 0,
        gpus=gpus,
    )


class Printer:
    """Prints an action's output while it comes, and what was left when it has ended."""

    def __init__(self) -> None:
        self._out: dict[int, IO[bytes]] = {1: sys.stdout.buffer, 2: sys.stderr.buffer}
        self._sent = {1: 0, 2: 0}
        self._terminal = sys.stderr.isatty()
        self._line = ""

    def stage(self, stage: str) -> None:
        """Show where the action stands, on a terminal, until it prints something."""
        if self._terminal and stage != "completed" and not any(self._sent.values()):
            self.clear()
            self._line = f"buildnet: {stage}…"
            sys.stderr.write(self._line)
            sys.stderr.flush()

    def clear(self) -> None:
        """Take the line about the stage away."""
        if self._line:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()
            self._line = ""

    def piece(self, piece: LogPiece) -> None:
        """Print what came."""
        if piece.offset != self._sent[piece.stream]:
            return  # a gap: the stored log fills it at the end
        self._write(piece.stream, piece.data)

    def _write(self, stream: int, data: bytes) -> None:
        self.clear()
        self._out[stream].write(data)
        self._out[stream].flush()
        self._sent[stream] += len(data)

    def rest(self, result: RunResult, download: Callable[[Digest, Path], None]) -> None:
        """Print what did not come while it ran. `download` writes a blob to a file: a log may be larger than memory."""
        for stream, digest in ((1, result.stdout_digest), (2, result.stderr_digest)):
            if digest is not None and digest.size_bytes > self._sent[stream]:
                with tempfile.TemporaryDirectory(prefix="buildnet-") as directory:
                    path = Path(directory, "log")
                    download(digest, path)
                    with path.open("rb") as file:
                        file.seek(self._sent[stream])
                        while data := file.read(_COPY_BYTES):
                            self._write(stream, data)


@click.command(
    "run",
    context_settings={"ignore_unknown_options": False, "allow_interspersed_args": False},
    epilog="Example: buildnet run --input hello.c --output hello.o -- gcc -c hello.c -o hello.o",
)
@options.of_server
@click.option("--input", "inputs", multiple=True, metavar="PATH[:DEST]", help="A file or directory to bring.")
@click.option("--output", "outputs", multiple=True, metavar="PATH", help="A file or directory to bring back.")
@click.option("--output-dir", type=click.Path(path_type=Path), default=".", help="Where outputs go.  [default: here]")
@click.option(
    "--env", multiple=True, metavar="NAME=VALUE", help="A variable; but for a plain PATH there are no others."
)
@click.option("--platform", multiple=True, metavar="NAME=VALUE", help="What the worker must offer.")
@click.option("--require", multiple=True, metavar="CONSTRAINT", help="What its resources must meet, as in 'gcc>=12'.")
@click.option("--pin", "pins", multiple=True, metavar="TOOL=VERSION", help="A tool's version, as in gcc=12.2.")
@click.option(
    "--effect", "effects", multiple=True, metavar="NAME=LEVEL", help="What it may do besides, as network=ambient."
)
@click.option("--cpus", metavar="NUMBER", help="Processors it may use, as in 0.5.")
@click.option("--memory", metavar="SIZE", help="Memory it may use, as in 512MiB.")
@click.option("--disk", metavar="SIZE", help="Scratch space it may use, as in 2GiB.")
@click.option("--gpus", type=click.IntRange(0), default=0, help="Graphics processors it needs.")
@click.option("--secret", "secrets", multiple=True, metavar="NAME=REFERENCE", help="A variable from a secret's name.")
@click.option(
    "--tier",
    type=click.Choice(["untrusted", "trusted", "local"]),
    help="The least trust in the worker.  [default: trusted]",
)
@click.option("--priority", type=options.PRIORITY, default=0, help="Lower runs sooner.")
@click.option("--timeout", "timeout_s", type=float, metavar="SECONDS", help="Limit of the execution.")
@click.option("--no-cache", is_flag=True, help="Run it even if there is a result, and keep none.")
@click.option("--twice", is_flag=True, help="Run it twice, apart from the cache, and name the outputs that differ.")
@click.option("--times", type=int, metavar="N", help="The same, N times.")
@click.option("--on-distinct", is_flag=True, help="Of --twice and --times: each run on a worker of its own.")
@click.option(
    "--receipt",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Write the proof that the result is in the ledger to this file.",
)
@click.option("-v", "--verbose", is_flag=True, help="Say where the result came from.")
@options.as_json
@click.argument("argv", nargs=-1, required=True, metavar="CMD...")
def command(
    url: str | None,
    state: Path | None,
    instance: str,
    inputs: tuple[str, ...],
    outputs: tuple[str, ...],
    output_dir: Path,
    env: tuple[str, ...],
    platform: tuple[str, ...],
    require: tuple[str, ...],
    pins: tuple[str, ...],
    effects: tuple[str, ...],
    cpus: str | None,
    memory: str | None,
    disk: str | None,
    gpus: int,
    secrets: tuple[str, ...],
    tier: str | None,
    priority: int,
    timeout_s: float | None,
    no_cache: bool,
    twice: bool,
    times: int | None,
    on_distinct: bool,
    receipt: Path | None,
    verbose: bool,
    as_json: bool,
    argv: tuple[str, ...],
) -> None:
    """Run CMD somewhere, or have its result from the cache. Exits as the command did.

    It runs in a directory of its own with the inputs in it and nothing else, without network unless --effect says so.

    With --twice or --times it exits with 123 when the runs are not all the same.
    """
    from buildnet.client.running import DEFAULT_ENVIRONMENT
    from buildnet.model.action_spec import spec_of

    # As with env(1), the last value of a variable counts.
    variables = {**DEFAULT_ENVIRONMENT, **dict(_pairs(env, "--env"))}
    resources = _resources(cpus, memory, disk, gpus)
    if twice or times is not None:
        times = 2 if times is None else times
        if receipt is not None or priority:
            raise InvalidRequest(
                "runs that are compared leave no result to prove and have no priority: leave out --receipt and "
                "--priority",
                field="times",
            )
        spec = spec_of(
            argv,
            variables=variables,
            pins=_by_name(pins, "--pin"),
            outputs=outputs,
            effects=_by_name(effects, "--effect"),
            resources=resources,
            constraints=require,
            platform=_pairs(platform, "--platform"),
            secrets=_by_name(secrets, "--secret"),
            tier=tier or "",
            timeout_s=timeout_s,
        )
        with options.connected(url, state, instance) as client:
            action = client.prepare(spec, _inputs(inputs))
            keep = partial(_keep, output_dir)
            code = determinism.check(client, action, times, on_distinct=on_distinct, as_json=as_json, keep=keep)
        raise click.exceptions.Exit(code)
    if on_distinct:
        raise InvalidRequest("--on-distinct goes with --twice or --times", field="on_distinct")
    printer = None if as_json else Printer()
    started = time.monotonic()
    with options.connected(url, state, instance) as client:
        result = client.run(
            argv,
            inputs=_inputs(inputs),
            outputs=outputs,
            env=variables,
            platform=_pairs(platform, "--platform"),
            require=require,
            pins=_by_name(pins, "--pin"),
            effects=_by_name(effects, "--effect"),
            resources=resources,
            secrets=_by_name(secrets, "--secret"),
            tier=tier or "",
            priority=priority,
            timeout_s=timeout_s,
            do_not_cache=no_cache,
            on_log=printer.piece if printer else None,
            on_stage=printer.stage if printer else None,
        )
        if printer is not None:
            printer.clear()
        result.download(output_dir)
        if receipt is not None:
            from buildnet.cli.ledger import write_receipt

            entry = result.entry_index
            write_receipt(client.receipt(result.action) if entry is None else client.prove(entry), receipt)
        if printer is None:
            options.echo_json(facts_of(result))
        else:
            printer.rest(result, client.download)
            if verbose or (sys.stderr.isatty() and sys.stdout.isatty()):
                say(result, time.monotonic() - started)
        missing = [path for path in outputs if path.rstrip("/") not in result.outputs]
        if missing and result.exit_code == 0:
            click.echo(f"buildnet: the command left no {', '.join(missing)}", err=True)
    raise click.exceptions.Exit(result.exit_code)


def _keep(output_dir: Path, result: RunResult) -> None:
    result.download(output_dir)


def say(result: RunResult, wall_s: float) -> None:
    """Tell a person where a result came from."""
    how = "from the cache" if result.cached else f"ran on {result.worker[:12]}"
    entry = "" if result.entry_index is None else f", ledger entry {result.entry_index}"
    click.echo(f"buildnet: {how} in {wall_s:.2f} s{entry}", err=True)
    told = result.effects
    if told is not None and told.trusted:
        click.echo(
            f"buildnet: advisory: isolation {told.isolation} leaves {', '.join(told.trusted)} to trust", err=True
        )
    if told is not None and told.undeclared_write_count:
        click.echo(f"buildnet: it wrote beside its outputs: {told_effects.written(told)}", err=True)


def facts_of(result: RunResult) -> dict[str, object]:
    """A result for scripts."""
    return {
        "exit_code": result.exit_code,
        "cached": result.cached,
        "action": result.action.text,
        "operation": result.operation,
        "worker": result.worker,
        "entry_index": result.entry_index,
        "execution_s": result.execution_s,
        "effects": told_effects.facts(result.effects),
        "stdout": result.stdout_digest and result.stdout_digest.text,
        "stderr": result.stderr_digest and result.stderr_digest.text,
        "outputs": {
            path: {"kind": out.kind, "digest": out.digest and out.digest.text, "executable": out.executable}
            for path, out in result.outputs.items()
        },
    }
