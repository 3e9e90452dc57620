"""Options that several commands share, and how they print."""

from __future__ import annotations

import functools
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from buildnet.cli.failures import Asked
from buildnet.cli.printable import shown, shown_json

if TYPE_CHECKING:
    from buildnet.client import SyncClient
    from buildnet.errors import NodeDown
    from buildnet.model.credentials import Credentials

F = TypeVar("F", bound=Callable[..., object])

INDEX = click.IntRange(0, 2**63 - 1)
"""The number of an entry. A greater one is in no ledger, and no message can carry it."""
COUNT = click.IntRange(1, 2**31 - 1)
"""How many of something, at most."""

PRIORITY = click.IntRange(-(2**31), 2**31 - 1)
"""Of an execution; REAPI's ExecutionPolicy carries no other."""


def json_flag(words: str) -> Callable[[F], F]:
    """Add --json, after which errors are JSON too."""
    return click.option("--json", "as_json", is_flag=True, help=words, callback=_note_json)


def _note_json(context: click.Context, _parameter: click.Parameter, value: bool) -> bool:
    if (asked := context.find_object(Asked)) is not None:
        asked.as_json = value
    return value


as_json = json_flag("Print JSON, for scripts.")


def state(command: F) -> F:
    """Add --state."""
    default = "[default: $BUILDNET_STATE or ~/.local/state/buildnet]"
    kind = click.Path(path_type=Path, file_okay=False)
    decorated: F = click.option("--state", type=kind, help=f"State directory.  {default}")(command)
    return decorated


def secrets(command: F) -> F:
    """Add --secret, which `secret_files` reads."""
    words = "A secret that actions may name, and the file of its value; nobody else may read that file. Repeatable."
    decorated: F = click.option("--secret", multiple=True, metavar="NAME=FILE", help=words)(command)
    return decorated


def secret_files(given: Iterable[str]) -> dict[str, Path]:
    """Files of secrets by their names.

    Raises:
        InvalidRequest: one is not NAME=FILE, or a name comes twice. No text is repeated: it may be a value.
    """
    from buildnet.errors import InvalidRequest

    files: dict[str, Path] = {}
    for text in given:
        name, equals, path = text.partition("=")
        if not name or not equals or not path:
            raise InvalidRequest("--secret takes NAME=FILE: a name, and the file of the value", field="secret")
        if name in files:
            raise InvalidRequest("--secret names one secret twice; name each once", field="secret")
        files[name] = Path(path).absolute()
    return files


def cpus(command: F) -> F:
    """Add --cpus: how many processors a worker offers."""
    words = "Processors that actions may ask for together, as in 2 or 0.5.  [default: all that this machine gives]"
    return click.option("--cpus", metavar="NUMBER", help=words)(command)


def limits(command: F) -> F:
    """Add --memory-max and its like, which `given_limits` reads: what one action may use of a worker."""
    strict = "Whether an action may use processors beyond those that it asked for while nobody else wants them (share)."
    for option in (
        click.option("--cpu-limit", type=click.Choice(["share", "strict"]), help=f"{strict}  [default: share]"),
        click.option("--log-max", help="What one action may print.  [default: 1 GiB]"),
        click.option("--disk-max", help="Scratch space of one action.  [default: what is free, less a reserve]"),
        click.option("--pids-max", type=int, help="Processes and threads of one action.  [default: 1024]"),
        click.option("--memory-max", help="Memory of one action, as in '8 GiB'.  [default: all, less a reserve]"),
    ):
        command = option(command)
    return command


def given_limits(given: Mapping[str, Any]) -> dict[str, Any]:
    """What the options of `limits` say, by their keys in `[worker]`.

    Raises:
        InvalidRequest: a size is none.
    """
    from buildnet.model.quantity import size_bytes_of

    sizes = ("memory_max", "disk_max", "log_max")
    return {
        name: size_bytes_of(given[name], f"--{name.replace('_', '-')}") if name in sizes else given[name]
        for name in (*sizes, "pids_max", "cpu_limit")
        if given.get(name) is not None
    }


def credentials(command: F) -> F:
    """Add --ca-file, --cert-file, --key-file and --token-file, which `given_credentials` reads.

    A token itself is no option: other users can read what a process was called with.
    """
    for name, words in reversed(_CREDENTIALS.items()):
        option = click.option(
            f"--{name}",
            type=click.Path(path_type=Path, dir_okay=False),
            help=words,
            expose_value=False,
            callback=_remember,
        )
        command = option(command)
    return command


