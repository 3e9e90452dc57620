"""`buildnet up`: a controller, its door and a local worker in one command. Options outweigh the configuration file."""

from __future__ import annotations

import asyncio
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

import click

from buildnet.cli import options

KEYS: Final = {
    "state": "controller.state",
    "listen": "controller.listen",
    "organisation": "controller.organisation",
    "slots": "controller.slots",
    "cpus": "worker.cpus",
    "no_worker": "controller.worker",
    "ignored_properties": "controller.ignored_properties",
    "durability": "cache.durability",
    "cache_size": "cache.size",
    "cache_keep": "cache.keep",
    "toolchain_path": "worker.toolchain_paths",
    "secret": "worker.secrets",
    "strict": "worker.strict",
    "memory_max": "worker.memory_max",
    "pids_max": "worker.pids_max",
    "disk_max": "worker.disk_max",
    "log_max": "worker.log_max",
    "cpu_limit": "worker.cpu_limit",
    "strict_tier": "fleet.strict_tiers",
    "tls_cert": "tls.certificate",
    "tls_key": "tls.key",
    "client_ca": "tls.client_ca",
    "anonymous": "access.anonymous",
    "trusted_key": "access.trusted_keys",
    "insecure_plaintext": "access.insecure_plaintext",
    "witness": "ledger.witnesses",
    "witness_interval": "ledger.witness_interval",
    "speculate": "scheduler.speculate",
    "timeout_max": "scheduler.timeout_max",
    "access_log": "log.access",
    "slow_ms": "log.slow_ms",
    "access_log_sample": "log.sample",
}
"""Each option's key in the configuration file."""

_FILE = click.Path(path_type=Path, dir_okay=False)


@click.command("up", epilog="Example: buildnet up --listen 127.0.0.1:8980 --slots 4")
@click.option("--config", type=_FILE, help="A configuration file in TOML; every option here has a key there.")
@options.state
@click.option("--listen", help="Address; port 0 takes a free one.  [default: 127.0.0.1:8980]")
@click.option("--organisation", help="Whose controller it is, as join lines say.  [default: local]")
@click.option("--slots", type=int, help="Actions to run here at once that ask for no cpus.  [default: one a processor]")
@options.cpus
@click.option("--no-worker", is_flag=True, default=None, help="Run no actions here; others may join.")
@click.option(
    "--ignored-properties",
    metavar="NAMES",
    help="Platform properties that no worker need offer, by commas.  [default: container-image]",
)
@click.option(
    "--durability",
    type=click.Choice(["process", "power"]),
    help="What an acknowledged write survives: the death of a process, or the loss of power.  [default: process]",
)
@click.option("--cache-size", help="How much the cache holds, as in '50 GiB'.")
@click.option("--cache-keep", help="For how long nothing is evicted that was used, as in 15m.")
@click.option(
    "--toolchain-path",
    multiple=True,
    type=click.Path(path_type=Path),
    help="A file or directory that the local worker's actions may read, besides /usr and the like.",
)
@options.secrets
@options.limits
@click.option("--strict", is_flag=True, default=None, help="Local actions may write nothing but declared outputs.")
@click.option(
    "--strict-tier",
    multiple=True,
    type=click.Choice(["untrusted", "trusted", "local"]),
    help="The same on every node that is trusted so far.",
)
@click.option("--tls-cert", type=_FILE, help="Serve TLS with this certificate and those above it, PEM.")
@click.option("--tls-key", type=_FILE, help="Its private key, PEM.")
@click.option("--client-ca", type=_FILE, help="Believe certificates of clients that this authority signed, PEM.")
@click.option(
    "--anonymous",
    type=click.Choice(["all", "read", "none"]),
    help="What callers without credentials may do.  [default: all on loopback, else none]",
)
@click.option("--trusted-key", multiple=True, type=_FILE, help="Believe tokens signed by this public key too, PEM.")
@click.option("--insecure-plaintext", is_flag=True, default=None, help="Listen beyond this machine without TLS.")
@click.option("--witness", multiple=True, metavar="URL=KEY", help="Have this witness cosign the ledger's checkpoints.")
@click.option("--witness-interval", help="Ask witnesses at most so often, as in 10s.  [default: 10s]")
@click.option("--speculate", is_flag=True, default=None, help="Try what runs much longer than its like twice at once.")
@click.option("--timeout-max", help="For how long an action may ask to run, as in 4h.  [default: 2h]")
@click.option("--access-log", metavar="FILE", help="Tell errors, slow calls and a sample there; - is standard output.")
@click.option("--slow-ms", type=int, help="Calls of so many milliseconds are told.  [default: 500]")
@click.option("--access-log-sample", type=float, help="Share of the other calls, 0 to 1.  [default: 0.01]")
@options.as_json
def command(config: Path | None, as_json: bool, **given: Any) -> None:
    """Start a controller with a local worker, and stop both on Ctrl-C or SIGTERM."""
    from buildnet.app.admission import is_loopback
    from buildnet.app.config_file import configured
    from buildnet.app.controller import Ready, run_controller
    from buildnet.cli.serving import serve

    settings = configured(config, overrides(given))

    def announce(ready: Ready) -> None:
        if as_json:
            options.echo_json({"ready": True, **asdict(ready)})
            return
        work = f"{ready.slots} slots" if settings.worker else "no worker"
        click.echo(f"BuildNET is ready at {ready.url} ({work}, state in {ready.state}); stop with Ctrl-C")
        # By this address nobody comes from elsewhere.
        who = "One more worker on this machine" if is_loopback(ready.listen) else "One worker elsewhere"
        click.echo(f"{who} joins within the hour with: buildnet join '{ready.join}'")

    async def role(stop: asyncio.Event, stop_now: asyncio.Event) -> None:
        await run_controller(settings, announce, stop, stop_now)

    serve(role)


def overrides(given: dict[str, Any]) -> dict[str, Any]:
    """Options that were given, by their keys in the configuration file and as it would give them."""
    from buildnet.app.config import WitnessConfig
    from buildnet.model.quantity import duration_s_of, milli_of, size_bytes_of

    settings = {KEYS[name]: value for name, value in given.items() if value is not None and value != ()}
    if given.get("no_worker"):
        settings["controller.worker"] = False
    if paths := given.get("toolchain_path"):
        settings["worker.toolchain_paths"] = tuple(path.absolute() for path in paths)
    if secrets := given.get("secret"):
        settings["worker.secrets"] = options.secret_files(secrets)
    settings |= {f"worker.{name}": value for name, value in options.given_limits(given).items()}
    if (cpus := given.get("cpus")) is not None:
        settings["worker.cpus"] = milli_of(cpus, "--cpus")
    if size := given.get("cache_size"):
        settings["cache.size"] = size_bytes_of(size, "--cache-size")
    if keep := given.get("cache_keep"):
        settings["cache.keep"] = duration_s_of(keep, "--cache-keep")
    if interval := given.get("witness_interval"):
        settings["ledger.witness_interval"] = duration_s_of(interval, "--witness-interval")
    if timeout := given.get("timeout_max"):
        settings["scheduler.timeout_max"] = duration_s_of(timeout, "--timeout-max")
    if (names := given.get("ignored_properties")) is not None:
        settings["controller.ignored_properties"] = tuple(name.strip() for name in names.split(",") if name.strip())
    if witnesses := given.get("witness"):
        settings["ledger.witnesses"] = tuple(WitnessConfig.parse(*one.partition("=")[::2]) for one in witnesses)
    return settings
