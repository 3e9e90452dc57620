"""One client of one server: blobs travel by the native link, calls by gRPC. It decides nothing."""

from __future__ import annotations

import asyncio
import re as regular
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Final

import grpc

from buildnet._native import Body, InputTree
from buildnet.client import cache, ledger, logs
from buildnet.client.actions import ALL, ActionFilter, info_of
from buildnet.client.channel import channel_of, metadata_of
from buildnet.client.fleet import FleetCalls
from buildnet.client.history import HistoryCalls
from buildnet.client.patience import OnBreak, Patience
from buildnet.client.replies import replies
from buildnet.client.resources import NodeVerdict, ResourceNews, news_of
from buildnet.client.results import ActionInfo, LogPiece, RunResult, result_of
from buildnet.client.status import error_of_call, error_of_status
from buildnet.client.submission import SubmissionCalls
from buildnet.dial import call_of, link_of
from buildnet.errors import BadSignature, BuildNetError, InvalidRequest, NodeDown, NotFound
from buildnet.ledger.checkpoint import Verifier
from buildnet.ledger.receipt import Receipt
from buildnet.model.action_spec import ActionSpec, is_text, spec_of
from buildnet.model.amounts import NOTHING, Amounts
from buildnet.model.credentials import NONE, Address, Credentials
from buildnet.model.digest import Digest
from buildnet.model.resource import Resource
from buildnet.wire._gen.build.bazel.remote.execution.v2 import remote_execution_pb2 as re
from buildnet.wire._gen.buildnet.v1 import action_pb2, cache_pb2, ledger_pb2, resource_pb2
from buildnet.wire._gen.google.longrunning import operations_pb2
from buildnet.wire._gen.google.protobuf import empty_pb2
from buildnet.wire.action_spec import lower
from buildnet.wire.actions import digest_message
from buildnet.wire.announcements import resource_of
from buildnet.wire.native import translated
from buildnet.wire.request_metadata import Manner, manner_metadata

Inputs = Mapping[str, str | Path | bytes] | Sequence[str | Path]
OnLog = Callable[[LogPiece], None]
OnStage = Callable[[str], None]

_RE: Final = "/build.bazel.remote.execution.v2."
_CACHE: Final = "/buildnet.v1.CacheService/"
_LEDGER: Final = "/buildnet.v1.LedgerService/"
_RESOURCES: Final = "/buildnet.v1.ResourceService/"
# How long a server may be away at a time, as when it is started anew, before that is an error.
AWAY_S: Final = 60.0
# How long one who gives up waits to hear what it has asked for.
_NAMED_TIMEOUT_S: Final = 20.0
_BLOB_BYTES_MAX: Final = 64 << 20
_CALL_TIMEOUT_S: Final = 60.0
_STAGES: Final = {2: "queued", 3: "executing", 4: "completed"}
_OPTIONS: Final = [
    ("grpc.max_receive_message_length", 64 << 20),
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.enable_http_proxy", 0),
    # The default grows to two minutes: a server that is started anew is back in seconds.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 2_000),
]


_ENTRY: Final = regular.compile(r"\bledger entry ([0-9]+)\b")

DEFAULT_ENVIRONMENT: Final = {"PATH": "/usr/local/bin:/usr/bin:/bin"}


