"""Calls of buildbox-casd's own service, in a process of its own: its messages have the names of ours.

casd_calls.py SITE_PACKAGES SOCKET capture DIRECTORY    prints the digest of the root, HASH/SIZE
casd_calls.py SITE_PACKAGES SOCKET fetch HASH/SIZE      has casd bring the tree and all files
"""

from __future__ import annotations

import importlib
import sys
import types
from pathlib import Path
from typing import Any

import grpc

TIMEOUT_S = 60
SERVICE = "/build.buildgrid.LocalContentAddressableStorage/"


def messages(site: Path) -> Any:
    """The messages alone: the package that they are in would bring all of BuildStream."""
    for name in ("buildstream", "buildstream._protos"):
        package = types.ModuleType(name)
        package.__path__ = [str(site.joinpath(*name.split(".")))]
        sys.modules[name] = package
    return importlib.import_module("buildstream._protos.build.buildgrid.local_cas_pb2")


def main(site: str, socket: str, what: str, of: str) -> None:
    """Make one call and print what it answers."""
    local_cas = messages(Path(site))

    def call(name: str, request: Any) -> Any:
        decode = getattr(local_cas, f"{name}Response").FromString
        with grpc.insecure_channel(f"unix:{socket}") as channel:
            made = channel.unary_unary(
                SERVICE + name,
                request_serializer=lambda message: message.SerializeToString(),
                response_deserializer=decode,
            )
            return made(request, timeout=TIMEOUT_S, wait_for_ready=True)

    if what == "capture":
        request = local_cas.CaptureTreeRequest(path=[of])
        # TREE_AND_DIRECTORY of REAPI's OutputDirectoryFormat.
        request.output_directory_format = 2
        (answer,) = call("CaptureTree", request).responses
        assert not answer.status.code, answer.status.message
        print(f"{answer.root_directory_digest.hash}/{answer.root_directory_digest.size_bytes}")
    else:
        request = local_cas.FetchTreeRequest(fetch_file_blobs=True)
        name, _, size = of.partition("/")
        request.root_digest.hash, request.root_digest.size_bytes = name, int(size)
        call("FetchTree", request)


if __name__ == "__main__":
    main(*sys.argv[1:])
