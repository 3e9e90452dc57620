"""Server reflection, so that grpcurl and load tools can ask what is here. It shows contracts, never data."""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection
from typing import Any

from google.protobuf.descriptor import FileDescriptor
from google.protobuf.descriptor_pool import DescriptorPool

from buildnet.edge.bridge import Call, Method
from buildnet.edge.status import INVALID_ARGUMENT, NOT_FOUND
from buildnet.wire._gen.grpc.reflection.v1 import reflection_pb2
from buildnet.wire._gen.grpc.reflection.v1alpha import reflection_pb2 as alpha_pb2


class ReflectionService:
    """grpc.reflection.v1 and its older twin v1alpha, over the generated descriptors."""

    def __init__(self, pool: DescriptorPool, services: Collection[str]) -> None:
        self._pool = pool
        self._services = sorted(services)

    def methods(self) -> dict[str, Method]:
        """What this service answers, by path."""
        return {
            f"/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo": Method(
                "bidi",
                self._answerer(messages.ServerReflectionResponse),
                messages.ServerReflectionRequest,
                messages.ServerReflectionResponse,
            )
            for version, messages in (("v1", reflection_pb2), ("v1alpha", alpha_pb2))
        }

    def _answerer(self, response: Any) -> Any:
        async def answer(requests: AsyncIterator[Any], call: Call) -> AsyncIterator[Any]:
            async for request in requests:
                yield self._answer(request, response)

        return answer

    def _answer(self, request: Any, response: Any) -> Any:
        answer = response(valid_host=request.host, original_request=request)
        kind = request.WhichOneof("message_request")
        try:
            match kind:
                case "list_services":
                    for name in self._services:
                        answer.list_services_response.service.add(name=name)
                case "file_by_filename":
                    self._add(answer, self._pool.FindFileByName(request.file_by_filename))
                case "file_containing_symbol":
                    self._add(answer, self._pool.FindFileContainingSymbol(request.file_containing_symbol))
                case _:
                    answer.error_response.error_code = INVALID_ARGUMENT
                    answer.error_response.error_message = f"{kind} is not answered here"
        except KeyError:
            answer.error_response.error_code = NOT_FOUND
            answer.error_response.error_message = "no such file or symbol"
        return answer

    def _add(self, answer: Any, file: FileDescriptor) -> None:
        seen: set[str] = set()
        waiting = [file]
        while waiting:
            here = waiting.pop()
            if here.name in seen:
                continue
            seen.add(here.name)
            answer.file_descriptor_response.file_descriptor_proto.append(here.serialized_pb)
            waiting.extend(here.dependencies)