class Client:
    """A connection to a server, made at the first call. Close it, or use it with `async with`.

    Args:
        url: `grpc://HOST:PORT`, or `grpcs://HOST:PORT` for TLS.
        instance: REAPI instance name.
        credentials: what the server is verified by, and what it is shown.
        away_s: for how long at a time `run` tries again to reach a server that has answered before.

    Raises:
        InvalidRequest: the URL or the credentials cannot be used.
    """

    def __init__(
        self, url: str, *, instance: str = "", credentials: Credentials = NONE, away_s: float = AWAY_S
    ) -> None:
        self.url = url
        self._patience = Patience(away_s)
        self.instance = instance
        self._credentials = credentials
        address = self._address = Address.parse(url)
        self._link = link_of(address, credentials, instance=instance)
        self._channel = channel_of(address, credentials, _OPTIONS)
        self.fleet = FleetCalls(self._unary, self._stream)
        self.submissions = SubmissionCalls(
            self._unary, self._upload, self._stream, self._link, instance, self._patience
        )
        self.history = HistoryCalls(self._unary, self.read)

    async def __aenter__(self) -> Client:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """End the connection."""
        await self._channel.close(None)
        await asyncio.to_thread(self._link.close)

    async def _unary(self, path: str, request: Any, response: type[Any]) -> Any:
        call = self._channel.unary_unary(path, type(request).SerializeToString, response.FromString)
        try:
            answer = await call(request, timeout=_CALL_TIMEOUT_S, metadata=metadata_of(self._credentials))
        except grpc.aio.AioRpcError as error:
            raise error_of_call(error, self.url) from error
        self._patience.reached = True
        return answer

    async def _upload(self, path: str, requests: Iterator[Any], response: type[Any]) -> Any:
        call: Any = self._channel.stream_unary(path, _bytes_of, response.FromString)
        try:
            return await call(requests, timeout=_CALL_TIMEOUT_S, metadata=metadata_of(self._credentials))
        except grpc.aio.AioRpcError as error:
            raise error_of_call(error, self.url) from error

    async def _stream(
        self, path: str, request: Any, response: type[Any], metadata: Sequence[tuple[str, str]] = ()
    ) -> AsyncGenerator[Any, None]:
        multi = self._channel.unary_stream(path, type(request).SerializeToString, response.FromString)
        call = multi(request, metadata=(*metadata_of(self._credentials), *metadata))
        try:
            async for message in call:
                yield message
        except grpc.aio.AioRpcError as error:
            raise error_of_call(error, self.url) from error
        finally:
            call.cancel()

    # Running.

    async def run(
        self,
        argv: Sequence[str],
        *,
        inputs: Inputs = (),
        outputs: Sequence[str] = (),
        env: Mapping[str, str] | None = None,
        platform: Mapping[str, str] | Iterable[tuple[str, str]] | None = None,
        require: Sequence[str] = (),
        pins: Mapping[str, str] | None = None,
        effects: Mapping[str, str] | None = None,
        resources: Amounts = NOTHING,
        secrets: Mapping[str, str] | None = None,
        tier: str = "",
        working_directory: str = "",
        timeout_s: float | None = None,
        priority: int = 0,
        do_not_cache: bool = False,
        skip_cache: bool = False,
        on_log: OnLog | None = None,
        on_stage: OnStage | None = None,
    ) -> RunResult:
        """Run a command somewhere, or have its result from the cache.

        Args:
            argv: the program and its arguments; a bare name is looked up along PATH.
            inputs: what the command may read: a mapping of path in its directory to local path or bytes, or local
                relative paths that keep their names. Directories bring everything below them.
            outputs: paths of files or directories that it may leave.
            env: its whole environment; unless given, a PATH of the usual directories and nothing else.
            platform: what the worker must offer; as pairs where a name has several values.
            require: constraints on the worker's resources, such as `gcc>=12`; all must be met.
            pins: versions of tools, such as gcc: 12.2.
            effects: level by effect, such as network: ambient; what is not named is the worker's least.
            resources: what it may use.
            secrets: variables by references to secrets that the worker knows.
            tier: the least trust in the node that runs it: untrusted, trusted or local; "" for trusted, or untrusted
                where the caller is in a namespace.
            working_directory: below the inputs' root, where it runs.
            timeout_s: limit of the execution itself.
            priority: lower runs sooner.
            do_not_cache: neither take part in nor fill the cache.
            skip_cache: run even if there is a result, and replace it.
            on_log: called with what the command prints while it runs.
            on_stage: called with queued, executing, completed.

        Raises:
            BuildNetError: there is no result. A command that exits with another code than zero is a result.

        Cancels:
            the operation is cancelled at the server.
        """
        spec = spec_of(
            argv,
            variables=DEFAULT_ENVIRONMENT if env is None else env,
            pins=pins,
            working_directory=working_directory,
            outputs=outputs,
            effects=effects,
            resources=resources,
            constraints=require,
            platform=platform.items() if isinstance(platform, Mapping) else platform or (),
            secrets=secrets,
            tier=tier,
            timeout_s=timeout_s,
            do_not_cache=do_not_cache,
        )
        action = await self._patience.tried(lambda: self.prepare(spec, inputs))
        result = await self._run(action, Manner(), on_log, on_stage, skip_cache=skip_cache, priority=priority)
        result.check_outputs(spec.outputs)
        return result

    async def rerun(
        self,
        action: Digest,
        *,
        worker: str = "",
        on_log: OnLog | None = None,
        on_stage: OnStage | None = None,
    ) -> RunResult:
        """Run an action that the server has once more and apart: whatever the cache holds, and leaving nothing in it.

        Args:
            action: its digest.
            worker: the id of the node that is to run it, "" for any.
            on_log: as `run` has it.
            on_stage: as `run` has it.

        Raises:
            BlobsMissing: the Action, its Command or an input is no longer in the cache.
            NoCapableWorker: that node has not joined, or does not offer what the action requires.
        """
        return await self._run(action, Manner(worker, apart=True), on_log, on_stage, skip_cache=True)

    async def _run(
        self,
        action: Digest,
        manner: Manner,
        on_log: OnLog | None,
        on_stage: OnStage | None,
        *,
        skip_cache: bool,
        priority: int = 0,
    ) -> RunResult:
        request = re.ExecuteRequest(
            instance_name=self.instance, action_digest=digest_message(action), skip_cache_lookup=skip_cache
        )
        request.execution_policy.priority = priority
        operation, response = await self._execute(request, on_log, on_stage, manner)
        if response.status.code:
            raise error_of_status(response.status)
        entry = None
        if not response.cached_result:
            entry = await self._entry_of(response, _id_of(operation))
        return result_of(response, action, operation, entry, self._link)

    async def prepare(self, spec: ActionSpec, inputs: Inputs = ()) -> Digest:
        """Store an action with its command and inputs, and run nothing; `rerun` does."""
        entries = _entries(inputs)

        def push() -> Digest:
            tree = InputTree(entries)
            lowered = lower(spec, Digest.parse(tree.root))
            self._link.push_tree(tree)
            # Both at once: they are a batch of two.
            small = InputTree([("action", lowered.action), ("command", lowered.command)])
            self._link.push_tree(small)
            return lowered.digest

        with translated():
            return await asyncio.to_thread(push)

    async def _execute(
        self, request: re.ExecuteRequest, on_log: OnLog | None, on_stage: OnStage | None, manner: Manner
    ) -> tuple[str, re.ExecuteResponse]:
        name = ""
        printing: asyncio.Task[None] | None = None
        absence = self._patience.absence()
        try:
            while True:
                try:
                    operations = self._operations(request, name, manner)
                    async for operation in operations if name else self._heard(operations):
                        absence.over()
                        name = operation.name
                        if operation.done:
                            response = re.ExecuteResponse()
                            operation.response.Unpack(response)
                            if printing is not None:
                                # What was printed last may still be on its way.
                                await printing
                            if on_stage is not None:
                                on_stage("completed")
                            return name, response
                        if on_log is not None and printing is None:
                            printing = asyncio.ensure_future(self._forward(_id_of(name), on_log))
                            printing.add_done_callback(partial(_stop_unheard, asyncio.current_task()))
                        if on_stage is not None:
                            on_stage(_stage_of(operation))
                    failure = NodeDown(f"{self.url} ended the stream before the action was done", url=self.url)
                except NotFound as error:
                    if not name:
                        raise
                    # The server forgot the operation: ask again.
                    name, failure = "", NodeDown(error.message, url=self.url)
                except NodeDown as error:
                    failure = error
                await absence.wait(failure)
        except asyncio.CancelledError:
            if name:
                await self._give_up(name)
            _tell_unheard(printing)
            raise
        finally:
            if printing is not None:
                printing.cancel()

    async def _heard(
        self, operations: AsyncIterator[operations_pb2.Operation]
    ) -> AsyncIterator[operations_pb2.Operation]:
        """The same. Whoever is cancelled before the server has named the operation hears the name first, and cancels
        it: nobody else could.
        """
        first = asyncio.ensure_future(anext(operations, None))
        try:
            operation = await asyncio.shield(first)
        except asyncio.CancelledError:
            heard, _ = await asyncio.wait({first}, timeout=_NAMED_TIMEOUT_S)
            first.cancel()
            if heard and first.exception() is None and (named := first.result()) is not None:
                await self._give_up(named.name)
            raise
        if operation is not None:
            yield operation
            async for operation in operations:
                yield operation

    async def _entry_of(self, response: re.ExecuteResponse, operation_id: str) -> int | None:
        # The answer says so itself; a server that does not is asked.
        told = _ENTRY.search(response.message)
        if told is not None:
            return int(told[1])
        return (await self._patience.tried(lambda: self.action(operation_id))).entry_index

    def _operations(
        self, request: re.ExecuteRequest, name: str, manner: Manner
    ) -> AsyncIterator[operations_pb2.Operation]:
        if name:
            wait = re.WaitExecutionRequest(name=name)
            return self._stream(_RE + "Execution/WaitExecution", wait, operations_pb2.Operation)
        path = _RE + "Execution/Execute"
        return self._stream(path, request, operations_pb2.Operation, manner_metadata(manner))

    async def _forward(self, operation_id: str, on_log: OnLog) -> None:
        # The log is a courtesy: when it breaks, the result still comes, with all that was printed.
        with suppress(BuildNetError):
            async for piece in self.logs(operation_id, follow=True):
                on_log(piece)

    async def _give_up(self, name: str) -> None:
        request = operations_pb2.CancelOperationRequest(name=name)
        with suppress(BuildNetError):
            await self._unary("/google.longrunning.Operations/CancelOperation", request, empty_pb2.Empty)

    # Blobs and trees.

    async def upload(self, source: Path | str | bytes) -> Digest:
        """Store a file, or bytes."""
        with translated():
            if isinstance(source, bytes):
                return Digest.parse(await asyncio.to_thread(self._link.put_bytes, source))
            return Digest.parse(await asyncio.to_thread(self._link.put_file, str(source)))

    async def download(self, digest: Digest, dest: Path | str, *, executable: bool = False) -> None:
        """Write a blob to a file."""
        with translated():
            await asyncio.to_thread(self._link.get_file, digest.text, str(dest), executable)

    async def read(self, digest: Digest) -> bytes:
        """A blob of at most 64 MiB."""
        with translated():
            return await asyncio.to_thread(self._link.get_bytes, digest.text, _BLOB_BYTES_MAX)

    async def upload_tree(self, inputs: Inputs) -> Digest:
        """Store files and directories as one tree; return its root Directory's digest."""
        entries = _entries(inputs)

        def push() -> str:
            tree = InputTree(entries)
            self._link.push_tree(tree)
            return tree.root

        with translated():
            return Digest.parse(await asyncio.to_thread(push))

    async def download_tree(self, root: Digest, dest: Path | str) -> None:
        """Write the Directory `root` and all below it to a directory."""
        with translated():
            await asyncio.to_thread(self._link.pull_directory, root.text, str(dest))

    # What happens.

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

    async def action(self, operation_id: str) -> ActionInfo:
        """One operation, by its id or an unambiguous beginning of it."""
        request = action_pb2.GetActionRequest(id=operation_id)
        path = "/buildnet.v1.ActionService/GetAction"
        return info_of(await self._unary(path, request, action_pb2.ActionSummary))

    async def cancel(self, operation_id: str) -> None:
        """Stop one operation."""
        request = action_pb2.CancelActionRequest(id=operation_id)
        await self._unary("/buildnet.v1.ActionService/CancelAction", request, action_pb2.CancelActionResponse)

    async def logs(
        self,
        operation_id: str,
        *,
        follow: bool = False,
        streams: Collection[int] = (),
        offsets: tuple[int, int] = (0, 0),
        fence: int = 0,
        on_break: OnBreak | None = None,
    ) -> AsyncIterator[LogPiece]:
        """What an action prints or printed, both streams as they came. A connection that breaks is made again, for as
        long as a server that is started anew may take.

        Args:
            operation_id: which operation.
            follow: stay until it ends.
            streams: 1 for stdout, 2 for stderr; none for both.
            offsets: where to begin in stdout and stderr, in bytes.
            fence: the attempt that the offsets are of; another one is read from its beginning. 0: whichever it is.
            on_break: called with why, when it broke and is made again.

        Raises:
            NodeDown: the server stayed away.
        """
        request = logs.logs_request(operation_id, follow, streams, offsets, fence)
        async for piece in logs.resumed(self._log_records, request, self._patience.absence(), on_break):
            yield piece

    def _log_records(self, request: bytes) -> AsyncGenerator[bytes | Body, None]:
        return replies(call_of(self._address, self._credentials, logs.PATH), request, self.url)

    async def ledger_tail(
        self,
        start: int = 0,
        *,
        follow: bool = False,
        kinds: Collection[str] = (),
        instances: Collection[str] = (),
        since_unix_ms: int | None = None,
        on_break: OnBreak | None = None,
    ) -> AsyncIterator[tuple[int, bytes]]:
        """Ledger entries with their indices, of some kinds and instances or all, from an index or a time on, whichever
        is later. With `follow` it stays, and a connection that breaks is made again, for as long as a server that is
        started anew may take; `on_break` is called with why.

        Raises:
            LedgerCorrupt: after a break, what had been told is not there any more.
            NodeDown: the server stayed away.
        """
        request = ledger.tail_request(
            start, follow=follow, kinds=kinds, instances=instances, since_unix_ms=since_unix_ms
        )
        if follow:
            # Only a server that was reached is waited for, and a ledger may be silent for hours.
            await self.ledger_size()
            async for told in ledger.followed(self._entries, self.ledger_entry, request, self._patience, on_break):
                yield told
            return
        async for entry in self._entries(request):
            yield entry.index, entry.body

    def _entries(self, request: ledger_pb2.TailRequest) -> AsyncGenerator[ledger_pb2.LedgerEntry, None]:
        return self._stream(_LEDGER + "Tail", request, ledger_pb2.LedgerEntry)

    async def ledger_size(self) -> int:
        """How many entries the newest checkpoint covers."""
        checkpoint = await self._unary(
            _LEDGER + "GetCheckpoint", ledger_pb2.GetCheckpointRequest(), ledger_pb2.Checkpoint
        )
        return Verifier.parse(checkpoint.verifier_key).open(checkpoint.note).size

    async def ledger_entry(self, index: int) -> bytes:
        """The body of one entry.

        Raises:
            NotFound: there is none.
        """
        request = ledger_pb2.GetRequest(index=index)
        body: bytes = (await self._unary(_LEDGER + "Get", request, ledger_pb2.LedgerEntry)).body
        return body

    async def prove(self, index: int) -> Receipt:
        """One entry with its proof, checked here against the server's signed checkpoint.

        The key is the server's word: compare it with the one you know.

        Raises:
            BadSignature: the checkpoint is not signed, or the proof does not lead to its root.
        """
        request = ledger_pb2.ProveInclusionRequest(index=index)
        proof = await self._unary(_LEDGER + "ProveInclusion", request, ledger_pb2.ProveInclusionResponse)
        receipt = ledger.receipt_of(proof)
        receipt.verify()
        if receipt.index != index:
            raise BadSignature(f"the server proved entry {receipt.index} instead of {index}")
        return receipt

    async def receipt(self, action: Digest) -> Receipt:
        """The entry by which the newest result of an action became visible, with its proof, checked as `prove` does.

        Raises:
            NotFound: no entry tells of one in this instance.
            BadSignature: as `prove`.
        """
        request = ledger_pb2.GetReceiptRequest(instance_name=self.instance, action_digest=action.text)
        proof = await self._unary(_LEDGER + "GetReceipt", request, ledger_pb2.ProveInclusionResponse)
        receipt = ledger.receipt_of(proof)
        receipt.verify()
        if action.text.encode() not in receipt.body:
            raise BadSignature(f"the server proved an entry that does not tell of {action.text}")
        return receipt

    async def accounts(self, prefix: str = "") -> list[ledger.Account]:
        """Accounts whose names begin so, by name and unit."""
        request = ledger_pb2.ListAccountsRequest(prefix=prefix)
        found: list[ledger.Account] = []
        while True:
            page = await self._unary(_LEDGER + "ListAccounts", request, ledger_pb2.ListAccountsResponse)
            found += map(ledger.account_of, page.accounts)
            if not page.next_page_token:
                return found
            request.page_token = page.next_page_token

    async def statement(self, account: str, *, since_unix_ms: int | None = None) -> AsyncIterator[ledger.Posting]:
        """What was posted to and from an account, oldest first.

        Raises:
            NotFound: there is no such account.
        """
        request = ledger_pb2.StatementRequest(account=account)
        if since_unix_ms is not None:
            request.since.FromMilliseconds(since_unix_ms)
        async for line in self._stream(_LEDGER + "Statement", request, ledger_pb2.Posting):
            yield ledger.posting_of(line)

    # The cache.

    async def cache_records(self, *, kind: str = "", prefix: str = "", limit: int = 0) -> AsyncIterator[cache.Record]:
        """What is in the cache, oldest first; `limit` 0 is all."""
        request = cache_pb2.ListRecordsRequest(kind=kind, prefix=prefix, limit=limit)
        async for page in self._stream(_CACHE + "List", request, cache_pb2.ListRecordsResponse):
            for record in page.records:
                yield cache.record_of(record)

    async def cache_stat(self, digest: str) -> cache.BlobFacts:
        """What is known of one blob.

        Raises:
            NotFound: it is absent.
        """
        request = cache_pb2.StatBlobRequest(digest=digest)
        return cache.facts_of(await self._unary(_CACHE + "Stat", request, cache_pb2.BlobFacts))

    async def cache_why(self, digest: str, *, looked_max: int = 0) -> cache.Reasons:
        """What keeps one blob; at most `looked_max` entries are looked at for references, 0 for 1,000,000.

        Raises:
            NotFound: it is absent.
        """
        request = cache_pb2.WhyRequest(digest=digest, looked_max=looked_max)
        return cache.reasons_of(await self._unary(_CACHE + "Why", request, cache_pb2.WhyResponse))

    async def cache_usage(self) -> AsyncIterator[cache.Usage]:
        """Progress, and last what the cache takes."""
        async for message in self._stream(_CACHE + "Usage", cache_pb2.UsageRequest(), cache_pb2.UsageResponse):
            yield cache.usage_of(message)

    async def cache_collect(
        self, size_bytes: int | None = None, *, dry_run: bool = False
    ) -> AsyncIterator[cache.Collected]:
        """Progress, and last what was evicted so that the store takes at most `size_bytes`; None: only what is dead."""
        request = cache_pb2.CollectRequest(size_bytes=size_bytes, dry_run=dry_run)
        async for message in self._stream(_CACHE + "Collect", request, cache_pb2.CollectResponse):
            yield cache.collected_of(message)

    async def cache_scrub(self) -> AsyncIterator[cache.Scrubbed]:
        """Progress, and last what was damaged. The server stops when this is left."""
        async for message in self._stream(_CACHE + "Scrub", cache_pb2.ScrubRequest(), cache_pb2.ScrubResponse):
            yield cache.scrubbed_of(message)

    async def nodes(self) -> list[dict[str, Any]]:
        """The workers that joined; `fleet.nodes` tells more."""
        return [
            {"node": node.node, "hostname": node.hostname, "slots": node.slots, "version": node.version}
            for node in await self.fleet.nodes()
        ]

    # Resources.

    async def resources(self, *, kind: str = "", node: str = "") -> AsyncIterator[tuple[str, Resource]]:
        """What nodes offer, each with its node, by node, kind and name.

        Args:
            kind: only this one, such as tool.
            node: only this one, by its id or an unambiguous beginning of it.

        Raises:
            NotFound: no such node has announced.
            InvalidRequest: no such kind.
        """
        async for page in self.resource_pages(kind=kind, node=node):
            for row in page:
                yield row

    async def resource_pages(self, *, kind: str = "", node: str = "") -> AsyncIterator[list[tuple[str, Resource]]]:
        """The same, some thousands at once."""
        request = resource_pb2.ListResourcesRequest(kind=kind, node_id=node)
        while True:
            page = await self._unary(_RESOURCES + "ListResources", request, resource_pb2.ListResourcesResponse)
            yield [(message.node_id, resource_of(message)) for message in page.resources]
            if not page.next_page_token:
                return
            request.page_token = page.next_page_token

    async def watch_resources(self, *, after: tuple[str, int] = ("", 0)) -> AsyncIterator[ResourceNews]:
        """A snapshot, then what changes, for ever. `after`: the catalog and revision of news that were applied."""
        request = resource_pb2.WatchResourcesRequest(catalog=after[0], after_revision=after[1])
        async for event in self._stream(_RESOURCES + "WatchResources", request, resource_pb2.ResourceEvent):
            yield news_of(event)

    async def explain_resources(self, constraints: Sequence[str]) -> list[NodeVerdict]:
        """For each node that joined whether it meets all constraints, and why not.

        Raises:
            InvalidRequest: one is not a constraint.
        """
        request = resource_pb2.ExplainResourcesRequest(constraints=constraints)
        answer = await self._unary(_RESOURCES + "ExplainResources", request, resource_pb2.ExplainResourcesResponse)
        return [NodeVerdict(v.node_id, v.meets, tuple(v.reasons), v.left_out) for v in answer.nodes]

    async def capabilities(self) -> dict[str, Any]:
        """What the server offers."""
        request = re.GetCapabilitiesRequest(instance_name=self.instance)
        answer = await self._unary(_RE + "Capabilities/GetCapabilities", request, re.ServerCapabilities)
        return {
            "low_api_version": f"{answer.low_api_version.major}.{answer.low_api_version.minor}",
            "high_api_version": f"{answer.high_api_version.major}.{answer.high_api_version.minor}",
            "execution": answer.execution_capabilities.exec_enabled,
            "blob_size_bytes_max": answer.cache_capabilities.max_cas_blob_size_bytes,
        }


