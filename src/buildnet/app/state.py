"""The state directory: who may open it, and what version wrote it. Refuses a newer one without touching it."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from buildnet.errors import StateCorrupt, StateLocked, StateNewer
from buildnet.files import replace_file

STATE_VERSION = 1


@contextmanager
def opened(directory: Path) -> Iterator[Path]:
    """Create or check the directory, and hold its lock.

    Raises:
        StateNewer: a newer version wrote it; nothing was changed.
        StateLocked: another process has it open.
        StateCorrupt: its VERSION file is not a number, or it is not a directory.
    """
    _check_version(directory)
    try:
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        descriptor = os.open(directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise StateCorrupt(
            f"cannot use {directory} as the state directory: {error.strerror}; choose another with --state",
            path=str(directory),
        ) from error
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            # The pid is a help; a lock file without one is held all the same.
            holder = os.pread(descriptor, 20, 0).decode(errors="replace").strip()
            who = f"process {holder}" if holder.isdigit() else "another BuildNET process"
            raise StateLocked(
                f"{who} uses {directory}; stop it, or choose another directory with --state",
                path=str(directory),
                pid=holder,
            ) from error
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        _check_version(directory)
        version = directory / "VERSION"
        if not version.exists():
            replace_file(version, f"{STATE_VERSION}\n", synced=True)
        (directory / "keys").mkdir(mode=0o700, exist_ok=True)
        yield directory
    finally:
        os.close(descriptor)


def _check_version(directory: Path) -> None:
    path = directory / "VERSION"
    try:
        text = path.read_text(errors="replace")
    except FileNotFoundError:
        return
    except OSError as error:
        raise StateCorrupt(
            f"cannot read {path}: {error.strerror}; choose another state directory with --state", path=str(path)
        ) from error
    try:
        found = int(text)
    except ValueError as error:
        raise StateCorrupt(
            f"{path} does not hold a version number; restore it or choose another directory with --state",
            path=str(path),
        ) from error
    if found > STATE_VERSION:
        raise StateNewer(
            f"{directory} was written by a newer BuildNET (state version {found}, this one reads up to "
            f"{STATE_VERSION}); upgrade, or choose another directory with --state",
            path=str(directory),
            found=found,
            supported=STATE_VERSION,
        )


def next_term(directory: Path) -> int:
    """Raise and return the controller's term, so that its fences are above every earlier controller's."""
    path = directory / "term"
    try:
        term = int(path.read_text()) + 1
    except FileNotFoundError:
        term = 1
    except ValueError as error:
        raise StateCorrupt(
            f"{path} does not hold a number; restore it from a copy: an older term would let stale workers publish",
            path=str(path),
        ) from error
    replace_file(path, f"{term}\n", synced=True)
    return term


@contextmanager
def announced(directory: Path, facts: dict[str, object]) -> Iterator[None]:
    """Let local commands find this controller for as long as it runs."""
    path = directory / "controller.json"
    replace_file(path, json.dumps(facts) + "\n")
    try:
        yield
    finally:
        with suppress(FileNotFoundError):
            path.unlink()
