"""A tree of 10,000 files put before an action, new and kept, and 1,000 outputs taken from it.

Back of the envelope: a file made on ext4 is some 15-20 us of kernel (an inode, an entry, a page), so 10,000 of them are
150-200 ms of processor, half of that in wall time with two processors: that is the floor of a copy, and the bare calls
of the same tree are printed beside it. A new tree to be kept is one file of 80 MB: 46 MB read, checked and written,
50-80 ms of processor. One that differs in a directory is that directory. A kept tree is one mount and a few
directories: 0.3-0.5 ms. 1,000 outputs of 10 KiB are 10 MiB: 6-10 ms of SHA-256, as much of copying, and 10 us a file to
open, look and read.

Wall time is of a quiet machine; processor time is that of this process, all threads together.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))
from bench.lines import header, line
from buildnet._native import StagedRoot, Store, Trees, collect, remove_tree, stage
from buildnet.wire._gen.build.bazel.remote.execution.v2 import remote_execution_pb2 as re

DIRECTORIES, FILES_EACH, FILE_BYTES = 100, 100, 4600
OUTPUTS, OUTPUT_BYTES = 1000, 10 << 10
ROUNDS = 5


def content(number: int, size_bytes: int) -> bytes:
    """Bytes that no other number has."""
    return hashlib.shake_128(str(number).encode()).digest(size_bytes)


def digest(text: str) -> re.Digest:
    """The message of a digest."""
    hash_, size = text.split("/")
    return re.Digest(hash=hash_, size_bytes=int(size))


def tree(store: Store, salt: str, changed: int = DIRECTORIES) -> str:
    """Put a tree into the store; returns its root's digest. Its last `changed` directories have names with `salt`."""
    root = re.Directory()
    for number in range(DIRECTORIES):
        directory = re.Directory()
        first = salt if number >= DIRECTORIES - changed else "f"
        for file in range(FILES_EACH):
            data = content(number * FILES_EACH + file, FILE_BYTES)
            directory.files.add(name=f"{first}{file:03}", digest=digest(store.put_bytes(data)))
        root.directories.add(name=f"d{number:03}", digest=digest(store.put_bytes(directory.SerializeToString())))
    return store.put_bytes(root.SerializeToString())


def best(call: Callable[[int], object], after: Callable[[int], object] = lambda _: None) -> tuple[float, float]:
    """The quickest of some rounds: wall and processor milliseconds. `after` is no part of them."""
    times = []
    for number in range(ROUNDS):
        wall, cpu = time.perf_counter(), time.process_time()
        call(number)
        times.append(((time.perf_counter() - wall) * 1e3, (time.process_time() - cpu) * 1e3))
        after(number)
    return min(times)


def show(name: str, measured: tuple[float, float], peer: str, peer_ms: float) -> None:
    """Print wall time beside its peer, and processor time below."""
    line(name, measured[0], "ms", f"{peer}, ms", peer_ms)
    print(f"    {measured[1]:.1f} ms of processor")


def bare(root: Path, data: bytes) -> None:
    """The tree by the calls that it takes at least, in as many threads as there are processors."""
    threads = len(os.sched_getaffinity(0))

    def some(first: int) -> None:
        for number in range(first, DIRECTORIES, threads):
            (root / f"d{number:03}").mkdir()
            directory = os.open(root / f"d{number:03}", os.O_RDONLY | os.O_DIRECTORY)
            for file in range(FILES_EACH):
                made = os.open(f"f{file:03}", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644, dir_fd=directory)
                os.write(made, data)
                os.close(made)
            os.close(directory)

    root.mkdir()
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(some, range(threads)))


def trees(store: Store, scratch: Path) -> None:
    """New and kept trees, beside `cp -r` and bare system calls."""
    roots = [tree(store, f"salt{number}") for number in range(ROUNDS)]
    nearly = [tree(store, f"other{number}", changed=1) for number in range(ROUNDS)]
    command = re.Command(arguments=["true"], output_paths=["out/a"]).SerializeToString()
    source = scratch / "source"
    stage(store, roots[0], str(source), command)
    copy = scratch / "copy"
    cp = best(lambda _: subprocess.run(["cp", "-r", source, copy], check=True), lambda _: shutil.rmtree(copy))
    work = scratch / "root"
    copied = best(lambda n: stage(store, roots[n], str(work), command), lambda _: remove_tree(str(work)))
    floor = best(lambda _: bare(copy, content(0, FILE_BYTES)), lambda _: shutil.rmtree(copy))
    show("10,000 files copied", copied, "cp -r", cp[0])
    show("10,000 files copied", copied, "bare calls", floor[0])
    kept = Trees.open(str(scratch / "trees"), 4 << 30)
    if kept is None:
        print("  trees cannot be kept here: it takes the right to mount, and a filesystem that carries a layer")
        return

    staged: list[StagedRoot] = []

    def attempt_of(roots: list[str]) -> Callable[[int], None]:
        def attempt(number: int) -> None:
            place = scratch / "attempt"
            place.mkdir()
            staged.append(kept.stage(store, roots[number], str(place), command))

        return attempt

    def end(_: int) -> None:
        staged.pop().close()
        remove_tree(str(scratch / "attempt"))

    show("10,000 files, a new tree to be kept", best(attempt_of(roots), end), "bare calls", floor[0])
    show("10,000 files, 100 of them changed", best(attempt_of(nearly), end), "bare calls", floor[0])
    show("10,000 files, a kept tree", best(attempt_of(roots), end), "bare calls", floor[0])


def outputs(scratch: Path) -> None:
    """Outputs into a store, beside SHA-256 of the same bytes."""
    work = scratch / "outputs"
    command = re.Command(arguments=["true"], output_paths=["out"]).SerializeToString()
    stores = [Store(str(scratch / f"store{number}")) for number in range(ROUNDS)]
    (work / "out").mkdir(parents=True)
    data = [content(number, OUTPUT_BYTES) for number in range(OUTPUTS)]
    for number, blob in enumerate(data):
        (work / "out" / f"o{number:04}").write_bytes(blob)
    hashed = best(lambda _: [hashlib.sha256(blob).digest() for blob in data])
    taken = best(lambda number: collect(stores[number], str(work), command))
    show("1,000 outputs of 10 KiB, new", taken, "SHA-256 of them", hashed[0])
    again = best(lambda number: collect(stores[number], str(work), command))
    show("1,000 outputs of 10 KiB, known", again, "SHA-256 of them", hashed[0])
    for store in stores:
        store.close()


def main() -> None:
    """Print each figure."""
    header("staging")
    with tempfile.TemporaryDirectory(prefix="buildnet-bench-") as name:
        scratch = Path(name)
        store = Store(str(scratch / "store"))
        trees(store, scratch)
        store.close()
        outputs(scratch)


if __name__ == "__main__":
    main()
