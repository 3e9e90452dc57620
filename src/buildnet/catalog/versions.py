"""Versions that tools told, kept by the file that told them: a file that is the same is not asked again.

What cannot be read is as if nothing had been kept. Only answers are written down: a tool that told none is asked again
after ten minutes.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

from buildnet.catalog import probe
from buildnet.catalog.known import Probe, version_in
from buildnet.files import replace_file
from buildnet.model.resource import speakable

log = logging.getLogger(__name__)

KEPT_MAX: Final = 4096
_RETRY_S: Final = 600.0
_FILE_BYTES_MAX: Final = 4 << 20
# They must not push actions aside: a compiler in Java takes more than a core while it starts.
_AT_ONCE: Final = 2

FileKey = tuple[int, int, int, int]
"""Device, inode, time of modification in ns, size in bytes."""
Ask = Callable[[str, Probe], bytes | None]


class Versions:
    """Answers by file and name: one file may be many tools."""

    def __init__(self, path: Path | None, search_path: str, ask: Ask | None = None) -> None:
        self._path = path
        self._ask = ask or (lambda tool, how: probe.ask(tool, how.arguments, search_path))
        self._known = _read(path) if path is not None else {}
        self._silent_at_s: dict[str, float] = {}

    def of(self, tools: Mapping[str, tuple[str, FileKey, Probe]]) -> dict[str, str]:
        """The version of each tool that told one, by name. `tools`: where each is, which file that is, how it is asked.

        A file is asked at most once under one name.
        """
        asked = {name: (path, how, _text(name, key)) for name, (path, key, how) in tools.items()}
        late_s = time.monotonic() - _RETRY_S
        self._silent_at_s = {text: at_s for text, at_s in self._silent_at_s.items() if at_s > late_s}
        unknown = [row for row in asked.values() if row[2] not in self._known and row[2] not in self._silent_at_s]
        if unknown:
            self._learn(unknown, {text for _, _, text in asked.values()})
        return {name: self._known[text] for name, (_, _, text) in asked.items() if text in self._known}

    def _learn(self, rows: list[tuple[str, Probe, str]], in_use: set[str]) -> None:
        with ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="probe") as threads:
            answers = threads.map(lambda row: self._ask(row[0], row[1]), rows)
        learned = False
        for (path, how, text), answer in zip(rows, answers, strict=True):
            version = version_in(how, answer) if answer is not None else ""
            if version:
                self._known[text] = version
                learned = True
            else:
                log.info("%r tells no version", path)
                self._silent_at_s[text] = time.monotonic()
        # Files that are gone are forgotten, and so this stays as small as what is there.
        if learned:
            self._known = {text: self._known[text] for text in self._known if text in in_use}
            self._write()

    def _write(self) -> None:
        if self._path is None:
            return
        try:
            replace_file(self._path, json.dumps(dict(list(self._known.items())[:KEPT_MAX])))
        except OSError as error:
            log.warning("cannot keep what tools told in %s: %s", self._path, error.strerror)


def _text(name: str, key: FileKey) -> str:
    return ":".join(map(str, (*key, name)))


def _read(path: Path) -> dict[str, str]:
    try:
        with path.open("rb") as file:
            data = json.loads(file.read(_FILE_BYTES_MAX))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as error:
        log.warning("cannot read %s, tools are asked anew: %s", path, error)
        return {}
    items: Iterable[tuple[object, object]] = data.items() if isinstance(data, dict) else ()
    return {k: v for k, v in items if isinstance(k, str) and isinstance(v, str) and v and speakable(v, 64)}
