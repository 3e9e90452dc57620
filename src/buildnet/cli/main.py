"""`buildnet`: finds the command, imports only that, and turns every error into one sentence and an exit code."""

from __future__ import annotations

import gc
import importlib
import signal
import sys
from typing import Final

import click

from buildnet import __version__
from buildnet.cli import failures

# What is made while a command is imported is kept: to look for garbage after every 700 things, as is the default, takes
# a tenth of the start.
GARBAGE_AFTER: Final = 20_000
_COMMANDS = {
    "actions": "buildnet.cli.actions",
    "cas": "buildnet.cli.cas",
    "completion": "buildnet.cli.completion",
    "config": "buildnet.cli.config",
    "doctor": "buildnet.cli.doctor",
    "fleet": "buildnet.cli.fleet",
    "join": "buildnet.cli.join",
    "ledger": "buildnet.cli.ledger",
    "resources": "buildnet.cli.resources",
    "run": "buildnet.cli.run",
    "token": "buildnet.cli.token",
    "up": "buildnet.cli.up",
    "witness": "buildnet.cli.witness",
}
_HELP = {
    "actions": "What runs, what ran, what it printed.",
    "cas": "Put and get blobs and trees; look into the cache, and after it.",
    "completion": "Print the script that completes commands in your shell.",
    "config": "Check a configuration file.",
    "doctor": "Check this machine and the server.",
    "fleet": "Show workers, drain, cordon and remove them.",
    "join": "Work for a controller.",
    "ledger": "Read and verify the ledger.",
    "resources": "What nodes offer, and which of them meet a constraint.",
    "run": "Run a command somewhere, or have its result from the cache.",
    "token": "Make, show and revoke access tokens.",
    "up": "Start a controller with a local worker.",
    "witness": "Cosign the checkpoints of other ledgers.",
}


class _Lazy(click.Group):
    """Commands are imported when they are used: `--help` stays quick."""

    def invoke(self, ctx: click.Context) -> object:
        try:
            return super().invoke(ctx)
        except BrokenPipeError as error:
            # click would end with 1, which says that a check failed.
            raise click.exceptions.Exit(failures.unheard()) from error

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        command = importlib.import_module(_COMMANDS[cmd_name]).command
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(sorted(_HELP.items()))


@click.command(
    cls=_Lazy,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="Example: buildnet up, then in another terminal: buildnet run -- echo hello",
)
@click.version_option(__version__, "-V", "--version", prog_name="buildnet")
def cli() -> None:
    """BuildNET runs anything once, anywhere, and can prove it."""


def main() -> None:
    """Run the command line and exit."""
    gc.set_threshold(GARBAGE_AFTER)
    failures.open_standard_files()
    signal.signal(signal.SIGTERM, failures.terminate)
    code = failures.guarded(lambda asked: cli.main(prog_name="buildnet", standalone_mode=False, obj=asked))
    if code in (failures.INTERRUPTED, failures.TERMINATED):
        failures.leave(code)
    sys.exit(code)


if __name__ == "__main__":
    main()
