"""The log of record is made of what came live, where the spool has all of it: its bytes cross the session once. What is
kept is the digest that the worker names, or nothing; where it cannot be made the worker uploads it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import Final

from buildnet.edge.bridge import Call, Method
from buildnet.edge.log_spool import Extent
from buildnet.edge.logs import LogBook
from buildnet.errors import BuildNetError, InvalidRequest
from buildnet.model.digest import Digest
from buildnet.wire._gen.buildnet.v1 import fleet_pb2
from buildnet.wire.actions import digest_of

log = logging.getLogger(__name__)

_PATH: Final = "/buildnet.v1.FleetService/KeepLog"
# A call is answered within this; whoever asks, asks again.
_ANSWER_S: Final = 5.0
# A log of which nothing came for so long comes no further: its session broke, perhaps.
_STALL_S: Final = 5.0
# Each is one of an attempt's two streams; past it logs are uploaded.
KEEPING_MAX: Final = 1024

Keep = Callable[[Digest, int, Sequence[Extent]], Awaitable[bool]]
"""Store a blob of what segments have of a stream, as durable as an upload; False where they lack some of it."""


class LogRecords:
    """KeepLog.

    Args:
        logs: where what came live is.
        keep: called for one log at a time.
    """

    def __init__(self, logs: LogBook, keep: Keep) -> None:
        self._logs = logs
        self._keep = keep
        self._keeping: dict[tuple[int, int, Digest], asyncio.Task[bool]] = {}
        # A disk writes two at once no sooner than one after the other.
        self._turn = asyncio.Lock()

    def methods(self) -> dict[str, Method]:
        """What this service answers, by path."""
        return {_PATH: Method("unary", self.keep_log, fleet_pb2.KeepLogRequest, fleet_pb2.KeepLogResponse)}

    async def keep_log(self, request: fleet_pb2.KeepLogRequest, call: Call) -> fleet_pb2.KeepLogResponse:
        """Whether the blob is here now. Whoever can name a digest of what an attempt printed may have it kept."""
        if request.stream not in (fleet_pb2.LOG_STREAM_STDOUT, fleet_pb2.LOG_STREAM_STDERR):
            raise InvalidRequest(f"there is no stream {request.stream}; name STDOUT or STDERR", field="stream")
        key = request.fence, int(request.stream), digest_of(request.digest)
        if (task := self._keeping.get(key)) is None:
            if len(self._keeping) >= KEEPING_MAX:
                return fleet_pb2.KeepLogResponse()
            task = self._keeping[key] = asyncio.ensure_future(self._kept(*key))
            task.add_done_callback(lambda _: self._keeping.pop(key))
        # It goes on when its caller is gone: whoever asks again finds it further on.
        done, _ = await asyncio.wait({task}, timeout=_ANSWER_S)
        return fleet_pb2.KeepLogResponse(kept=task.result()) if done else fleet_pb2.KeepLogResponse(waits=True)

    async def _kept(self, fence: int, stream: int, digest: Digest) -> bool:
        if not await self._logs.came(fence, stream, digest.size_bytes, _STALL_S):
            return False
        async with self._turn:
            try:
                return await self._keep(digest, stream, self._logs.extents(fence))
            except BuildNetError as error:
                log.warning("the log of fence %016x is to be uploaded: %s", fence, error.message)
                return False

    async def close(self) -> None:
        """Keep no more."""
        tasks = list(self._keeping.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
