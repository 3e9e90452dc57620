"""`buildnet actions rerun|repro`: an action once more, on BuildNET or by hand. Nothing that is there is overwritten."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

import click

from buildnet.cli import options
from buildnet.cli.actions_why import resolved
from buildnet.errors import InvalidRequest

if TYPE_CHECKING:
    from buildnet.model.digest import Digest
    from buildnet.model.history import Parts


@click.command("rerun", epilog="Example: buildnet actions rerun 3f2a9c --on 8135a906ccdf")
@options.of_server
@click.option("--on", "worker", metavar="WORKER", help="The worker that is to run it: an id, its beginning, or a host.")
@click.option("--output-dir", type=click.Path(path_type=Path), help="Bring its outputs here.  [default: leave them]")
@options.as_json
@click.argument("name", metavar="ID|DIGEST")
def rerun(
    url: str | None,
    state: Path | None,
    instance: str,
    worker: str | None,
    output_dir: Path | None,
    as_json: bool,
    name: str,
) -> None:
    """Run an action once more, whatever the cache holds, and keep no result. Exits as the command did."""
    from buildnet.cli.run import Printer, facts_of, say

    printer = None if as_json else Printer()
    with options.connected(url, state, instance) as client:
        action = client.action_of(resolved(client, name))
        node = client.fleet_find(worker).node if worker else ""
        result = client.rerun(
            action,
            worker=node,
            on_log=printer.piece if printer else None,
            on_stage=printer.stage if printer else None,
        )
        if printer is None:
            options.echo_json(facts_of(result))
        else:
            printer.clear()
            printer.rest(result, client.download)
            say(result, result.execution_s or 0.0)
        if output_dir is not None:
            result.download(output_dir)
    raise click.exceptions.Exit(result.exit_code)


@click.command("repro", epilog="Example: buildnet actions repro 3f2a9c ./repro && ./repro/run.sh")
@options.of_server
@options.as_json
@click.argument("name", metavar="ID|DIGEST")
@click.argument("directory", metavar="DIR", type=click.Path(path_type=Path, file_okay=False))
def repro(url: str | None, state: Path | None, instance: str, as_json: bool, name: str, directory: Path) -> None:
    """Write an action's inputs to DIR, with a script that runs it by hand.

    DIR/run.sh copies the inputs, runs the command with the action's environment and no other, and lists the outputs.
    It runs with your rights: nothing is kept from it. DIR must be empty or not there.
    """
    if directory.exists() and any(directory.iterdir()):
        raise InvalidRequest(f"{directory} is not empty; name another directory", field="directory")
    with options.connected(url, state, instance) as client:
        action = client.action_of(resolved(client, name))
        parts = client.parts(action)
        assert parts.root is not None, "every Action has an input root"
        directory.mkdir(parents=True, exist_ok=True)
        inputs = directory / "inputs"
        inputs.mkdir()
        client.download_tree(parts.root, inputs)
    script = directory / "run.sh"
    script.write_text("".join(f"{line}\n" for line in _script(action, parts)))
    # The environment may hold what others are not to read.
    script.chmod(0o700)
    told = asdict(parts) | {"action": action.text, "root": parts.root.text, "salt": parts.salt.hex()}
    (directory / "action.json").write_text(json.dumps(told, indent=2) + "\n")
    (directory / "action.json").chmod(0o600)
    if as_json:
        options.echo_json({"action": action.text, "directory": str(directory), "script": str(script)})
    else:
        click.echo(f"{script} runs {action.text} by hand")


def _script(action: Digest, parts: Parts) -> Iterator[str]:
    """The lines of run.sh. Every word from outside is quoted."""
    place = "./" + parts.working_directory
    yield from (
        "#!/bin/sh",
        f"# Runs the action {action.text} by hand: in a fresh copy of its inputs, with its environment and no other.",
        "set -eu",
        'here=$(CDPATH= cd -- "$(dirname -- "$0")" && pwd)',
        'work="$here/work"',
        'if [ -e "$work" ]; then',
        '    echo "$work is there from an earlier run; remove it first" >&2',
        "    exit 125",
        "fi",
        'cp -a -- "$here/inputs" "$work"',
        'cd -- "$work"',
        f"mkdir -p -- {shlex.quote(place)}",
        f"cd -- {shlex.quote(place)}",
    )
    parents = sorted({str(PurePosixPath(path).parent) for path in parts.outputs} - {".", "/"})
    if parents:
        yield f"mkdir -p -- {' '.join(map(shlex.quote, parents))}"
    yield "status=0"
    words = [f"{name}={value}" for name, value in parts.variables]
    yield f"env -i -- {' '.join(map(shlex.quote, [*words, *parts.arguments]))} || status=$?"
    yield 'echo "exit code $status" >&2'
    if parts.outputs:
        yield f"for output in {' '.join(map(shlex.quote, parts.outputs))}; do"
        yield from (
            '    if [ -e "./$output" ] || [ -L "./$output" ]; then',
            '        find "./$output" -type f -exec sha256sum -- {} + -o -type l -exec ls -ld -- {} +',
            "    else",
            '        echo "$output was not left" >&2',
            "    fi",
            "done",
        )
    yield 'exit "$status"'
