"""Generate Python and Rust from proto/. `--check` writes nothing and fails when the committed output differs.

Python modules register in a descriptor pool of their own (decision 0003), so that they live beside any other copy of
the same contracts in one process.
"""

from __future__ import annotations

import argparse
import filecmp
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import grpc_tools
from grpc_tools import protoc

ROOT = Path(__file__).resolve().parent.parent
PROTO = ROOT / "proto"
PYTHON = ROOT / "src/buildnet/wire/_gen"
RUST = ROOT / "native/formats/src/wire"
PACKAGE = "buildnet.wire._gen"
WELL_KNOWN = ("any", "duration", "empty", "timestamp", "wrappers")

POOL = '''"""The descriptor pool of the generated modules."""

from google.protobuf import descriptor_pool

POOL = descriptor_pool.DescriptorPool()
'''


def sources() -> list[str]:
    """Every contract, by its path below proto/."""
    return sorted(str(path.relative_to(PROTO)) for path in PROTO.rglob("*.proto"))


def generate_python(out: Path) -> None:
    """Write the Python modules, their stubs and the descriptor set."""
    out.mkdir(parents=True, exist_ok=True)
    include = Path(grpc_tools.__file__).parent / "_proto"
    files = [*(f"google/protobuf/{name}.proto" for name in WELL_KNOWN), *sources()]
    status = protoc.main(
        [
            "protoc",
            f"-I{PROTO}",
            f"-I{include}",
            f"--python_out={out}",
            f"--pyi_out={out}",
            f"--descriptor_set_out={out / 'descriptors.binpb'}",
            "--include_imports",
            *files,
        ]
    )
    if status:
        raise SystemExit("proto/: the contracts do not compile")
    for path in (*out.rglob("*_pb2.py"), *out.rglob("*_pb2.pyi")):
        path.write_text(relocate(path.read_text()))
    (out / "_pool.py").write_text(POOL)
    for directory in (out, *(path for path in out.rglob("*") if path.is_dir())):
        (directory / "__init__.py").write_text('"""Generated from proto/ by `make proto`; never edited."""\n')


def relocate(text: str) -> str:
    """Move imports of generated modules below our package, and registration into our pool."""
    text = text.replace("_descriptor_pool.Default()", "_POOL")
    text = text.replace(
        "from google.protobuf import descriptor_pool as _descriptor_pool",
        f"from {PACKAGE}._pool import POOL as _POOL",
    )
    known = "|".join(f"{name}_pb2" for name in WELL_KNOWN)
    ours = r"(?:build|buildnet|grpc|google\.(?:bytestream|longrunning|rpc))(?:\.\w+)*"
    text = re.sub(rf"^from ({ours}) import (\w+_pb2)", rf"from {PACKAGE}.\1 import \2", text, flags=re.MULTILINE)
    return re.sub(
        rf"^from google\.protobuf import ({known})",
        rf"from {PACKAGE}.google.protobuf import \1",
        text,
        flags=re.MULTILINE,
    )


def generate_rust(out: Path, descriptors: Path) -> None:
    """Write one file for each package, and the modules that nest them."""
    out.mkdir(parents=True, exist_ok=True)
    subprocess.run(
        ["cargo", "run", "--locked", "--quiet", "-p", "buildnet-protogen", "--", str(descriptors), str(out)],
        cwd=ROOT,
        check=True,
    )


def differences(fresh: Path, committed: Path) -> list[str]:
    """Paths below `committed` that are not as in `fresh`."""
    names = {
        path.relative_to(base)
        for base in (fresh, committed)
        for path in base.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    return sorted(
        str(committed.relative_to(ROOT) / name)
        for name in names
        if not (fresh / name).exists()
        or not (committed / name).exists()
        or not filecmp.cmp(fresh / name, committed / name, shallow=False)
    )


def main() -> int:
    """Generate, or check what was generated."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="fail when the committed output differs")
    check = parser.parse_args().check
    with tempfile.TemporaryDirectory() as scratch:
        python, rust = Path(scratch, "python"), Path(scratch, "rust")
        generate_python(python)
        generate_rust(rust, python / "descriptors.binpb")
        if check:
            stale = differences(python, PYTHON) + differences(rust, RUST)
            for path in stale:
                print(f"{path} is not what proto/ says; run: make proto", file=sys.stderr)
            return 1 if stale else 0
        for fresh, committed in ((python, PYTHON), (rust, RUST)):
            shutil.rmtree(committed, ignore_errors=True)
            shutil.copytree(fresh, committed)
    return 0


if __name__ == "__main__":
    sys.exit(main())
