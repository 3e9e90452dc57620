"""The same client for code without an event loop: a loop in a thread of its own, and no logic twice."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from types import TracebackType
from typing import Any, ParamSpec, TypeVar

from buildnet.client.client import Client
from buildnet.model.credentials import NONE, Credentials
from buildnet.model.resource import Resource

P = ParamSpec("P")
T = TypeVar("T")


class SyncClient:
    """Every coroutine of Client as a plain method, every async iterator as an iterator."""

    def __init__(self, url: str, *, instance: str = "", credentials: Credentials = NONE) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="buildnet-client", daemon=True)
        self._thread.start()
        self._client = self._wait(self._make(url, instance, credentials))
        self.url = url
        self._take_actions(self._client)
        self._take_fleet(self._client)
        self._take_ledger(self._client)
        self._take_cache(self._client)

    def _take_actions(self, client: Client) -> None:
        self.run = self._plain(client.run)
        self.actions = self._plain(client.actions)
        self.action = self._plain(client.action)
        self.cancel = self._plain(client.cancel)
        self.submit = self._plain(client.submissions.submit)
        self.start_graph = self._plain(client.submissions.start_graph)
        self.follow_graph = self._plain(client.submissions.follow_graph)
        self.submit_graph = self._plain(client.submissions.submit_graph)
        self.result = self._plain(client.submissions.result)
        self.effects = self._plain(client.submissions.effects)
        self.watch = self._iterator(client.submissions.watch)
        self.action_pages = self._iterator(client.submissions.action_pages)
        self.cancel_graph = self._plain(client.submissions.cancel_graph)
        self.cancel_invocation = self._plain(client.submissions.cancel_invocation)
        self.prepare = self._plain(client.prepare)
        self.rerun = self._plain(client.rerun)
        self.why = self._plain(client.history.why)
        self.past = self._plain(client.history.past)
        self.diff = self._plain(client.history.diff)
        self.parts = self._plain(client.history.parts)
        self.action_of = self._plain(client.history.action_of)
        self.logs = self._iterator(client.logs)

    def _take_fleet(self, client: Client) -> None:
        self.nodes = self._plain(client.nodes)
        self.fleet_nodes = self._plain(client.fleet.nodes)
        self.fleet_find = self._plain(client.fleet.find)
        self.fleet_watch = self._iterator(client.fleet.watch)
        self.fleet_drain = self._plain(client.fleet.drain)
        self.fleet_cordon = self._plain(client.fleet.cordon)
        self.fleet_remove = self._plain(client.fleet.remove)
        self.fleet_allow = self._plain(client.fleet.allow)
        self.fleet_set_tier = self._plain(client.fleet.set_tier)
        self.fleet_new_token = self._plain(client.fleet.new_token)
        self.fleet_join_tokens = self._plain(client.fleet.join_tokens)
        self.fleet_revoke_token = self._plain(client.fleet.revoke_token)
        self.resource_pages = self._iterator(client.resource_pages)
        self.watch_resources = self._iterator(client.watch_resources)
        self.explain_resources = self._plain(client.explain_resources)

    def _take_ledger(self, client: Client) -> None:
        self.ledger_size = self._plain(client.ledger_size)
        self.ledger_entry = self._plain(client.ledger_entry)
        self.prove = self._plain(client.prove)
        self.receipt = self._plain(client.receipt)
        self.accounts = self._plain(client.accounts)
        self.ledger_tail = self._iterator(client.ledger_tail)
        self.statement = self._iterator(client.statement)

    def _take_cache(self, client: Client) -> None:
        self.upload = self._plain(client.upload)
        self.download = self._plain(client.download)
        self.read = self._plain(client.read)
        self.upload_tree = self._plain(client.upload_tree)
        self.download_tree = self._plain(client.download_tree)
        self.capabilities = self._plain(client.capabilities)
        self.cache_stat = self._plain(client.cache_stat)
        self.cache_why = self._plain(client.cache_why)
        self.cache_records = self._iterator(client.cache_records)
        self.cache_usage = self._iterator(client.cache_usage)
        self.cache_collect = self._iterator(client.cache_collect)
        self.cache_scrub = self._iterator(client.cache_scrub)

    @staticmethod
    async def _make(url: str, instance: str, credentials: Credentials) -> Client:
        return Client(url, instance=instance, credentials=credentials)

    def _wait(self, work: Coroutine[Any, Any, T]) -> T:
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result()
        except BaseException:
            # Ctrl-C in this thread: let the coroutine clean up (it cancels its operation) before leaving.
            if not future.done():
                future.cancel()
                asyncio.run_coroutine_threadsafe(_turn(), self._loop).result()
            raise

    def _plain(self, method: Callable[P, Coroutine[Any, Any, T]]) -> Callable[P, T]:
        def call(*args: P.args, **kwargs: P.kwargs) -> T:
            return self._wait(method(*args, **kwargs))

        call.__doc__ = method.__doc__
        return call

    def _iterator(self, method: Callable[P, AsyncIterator[T]]) -> Callable[P, Iterator[T]]:
        def call(*args: P.args, **kwargs: P.kwargs) -> Iterator[T]:
            items = method(*args, **kwargs)
            while True:
                try:
                    yield self._wait(_next(items))
                except StopAsyncIteration:
                    return

        call.__doc__ = method.__doc__
        return call

    def resources(self, *, kind: str = "", node: str = "") -> Iterator[tuple[str, Resource]]:
        """See Client.resources."""
        # A page at a time crosses the threads: one by one would take longer than the call.
        for page in self.resource_pages(kind=kind, node=node):
            yield from page

    def close(self) -> None:
        """End the connection and its thread."""
        if self._loop.is_closed():
            return
        self._wait(self._client.close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def __enter__(self) -> SyncClient:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


async def _next(items: AsyncIterator[T]) -> T:
    return await anext(items)


async def _turn() -> None:
    """Give cancelled coroutines the time of one call to end in."""
    others = asyncio.all_tasks() - {asyncio.current_task()}
    if others:
        await asyncio.wait(others, timeout=2.0)


def connect(url: str, *, instance: str = "", credentials: Credentials = NONE) -> SyncClient:
    """A client for plain code; use it with `with`."""
    return SyncClient(url, instance=instance, credentials=credentials)