def _bytes_of(message: Any) -> bytes:
    data: bytes = message.SerializeToString()
    return data


def _id_of(name: str) -> str:
    return name.rsplit("operations/", 1)[-1]


def _stage_of(operation: operations_pb2.Operation) -> str:
    metadata = re.ExecuteOperationMetadata()
    operation.metadata.Unpack(metadata)
    return _STAGES.get(metadata.stage, "queued")


def _stop_unheard(running: asyncio.Task[Any] | None, printing: asyncio.Task[None]) -> None:
    """Whoever was to hear what a command prints has gone, as the reader of a pipe does: it need not go on for him."""
    if running is not None and not printing.cancelled() and printing.exception() is not None:
        running.cancel()


def _tell_unheard(printing: asyncio.Task[None] | None) -> None:
    """Raise what ended the printing, if it failed."""
    if printing is not None and printing.done() and not printing.cancelled():
        printing.result()


def _entries(inputs: Inputs) -> list[tuple[str, str | bytes]]:
    for name in map(str, inputs):
        if not is_text(name):
            raise InvalidRequest(f"{name!r} is not named in UTF-8, which the protocol asks for", field="inputs")
    if isinstance(inputs, Mapping):
        return [(dest, source if isinstance(source, bytes) else str(source)) for dest, source in inputs.items()]
    entries: list[tuple[str, str | bytes]] = []
    for path in map(Path, inputs):
        if path.is_absolute() or ".." in path.parts:
            raise InvalidRequest(
                f"the input {path} is not below the current directory; say where it goes: {path}:NAME", field="inputs"
            )
        entries.append((str(path), str(path)))
    return entries
