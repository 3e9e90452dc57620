"""The scheduler's room. Its core is taken compiled where that was made of these very sources, else as it stands."""

from pathlib import Path

from buildnet.scheduler.compiled import directory_of

if (_compiled := directory_of(Path(__file__).parent.parent)).is_dir():
    __path__.insert(0, str(_compiled))
