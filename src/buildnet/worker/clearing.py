"""Scratch directories that attempts have done with: put aside at once, removed soon, by threads of their own.

To remove one takes milliseconds on some file systems, which nobody is to wait for. Each lane has its own directory,
so that who removes in it holds up nobody elsewhere.
"""

from __future__ import annotations

import itertools
import logging
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Final

from buildnet._native import NativeError, remove_tree

_log = logging.getLogger(__name__)

_LANES: Final = 4
# What waits to be removed still takes room on the disk.
WAITING_MAX: Final = 256


class Clearing:
    """Takes directories of one file system. Any thread may give it some."""

    def __init__(self, directory: Path) -> None:
        """`directory`: where they wait, on the file system of what is given; what a killed worker left there goes."""
        self._lanes = [directory / str(lane) for lane in range(_LANES)]
        self._threads = ThreadPoolExecutor(_LANES, "clearing")
        self._numbers = itertools.count()
        self._waiting: deque[Future[None]] = deque()
        _remove(directory)
        for lane in self._lanes:
            lane.mkdir(parents=True, mode=0o700)

    def take(self, path: Path) -> None:
        """Have a directory removed; it is not at its place any more when this returns. Waits while too many wait."""
        number = next(self._numbers)
        aside = self._lanes[number % _LANES] / str(number)
        try:
            path.rename(aside)
        except OSError:
            # Not there, or not to be moved: it is removed where it is.
            _remove(path)
            return
        try:
            self._waiting.append(self._threads.submit(_remove, aside))
        except RuntimeError:
            # Closed already: an attempt that was left behind ends after its worker.
            _remove(aside)
        while self._waiting and (self._waiting[0].done() or len(self._waiting) > WAITING_MAX):
            self._waiting.popleft().result()

    def close(self) -> None:
        """Return once all that was taken is removed."""
        self._threads.shutdown()


def _remove(path: Path) -> None:
    try:
        remove_tree(str(path))
    except NativeError as error:
        _log.warning("%s could not be removed: %s", path, error.message)
