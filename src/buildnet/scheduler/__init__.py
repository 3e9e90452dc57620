"""The scheduler's room. Its core is taken compiled where that was made of these very sources, else as it stands."""

from pathlib import Path

from buildnet.compiled import SCHEDULER, chosen

__path__[:0] = chosen(Path(__file__).parent.parent, SCHEDULER)
