"""The contracts that we restate are, field by field, those that others publish; every element of ours is explained."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from google.protobuf.descriptor_pb2 import (
    DescriptorProto,
    EnumDescriptorProto,
    FileDescriptorProto,
    FileDescriptorSet,
)

ROOT = Path(__file__).parent.parent.parent
OURS = {
    file.name: file
    for file in FileDescriptorSet.FromString((ROOT / "src/buildnet/wire/_gen/descriptors.binpb").read_bytes()).file
}
PEERS = ROOT / "requirements" / "peers.lock"


def serialised(path: Path) -> FileDescriptorProto:
    """The descriptor in a generated module, read without importing it: two of one name cannot be in one pool."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "AddSerializedFile":
            argument = node.args[0]
            assert isinstance(argument, ast.Constant)
            assert isinstance(argument.value, bytes)
            return FileDescriptorProto.FromString(argument.value)
    raise AssertionError(f"{path} holds no descriptor")


Facts = dict[str, tuple[object, ...]]


def _enum(enum: EnumDescriptorProto, prefix: str) -> Iterator[tuple[str, tuple[object, ...]]]:
    for value in enum.value:
        yield f"{prefix}.{enum.name}.{value.name}", (value.number,)


def _message(message: DescriptorProto, prefix: str) -> Iterator[tuple[str, tuple[object, ...]]]:
    name = f"{prefix}.{message.name}"
    for field in message.field:
        oneof = message.oneof_decl[field.oneof_index].name if field.HasField("oneof_index") else ""
        kind = (field.number, field.type, field.label, field.type_name, oneof, field.proto3_optional)
        yield f"{name}.{field.name}", kind
    for enum in message.enum_type:
        yield from _enum(enum, name)
    for nested in message.nested_type:
        yield from _message(nested, name)


def facts(file: FileDescriptorProto) -> Facts:
    """What is on the wire: names, numbers, types, calls. Options and comments are nobody's business but ours."""
    found: Facts = {}
    for message in file.message_type:
        found.update(_message(message, file.package))
    for enum in file.enum_type:
        found.update(_enum(enum, file.package))
    for service in file.service:
        for call in service.method:
            shape = (call.input_type, call.output_type, call.client_streaming, call.server_streaming)
            found[f"{file.package}.{service.name}.{call.name}"] = shape
    return found


def site(*parts: str) -> Path:
    import google.rpc

    return Path(next(iter(google.rpc.__path__))).parent.parent.joinpath(*parts)


INSTALLED = {
    "google/rpc/status.proto": "google/rpc/status_pb2.py",
    "google/rpc/code.proto": "google/rpc/code_pb2.py",
    "google/rpc/error_details.proto": "google/rpc/error_details_pb2.py",
    "google/longrunning/operations.proto": "google/longrunning/operations_proto_pb2.py",
    "grpc/health/v1/health.proto": "grpc_health/v1/health_pb2.py",
    "grpc/reflection/v1alpha/reflection.proto": "grpc_reflection/v1alpha/reflection_pb2.py",
}


@pytest.mark.parametrize("ours", INSTALLED)
def test_as_published_by_google_and_grpc(ours: str) -> None:
    path = site(INSTALLED[ours])
    if not path.exists():
        path = site(INSTALLED[ours].replace("_proto_pb2", "_pb2"))
    theirs = facts(serialised(path))
    mine = facts(OURS[ours])
    assert mine == theirs


