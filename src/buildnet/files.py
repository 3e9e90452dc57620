"""The one place that replaces a file: whoever reads it, also after a crash, sees the old text or the new one."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path


def replace_file(path: Path, text: str, *, synced: bool = False, mode: int = 0o666) -> None:
    """Write `text` (UTF-8) under another name, `mode` less the umask, and give it that of `path`; with `synced`, both
    are on the disk when it returns. One process writes a path at a time.

    Raises:
        OSError: it cannot be written; the file before stays, and nothing beside it.
    """
    fresh = path.with_name(f"{path.name}.new")
    # One that a killed process left may have another mode.
    fresh.unlink(missing_ok=True)
    try:
        descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            if synced:
                os.fsync(file.fileno())
        fresh.replace(path)
    except OSError:
        with suppress(OSError):
            fresh.unlink()
        raise
    if synced:
        sync_directory(path.parent)


def sync_directory(directory: Path) -> None:
    """Have the names in it on the disk: those of new files are lost with the power until then, whatever they hold.

    Raises:
        OSError: the disk fails.
    """
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
