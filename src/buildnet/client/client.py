"""One client of one server: what it can ask stands in the files beside this one, by subject. It decides nothing."""

from __future__ import annotations

from typing import Any

from buildnet.client.actions import ALL, ActionFilter
from buildnet.client.cache import CacheCalls
from buildnet.client.connection import AWAY_S
from buildnet.client.fleet import FleetCalls
from buildnet.client.history import HistoryCalls
from buildnet.client.ledger import LedgerCalls
from buildnet.client.resources import ResourceCalls
from buildnet.client.results import ActionInfo
from buildnet.client.running import RunCalls
from buildnet.client.submission import SubmissionCalls
from buildnet.errors import InvalidRequest
from buildnet.model.credentials import NONE, Credentials
from buildnet.wire._gen.build.bazel.remote.execution.v2 import remote_execution_pb2 as re

_CAPABILITIES = "/build.bazel.remote.execution.v2.Capabilities/GetCapabilities"


class Client(RunCalls, LedgerCalls, CacheCalls, ResourceCalls):
    """A connection to a server, made at the first call. Close it, or use it with `async with`.

    Args:
        url: `grpc://HOST:PORT`, or `grpcs://HOST:PORT` for TLS.
        instance: REAPI instance name.
        credentials: what the server is verified by, and what it is shown.
        away_s: for how long at a time `run`, and what follows or watches, tries again to reach a server
            that has answered before.

    Raises:
        InvalidRequest: the URL or the credentials cannot be used.
    """

    def __init__(
        self, url: str, *, instance: str = "", credentials: Credentials = NONE, away_s: float = AWAY_S
    ) -> None:
        super().__init__(url, instance=instance, credentials=credentials, away_s=away_s)
        self.fleet = FleetCalls(self._unary, self._stream, self._patience)
        self.submissions = SubmissionCalls(
            self._unary, self._upload, self._stream, self._link, instance, self._patience
        )
        self.history = HistoryCalls(self._unary, self.read)

    async def actions(self, *, limit: int = 100, only: ActionFilter = ALL) -> list[ActionInfo]:
        """Operations in flight and those that ended, newest first; `limit` of them at most.

        Raises:
            InvalidRequest: the limit is below 1.
        """
        if limit < 1:
            raise InvalidRequest(f"a list of {limit} operations is none; ask for 1 or more", field="limit")
        found: list[ActionInfo] = []
        # A server puts at most a thousand on a page.
        async for page in self.submissions.action_pages(only=only, page_size=min(limit, 1000)):
            found += page
            if len(found) >= limit:
                break
        return found[:limit]

    async def nodes(self) -> list[dict[str, Any]]:
        """The workers that joined; `fleet.nodes` tells more."""
        return [
            {"node": node.node, "hostname": node.hostname, "slots": node.slots, "version": node.version}
            for node in await self.fleet.nodes()
        ]

    async def capabilities(self) -> dict[str, Any]:
        """What the server offers."""
        request = re.GetCapabilitiesRequest(instance_name=self.instance)
        answer = await self._unary(_CAPABILITIES, request, re.ServerCapabilities)
        return {
            "low_api_version": f"{answer.low_api_version.major}.{answer.low_api_version.minor}",
            "high_api_version": f"{answer.high_api_version.major}.{answer.high_api_version.minor}",
            "execution": answer.execution_capabilities.exec_enabled,
            "blob_size_bytes_max": answer.cache_capabilities.max_cas_blob_size_bytes,
        }
