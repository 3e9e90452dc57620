"""`buildnet join URL`: a worker that dials a controller."""

from __future__ import annotations

import asyncio
from dataclasses import asdict, replace
from pathlib import Path

import click

from buildnet.cli import options


@click.command("join", epilog="Example: buildnet join grpc://127.0.0.1:8980 --slots 2")
@click.argument("url")
@options.state
@options.credentials
@click.option("--slots", type=int, help="Actions to run at once.  [default: one a processor]")
@click.option("--cache-size", help="What the worker keeps of blobs and input trees, as in '20 GiB'.")
@click.option("--hide", multiple=True, type=click.Path(path_type=Path), help="A directory that no action may see.")
@click.option("--quiet", is_flag=True, help="Print no ready line.")
@click.option("--until-stdin-closes", is_flag=True, help="Leave at once when standard input ends.")
@click.option("--token-from-stdin", is_flag=True, help="Show the newest token that standard input brings, one a line.")
@options.as_json
def command(
    url: str,
    state: Path | None,
    slots: int | None,
    cache_size: str | None,
    hide: tuple[Path, ...],
    quiet: bool,
    until_stdin_closes: bool,
    token_from_stdin: bool,
    as_json: bool,
) -> None:
    """Work for the controller at URL. Ctrl-C finishes what runs and leaves; a second one leaves at once."""
    from buildnet.app import worker
    from buildnet.app.config import WorkerRunConfig, default_slots, default_state_dir
    from buildnet.cli.serving import StdinTokens, on_stdin_closed, serve
    from buildnet.model.quantity import size_bytes_of

    directory = (state or default_state_dir() / "worker").absolute()
    hidden = tuple(path.absolute() for path in hide)
    credentials = options.given_credentials()
    tokens = StdinTokens() if token_from_stdin else None
    if tokens is not None:
        tokens.wait()
        credentials = replace(credentials, token=tokens)
    cache_size_bytes = None if cache_size is None else size_bytes_of(cache_size, "--cache-size")
    config = WorkerRunConfig(url, directory, slots or default_slots(), hidden, credentials, cache_size_bytes)

    def announce(joined: worker.Joined) -> None:
        if quiet:
            return
        if as_json:
            options.echo_json({"ready": True, **asdict(joined)})
        else:
            click.echo(f"This worker has joined {url} with {joined.slots} slots; stop with Ctrl-C")

    async def role(stop: asyncio.Event, stop_now: asyncio.Event) -> None:
        if until_stdin_closes or tokens is not None:
            on_stdin_closed([stop, stop_now] if until_stdin_closes else [], tokens)
        await worker.run(config, announce, stop, stop_now)

    serve(role)
