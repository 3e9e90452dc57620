"""`buildnet` with a store that rolls and evicts soon: SEGMENT_BYTES SIZE_BYTES_MAX KEEP_S ARGUMENTS…"""

from __future__ import annotations

import sys

from buildnet._native import Store
from buildnet.app import grounds
from buildnet.cli.main import main

if __name__ == "__main__":
    segment_bytes, size_bytes_max, keep_s = map(int, sys.argv[1:4])

    def small(root: str, durability: str, **_: object) -> Store:
        return Store(root, durability, segment_bytes=segment_bytes, size_bytes_max=size_bytes_max, keep_s=keep_s)

    vars(grounds)["Store"] = small
    sys.argv = ["buildnet", *sys.argv[4:]]
    main()