@pytest.fixture(scope="session")
def buildgrid(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """BuildGrid's wheel, pinned by its hash and unpacked, never installed: it asks for a newer Python."""
    directory = tmp_path_factory.mktemp("buildgrid")
    command = [
        *(sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--require-hashes"),
        *("--only-binary=:all:", "--python-version", "3.13", "-r", str(PEERS), "-d", str(directory)),
    ]
    fetched = subprocess.run(command, capture_output=True, text=True, timeout=100)
    if fetched.returncode:
        pytest.skip(f"BuildGrid's wheel cannot be fetched: {fetched.stderr.strip()[-200:]}")
    import zipfile

    with zipfile.ZipFile(next(directory.glob("*.whl"))) as wheel:
        wheel.extractall(directory)
    return directory / "buildgrid" / "_protos"


@pytest.mark.parametrize(
    "name",
    [
        "build/bazel/remote/execution/v2/remote_execution.proto",
        "build/bazel/semver/semver.proto",
        "google/bytestream/bytestream.proto",
    ],
)
def test_as_published_by_buildgrid(buildgrid: Path, name: str) -> None:
    theirs = facts(serialised(buildgrid / name.replace(".proto", "_pb2.py")))
    assert facts(OURS[name]) == theirs


def test_the_newer_reflection_is_the_older_one_renamed() -> None:
    newer = facts(OURS["grpc/reflection/v1/reflection.proto"])
    older = facts(OURS["grpc/reflection/v1alpha/reflection.proto"])
    assert str(newer) == str(older).replace("v1alpha", "v1")


def test_ours_live_beside_anybody_elses_in_one_process() -> None:
    code = (
        "from google.rpc import status_pb2 as theirs\n"
        "from buildnet.wire._gen.google.rpc import status_pb2 as ours\n"
        "assert theirs.Status.FromString(ours.Status(code=5, message='x').SerializeToString()).code == 5\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=30)


# Where protoc keeps comments: paths of (field number, index) below FileDescriptorProto.
def _elements(file: FileDescriptorProto) -> Iterator[tuple[str, tuple[int, ...]]]:
    def of_enum(enum: EnumDescriptorProto, name: str, path: tuple[int, ...]) -> Iterator[tuple[str, tuple[int, ...]]]:
        yield name, path
        for i, value in enumerate(enum.value):
            yield f"{name}.{value.name}", (*path, 2, i)

    def of_message(message: DescriptorProto, name: str, path: tuple[int, ...]) -> Iterator[tuple[str, tuple[int, ...]]]:
        yield name, path
        for i, field in enumerate(message.field):
            yield f"{name}.{field.name}", (*path, 2, i)
        for i, nested in enumerate(message.nested_type):
            if not nested.options.map_entry:
                yield from of_message(nested, f"{name}.{nested.name}", (*path, 3, i))
        for i, enum in enumerate(message.enum_type):
            yield from of_enum(enum, f"{name}.{enum.name}", (*path, 4, i))

    for i, message in enumerate(file.message_type):
        yield from of_message(message, message.name, (4, i))
    for i, enum in enumerate(file.enum_type):
        yield from of_enum(enum, enum.name, (5, i))
    for i, service in enumerate(file.service):
        yield service.name, (6, i)
        for j, call in enumerate(service.method):
            yield f"{service.name}.{call.name}", (6, i, 2, j)


def test_every_element_is_explained(tmp_path: Path) -> None:
    out = tmp_path / "with_comments.binpb"
    names = sorted(str(path.relative_to(ROOT / "proto")) for path in (ROOT / "proto").rglob("*.proto"))
    command = [sys.executable, "-m", "grpc_tools.protoc", f"-I{ROOT / 'proto'}", "--include_source_info"]
    subprocess.run([*command, f"--descriptor_set_out={out}", *names], check=True, timeout=60)
    silent = []
    for file in FileDescriptorSet.FromString(out.read_bytes()).file:
        said = {tuple(place.path) for place in file.source_code_info.location if place.leading_comments.strip()}
        silent += [f"{file.name}: {name}" for name, path in _elements(file) if path not in said]
    assert not silent


def test_every_call_of_ours_has_one_path() -> None:
    paths = [
        f"{file.package}.{service.name}/{call.name}"
        for file in OURS.values()
        for service in file.service
        for call in service.method
    ]
    assert len(paths) == len(set(paths))
