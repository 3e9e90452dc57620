"""`buildnet join LINE`: a worker that dials a controller, by a session of its own keys or by URL and token."""

from __future__ import annotations

import asyncio
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from buildnet.cli import options
from buildnet.errors import InvalidRequest

if TYPE_CHECKING:
    from buildnet.app.config import WorkerRunConfig
    from buildnet.model.credentials import Credentials
    from buildnet.model.join_line import JoinLine


@click.command(
    "join",
    epilog="Example: buildnet join 'bnet://build.example:8980/team?key=…&term=1&token=…', or by TLS and a token: "
    "buildnet join grpcs://build.example:8980 --token-file rack7.token",
)
@click.argument("line", required=False)
@options.state
@options.credentials
@click.option("--slots", type=int, help="Actions to run at once that ask for no cpus.  [default: one a processor]")
@options.cpus
@click.option("--cache-size", help="What the worker keeps of blobs and input trees, as in '20 GiB'.")
@click.option("--cache-keep", help="For how long none of these blobs is evicted that was used.  [default: 15m]")
@click.option("--hide", multiple=True, type=click.Path(path_type=Path), help="A directory that no action may see.")
@click.option(
    "--toolchain-path",
    multiple=True,
    type=click.Path(path_type=Path),
    help="A file or directory that actions may read, besides /usr and the like.",
)
@options.secrets
@options.limits
@click.option("--strict", is_flag=True, help="Actions may write nothing but declared outputs, and none is trusted.")
@click.option("--quiet", is_flag=True, help="Print no ready line.")
@click.option("--until-stdin-closes", is_flag=True, help="Leave at once when standard input ends.")
@click.option("--token-from-stdin", is_flag=True, help="Show the newest token that standard input brings, one a line.")
@options.as_json
def command(
    line: str | None,
    state: Path | None,
    slots: int | None,
    cpus: str | None,
    cache_size: str | None,
    cache_keep: str | None,
    hide: tuple[Path, ...],
    toolchain_path: tuple[Path, ...],
    secret: tuple[str, ...],
    strict: bool,
    quiet: bool,
    until_stdin_closes: bool,
    token_from_stdin: bool,
    as_json: bool,
    **limits: Any,
) -> None:
    """Work for a controller: LINE is what `buildnet up` or `buildnet fleet tokens new` printed, or a URL.

    A node that has joined by a line is known by its key: without LINE it joins the same controller again. A line in a
    file or on standard input (-) is shown to no other user of this machine. Ctrl-C finishes what runs and leaves; a
    second one leaves at once.
    """
    from buildnet.app import worker
    from buildnet.app.config import action_limits, default_slots, default_state_dir, offered_cpu_milli
    from buildnet.cli.serving import StdinTokens, on_stdin_closed, serve
    from buildnet.model.quantity import duration_s_of, milli_of, size_bytes_of

    cpu_milli = offered_cpu_milli(None if cpus is None else milli_of(cpus, "--cpus"))
    directory = (state or default_state_dir() / "worker").absolute()
    config = replace(
        _config(line, directory),
        slots=default_slots(cpu_milli) if slots is None else slots,
        cpu_milli=cpu_milli,
        hidden=tuple(path.absolute() for path in hide),
        toolchain=tuple(path.absolute() for path in toolchain_path),
        secrets=options.secret_files(secret),
        strict=strict,
        limits=action_limits(options.given_limits(limits)),
        cache_size_bytes=None if cache_size is None else size_bytes_of(cache_size, "--cache-size"),
        cache_keep_s=None if cache_keep is None else duration_s_of(cache_keep, "--cache-keep"),
    )
    tokens = StdinTokens() if token_from_stdin else None
    if tokens is not None:
        tokens.wait()
        config = replace(config, credentials=replace(config.credentials, token=tokens))

    def announce(joined: worker.Joined) -> None:
        if quiet:
            return
        if as_json:
            options.echo_json({"ready": True, **asdict(joined)})
        else:
            click.echo(f"This worker has joined {config.url} with {joined.slots} slots; stop with Ctrl-C")

    async def role(stop: asyncio.Event, stop_now: asyncio.Event) -> None:
        if until_stdin_closes or tokens is not None:
            on_stdin_closed([stop, stop_now] if until_stdin_closes else [], tokens)
        await worker.run(config, announce, stop, stop_now)

    serve(role)


def _config(text: str | None, directory: Path) -> WorkerRunConfig:
    """Where to dial, and by what."""
    from buildnet.app.config import WorkerRunConfig
    from buildnet.model.join_line import JoinLine, is_join_line

    if text is None:
        from buildnet.app.worker import known_line

        known = known_line(directory)
        if known is None:
            raise InvalidRequest(
                f"no controller is named, and the node in {directory} has joined none by a line; "
                "ask for a join line: buildnet fleet tokens new",
                field="line",
            )
        return WorkerRunConfig(known.url, directory, line=known, credentials=_credentials(known))
    if text == "-" or (not is_join_line(text) and "/" in text and Path(text).is_file()):
        text = _read(text)
    if not is_join_line(text):
        return WorkerRunConfig(text, directory, credentials=options.given_credentials())
    line = JoinLine.parse(text)
    return WorkerRunConfig(line.url, directory, line=line, credentials=_credentials(line))


def _credentials(line: JoinLine) -> Credentials:
    """For whoever ends TLS before the controller: no token, since the session proves who joins."""
    from buildnet.model.credentials import NONE

    if line.carrier != "https":
        return NONE
    return replace(options.given_credentials(), token=NONE.token)


def _read(name: str) -> str:
    from buildnet.model.join_line import LINE_CHARACTERS_MAX

    try:
        with click.open_file(name) as file:
            return str(file.read(LINE_CHARACTERS_MAX + 2))
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidRequest(f"cannot read a join line from {name}: {error}", field="line") from error
