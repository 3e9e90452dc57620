"""`buildnet witness`: cosign other ledgers' checkpoints, each only as a continuation of the one before."""

from __future__ import annotations

import asyncio
from dataclasses import asdict
from pathlib import Path

import click

from buildnet.cli import options


@click.command("witness", epilog='Example: buildnet witness --state DIR --origin "$(cat LEDGER/key.pub)"')
@options.state
@click.option(
    "--listen", default="127.0.0.1:8981", show_default=True, help="Address; port 0 takes a free one. Plain HTTP."
)
@click.option("--origin", "origins", multiple=True, metavar="KEY", help="Witness this log; may be repeated.")
@click.option("--name", help="Sign under this name.  [default: one made of the key]")
@options.as_json
def command(state: Path | None, listen: str, origins: tuple[str, ...], name: str | None, as_json: bool) -> None:
    """Cosign the checkpoints of logs that you name by their verifier keys (c2sp.org/tlog-witness)."""
    from buildnet.app.config import default_state_dir
    from buildnet.app.witness import WitnessReady, WitnessRunConfig, run_witness
    from buildnet.cli.serving import serve
    from buildnet.ledger.checkpoint import Verifier

    directory = (state or default_state_dir() / "witness").absolute()
    logs = tuple(Verifier.parse(origin.strip()) for origin in origins)
    config = WitnessRunConfig(directory, listen, logs, name)

    def announce(ready: WitnessReady) -> None:
        if as_json:
            options.echo_json({"ready": True, **asdict(ready)})
            return
        click.echo(
            f"BuildNET witnesses {len(set(logs))} logs at {ready.url} (state in {ready.state}); stop with Ctrl-C"
        )
        click.echo(f"key: {ready.key}")

    async def role(stop: asyncio.Event, stop_now: asyncio.Event) -> None:
        await run_witness(config, announce, stop)

    serve(role)
