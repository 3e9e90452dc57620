"""All that a core decides in worlds of seeds, as one sum: `python -m tests.sim.decisions compiled|interpreted SEEDS`.

Prints which form it was, and the sum. Two forms that decide the same print the same sum.
"""

from __future__ import annotations

import hashlib
import sys

from tests.interpreted import interpret


def main(form: str, seeds: int) -> None:
    if form == "interpreted":
        interpret()
    from buildnet.scheduler import core
    from tests.sim.test_scheduler import World, run

    told = hashlib.sha256()

    class Recorded(World):
        def _apply(self, effect: object) -> None:
            told.update(repr(effect).encode())
            super()._apply(effect)

    for seed in range(seeds):
        run(Recorded(seed))
    print("interpreted" if core.__file__.endswith(".py") else "compiled", told.hexdigest())


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
