"""`buildnet` with a store that rolls and evicts soon: SEGMENT_BYTES SIZE_BYTES_MAX KEEP_S ARGUMENTS…"""

from __future__ import annotations

import functools
import sys

from buildnet._native import Store
from buildnet.app import controller
from buildnet.cli.main import main

if __name__ == "__main__":
    segment_bytes, size_bytes_max, keep_s = map(int, sys.argv[1:4])
    small = functools.partial(Store, segment_bytes=segment_bytes, size_bytes_max=size_bytes_max, keep_s=keep_s)
    vars(controller)["Store"] = small
    sys.argv = ["buildnet", *sys.argv[4:]]
    main()
