"""What the contracts declare and nobody answers yet: UNIMPLEMENTED with its name, never a made-up reply."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, NoReturn

from google.protobuf.descriptor import FileDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from buildnet.edge.bridge import Call, Method
from buildnet.errors import Unimplemented


def unbuilt_methods(files: Collection[FileDescriptor], built: Collection[str]) -> dict[str, Method]:
    """A method for every unary or streaming call of `files` whose path is not in `built`."""
    methods: dict[str, Method] = {}
    for file in files:
        for service in file.services_by_name.values():
            for method in service.methods:
                path = f"/{service.full_name}/{method.name}"
                if path not in built:
                    methods[path] = Method(
                        "unary" if not (method.client_streaming or method.server_streaming) else "bidi",
                        _refuse(f"{service.full_name}.{method.name}")
                        if not (method.client_streaming or method.server_streaming)
                        else _refuse_stream(f"{service.full_name}.{method.name}"),
                        GetMessageClass(method.input_type),
                        GetMessageClass(method.output_type),
                    )
    return methods


def _unimplemented(name: str) -> NoReturn:
    raise Unimplemented(f"{name} is declared and not built yet", missing=name)


def _refuse(name: str) -> Any:
    def refuse(request: Message, call: Call) -> Message:
        _unimplemented(name)

    return refuse


def _refuse_stream(name: str) -> Any:
    async def refuse(requests: Any, call: Call) -> Any:
        _unimplemented(name)
        yield  # an async generator, as every streaming handler is

    return refuse
