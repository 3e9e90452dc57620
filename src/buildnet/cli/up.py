"""`buildnet up`: a controller, its door and a local worker in one command."""

from __future__ import annotations

import asyncio
from dataclasses import asdict
from pathlib import Path

import click

from buildnet.cli import options


@click.command("up", epilog="Example: buildnet up --listen 127.0.0.1:8980 --slots 4")
@options.state
@click.option("--listen", default="127.0.0.1:8980", show_default=True, help="Address; port 0 takes a free one.")
@click.option("--slots", type=int, help="Actions the local worker runs at once.  [default: one a processor]")
@click.option("--no-worker", is_flag=True, help="Run no actions here; others may join.")
@click.option(
    "--durability",
    type=click.Choice(["process", "power"]),
    default="process",
    show_default=True,
    help="What an acknowledged write survives: the death of a process, or the loss of power.",
)
@click.option("--access-log", metavar="FILE", help="Tell errors, slow calls and a sample there; - is standard output.")
@click.option("--slow-ms", type=int, default=500, show_default=True, help="Calls of so many milliseconds are told.")
@click.option(
    "--access-log-sample", type=float, default=0.01, show_default=True, help="Share of the other calls, 0 to 1."
)
@options.as_json
def command(
    state: Path | None,
    listen: str,
    slots: int | None,
    no_worker: bool,
    durability: str,
    access_log: str | None,
    slow_ms: int,
    access_log_sample: float,
    as_json: bool,
) -> None:
    """Start a controller with a local worker, and stop both on Ctrl-C or SIGTERM."""
    from buildnet.app.config import AccessLogConfig, ControllerConfig, default_slots, default_state_dir
    from buildnet.app.controller import Ready, run_controller
    from buildnet.cli.serving import serve

    directory = (state or default_state_dir()).absolute()
    log = AccessLogConfig(access_log, slow_ms, access_log_sample) if access_log else None
    config = ControllerConfig(directory, listen, slots or default_slots(), not no_worker, durability, log)

    def announce(ready: Ready) -> None:
        if as_json:
            options.echo_json({"ready": True, **asdict(ready)})
            return
        work = f"{ready.slots} slots" if config.worker else "no worker"
        click.echo(f"BuildNET is ready at {ready.url} ({work}, state in {ready.state}); stop with Ctrl-C")

    async def role(stop: asyncio.Event, stop_now: asyncio.Event) -> None:
        await run_controller(config, announce, stop)

    serve(role)
