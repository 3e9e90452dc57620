"""Cuts of power: a server whose syncs are noted, and the disk that it would find when power is back.

A disk has every byte of a file's last sync and every name of a directory's. Of what came later it has all, nothing, or
the part that a file system had written back: pages in any order within what the file was long, and without gaps beyond,
since a file's growth is told after its bytes (ext4's data=ordered, XFS).
Run in full: `python -m tests.faults.power --cuts 50` (`make crash`).
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from buildnet.errors import BuildNetError
from buildnet.ledger import audit
from tests.faults.campaign import KEEP_S, Campaign
from tests.faults.process import PLAIN, Process, small_store

SYNCS: Final = ("fsync", "fdatasync", "syncfs")
PAGE_BYTES: Final = 4096
SOURCE: Final = Path(__file__).with_suffix(".c")


def compiled(directory: Path) -> Path:
    """The program that notes syncs."""
    program = directory / "power"
    subprocess.run(["cc", "-O1", "-o", str(program), str(SOURCE)], check=True)
    return program


class Powered(Process):
    """A server that is ended as a power cut does; `copy` has then what it synced."""

    def __init__(
        self, program: Path, state: Path, copy: Path, *arguments: str, command: Sequence[str], syncs: Sequence[str]
    ) -> None:
        self.copy = copy
        traced = [str(program), str(state), str(copy), ",".join(syncs), *command]
        super().__init__(state, *arguments, command=traced)

    def kill(self) -> None:
        """Cut the power."""
        self.process.terminate()
        ended = self.process.wait()
        if self.process.stdout is not None:
            self.process.stdout.close()
        assert ended == 0, f"it ended by itself, or its syncs could not be noted: {ended}"


@dataclass
class Disk:
    """What a killed server left in `state`, and what of it was synced, in `copy`.

    `written_back`: the chance that a file, or a directory, has later bytes or names too.
    """

    state: Path
    copy: Path
    chance: random.Random
    written_back: float = 0.6
    _now: dict[int, Path] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for directory, _, files in os.walk(self.state):
            for path in (Path(directory), *(Path(directory, name) for name in files)):
                self._now[path.lstat().st_ino] = path

    def restore(self, target: Path) -> None:
        """Make the directory that is found when power is back."""
        self._restore_names(self.state.stat().st_ino, target)
        shutil.copymode(self.state, target)

    def _restore_names(self, inode: int, target: Path) -> None:
        target.mkdir()
        for child, mode, name in self._names(inode):
            path = target / name
            if stat.S_ISDIR(mode):
                self._restore_names(child, path)
            elif stat.S_ISREG(mode):
                path.write_bytes(self._content(child))
            else:
                raise AssertionError(f"{name} is neither a file nor a directory")
            path.chmod(stat.S_IMODE(mode))

    def _names(self, inode: int) -> Iterator[tuple[int, int, str]]:
        now = self._now.get(inode)
        if now is not None and self.chance.random() < self.written_back:
            for path in now.iterdir():
                found = path.lstat()
                yield found.st_ino, found.st_mode, path.name
            return
        names = self.copy / f"{inode}.names"
        for line in names.read_text().splitlines() if names.exists() else ():
            child, mode, name = line.split(" ", 2)
            yield int(child), int(mode), name

    def _content(self, inode: int) -> bytes:
        synced = self.copy / str(inode)
        before = synced.read_bytes() if synced.exists() else b""
        now = self._now.get(inode)
        after = now.read_bytes() if now is not None else before
        if self.chance.random() >= self.written_back:
            return before
        return self.chance.choice([after, self._torn(before, after)])

    def _torn(self, before: bytes, after: bytes) -> bytes:
        kept = len(before)
        pages = [
            self.chance.choice([before, after])[start : min(start + PAGE_BYTES, kept)]
            for start in range(0, min(kept, len(after)), PAGE_BYTES)
        ]
        length = self.chance.choice(range(kept, len(after) + 1, PAGE_BYTES)) if len(after) > kept else kept
        return b"".join(pages)[:kept] + (after[kept:length] if len(after) > kept else before[len(after) :])


@dataclass
class PowerCampaign(Campaign):
    """A campaign whose kills are cuts of power; `syncs`: which calls its disk obeys; `written_back` as of Disk."""

    syncs: Sequence[str] = SYNCS
    written_back: float = Disk.written_back

    def run(self, kills: int) -> None:
        with tempfile.TemporaryDirectory() as directory:
            self._scratch = Path(directory)
            self._program = compiled(self._scratch)
            self.state.mkdir()
            super().run(kills)

    def started(self) -> Process:
        copy = self._scratch / "copy"
        if copy.exists():
            target = self.state.with_name("restored")
            Disk(self.state, copy, self.random, self.written_back).restore(target)
            shutil.rmtree(copy)
            shutil.rmtree(self.state)
            target.rename(self.state)
            self._look_at_ledger()
        copy.mkdir()
        command = self.command or PLAIN
        return Powered(self._program, self.state, copy, *self.arguments, command=command, syncs=self.syncs)

    def _look_at_ledger(self) -> None:
        try:
            audit.verify(self.state)
            said = {word for _, body in audit.iterate(self.state) for word in body.decode().replace('"', " ").split()}
        except BuildNetError as error:
            self.wrong.append(f"ledger after cut {self.kills}: {error}")
            return
        self.lost += [f"entry of {it}" for record in self.records for it in record.entries if it not in said]


def cutting(state: Path, seed: int, *, size_bytes_max: int = 1 << 30, **options: Any) -> PowerCampaign:
    """Cuts of power over a store of small segments, so that they fall into rolls, and into evictions if it is small."""
    command = small_store(1 << 20, size_bytes_max, KEEP_S)
    may_evict = size_bytes_max < 1 << 30
    return PowerCampaign(state, seed, command, ("--durability", "power"), may_evict=may_evict, **options)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cuts", type=int, default=50)
    parser.add_argument("--writes", type=int, default=1000, help="A cut falls before so many writes.")
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 30))
    parser.add_argument("--evict", action="store_true", help="Keep the store small, so that it evicts all the time.")
    asked = parser.parse_args()
    print(f"seed {asked.seed}", flush=True)
    size_bytes_max = 24 << 20 if asked.evict else 1 << 30
    with tempfile.TemporaryDirectory() as directory:
        state = Path(directory) / "state"
        campaign = cutting(state, asked.seed, writes_per_round=asked.writes, size_bytes_max=size_bytes_max)
        campaign.run(asked.cuts)
    print(campaign.line())
    for line in (campaign.lost + campaign.wrong)[:20]:
        print(line)
    raise SystemExit(1 if campaign.lost or campaign.wrong else 0)


if __name__ == "__main__":
    main()