_CREDENTIALS = {
    "ca-file": "Verify the server by this authority, PEM.  [default: $BUILDNET_CA_FILE, or public ones]",
    "cert-file": "Show this certificate, PEM.  [default: $BUILDNET_CERT_FILE]",
    "key-file": "Its private key, PEM.  [default: $BUILDNET_KEY_FILE]",
    "token-file": "Show the token in this file.  [default: $BUILDNET_TOKEN]",
}


def _remember(context: click.Context, parameter: click.Parameter, value: Path | None) -> None:
    context.meta[f"buildnet.{parameter.name}"] = value


def given_credentials() -> Credentials:
    """What the options of `credentials` or the environment name.

    Raises:
        InvalidRequest: a file cannot be read.
    """
    from buildnet.app.config import credentials_of

    meta = click.get_current_context().meta
    return credentials_of(*(meta.get(f"buildnet.{name.replace('-', '_')}") for name in _CREDENTIALS))


def of_server(command: F) -> F:
    """Add --url, --state, --instance and credentials."""
    where = "The server, grpc://HOST:PORT, or grpcs:// for TLS.  [default: $BUILDNET_URL, or the local one]"
    with_credentials: F = credentials(command)
    with_instance: F = click.option("--instance", default="", help="REAPI instance name.")(with_credentials)
    with_state: F = state(with_instance)
    with_url: F = click.option("--url", help=where)(with_state)
    return with_url


def of_actions(command: F) -> F:
    """Add options that say which operations are meant; the command takes them together as `only`."""

    def called(*args: object, **kwargs: object) -> object:
        from buildnet.client import ActionFilter
        from buildnet.model.quantity import duration_s_of

        given = {name: kwargs.pop(f"only_{name}") for name in _ONLY}
        since = kwargs.pop("only_since")
        if since is not None:
            # The moment is shown to nobody and decides nothing here: the server compares it.
            given["since_unix_s"] = time.time() - duration_s_of(str(since), "--since")  # noqa: TID251
        given["states"] = kwargs.pop("only_states")
        return command(*args, only=ActionFilter(**given), **kwargs)  # type: ignore[arg-type]

    decorated: F = functools.wraps(command)(called)  # type: ignore[assignment]
    decorated = click.option("--since", "only_since", metavar="DURATION", help="Asked for in the last while, as 10m.")(
        decorated
    )
    for name, words in reversed(_ONLY.items()):
        decorated = click.option(f"--{name}", f"only_{name}", default="", help=words)(decorated)
    states = click.Choice(["waiting", "queued", "executing", "completed", "failed", "cancelled"])
    return click.option("--in", "only_states", multiple=True, type=states, help="In this state.")(decorated)


_ONLY = {
    "worker": "Had or has by this worker, or one whose id begins so.",
    "mnemonic": "Of this kind, as a build tool said.",
    "target": "Of this target, as a build tool said.",
    "invocation": "Of this invocation of a build tool.",
    "graph": "Of this graph.",
}


def connected(url: str | None, state: Path | None, instance: str = "") -> SyncClient:
    """A client of the server that the options, the environment or the state directory name.

    Raises:
        NodeDown: none of them names one.
        InvalidRequest: the credentials cannot be read.
    """
    from buildnet.app.config import server_url
    from buildnet.client import connect

    return connect(server_url(url, state), instance=instance, credentials=given_credentials())


def broke(failure: NodeDown) -> None:
    """Say on stderr that what is followed goes on once the server is back."""
    click.echo(f"buildnet: the connection broke, and is made again: {failure.message}", err=True)


def echo_json(value: object) -> None:
    """Print one JSON value on one line."""
    click.echo(shown_json(value))


def echo_line(text: str) -> None:
    """Print one line, with what a terminal would obey shown instead."""
    click.echo(shown(text))


def echo_table(headers: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print a table: boxed and coloured for a person, plain columns for a pipe."""
    rows = [[shown(cell) for cell in row] for row in rows]
    if sys.stdout.isatty():
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text

        table = Table(box=None, header_style="bold", pad_edge=False)
        for header in headers:
            table.add_column(header, overflow="fold")
        for row in rows:
            # Not as markup: a cell may hold brackets.
            table.add_row(*map(Text, row))
        Console().print(table)
        return
    widths = [max(len(row[i]) for row in [headers, *rows]) for i in range(len(headers))]
    for row in [headers, *rows]:
        click.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
