"""`buildnet cas`: blobs and trees by their digests, and what a server keeps of them."""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO

import click

from buildnet.cli import cas_keep, cas_look, options
from buildnet.model.digest import Digest


@click.group("cas", epilog="Example: buildnet cas put README.md")
def command() -> None:
    """Put and get blobs and trees by their digest, HASH/SIZE; look into the cache, and after it."""


for _command in (cas_look.ls, cas_look.stat, cas_look.why, cas_look.du, cas_keep.gc, cas_keep.scrub):
    command.add_command(_command)


@command.command("put", epilog="Example: buildnet cas put src/")
@options.of_server
@options.as_json
@click.argument("path", type=click.Path(exists=True, allow_dash=True, path_type=Path))
def put(url: str | None, state: Path | None, instance: str, as_json: bool, path: Path) -> None:
    """Store a file, a directory as a tree, or standard input (-), and print its digest."""
    with options.connected(url, state, instance) as client, ExitStack() as stack:
        kind = "blob"
        if str(path) == "-" or path.is_fifo():
            # A file is read to be hashed, and again to be sent; a pipe says it once.
            spool, place = stack.enter_context(_spooled())
            source = sys.stdin.buffer if str(path) == "-" else stack.enter_context(path.open("rb"))
            shutil.copyfileobj(source, spool)
            spool.flush()
            digest = client.upload(place)
        elif path.is_dir():
            kind, digest = "directory", client.upload_tree({"": path})
        else:
            digest = client.upload(path)
    if as_json:
        options.echo_json({"digest": digest.text, "kind": kind, "size_bytes": digest.size_bytes})
    else:
        click.echo(digest.text)


@command.command("get", epilog="Example: buildnet cas get HASH/SIZE -o file; for a tree: --tree -o directory")
@options.of_server
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Where to write.  [default: standard output]")
@click.option("--tree", is_flag=True, help="The digest is a Directory's: write all below it.")
@click.argument("digest")
def get(url: str | None, state: Path | None, instance: str, output: Path | None, tree: bool, digest: str) -> None:
    """Write a blob to standard output or a file, or a tree to a directory."""
    wanted = Digest.parse(digest)
    if tree and output is None:
        raise click.UsageError("a tree goes to a directory: -o DIRECTORY")
    with options.connected(url, state, instance) as client:
        if tree and output is not None:
            client.download_tree(wanted, output)
        elif output is not None:
            client.download(wanted, output)
        else:
            # Whole before the first byte is printed: what follows in the pipe is to see all of it or nothing.
            with _spooled() as (spool, place):
                client.download(wanted, place)
                shutil.copyfileobj(spool, sys.stdout.buffer)
                sys.stdout.buffer.flush()


@contextmanager
def _spooled() -> Iterator[tuple[IO[bytes], Path]]:
    """A file without a name, and by what name others open it all the same (proc(5))."""
    with tempfile.TemporaryFile(prefix="buildnet-") as spool:
        yield spool, Path(f"/proc/self/fd/{spool.fileno()}")
