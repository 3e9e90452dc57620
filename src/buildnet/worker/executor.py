"""An attempt is fetched, staged, run, collected and offered; whatever happens, its scratch is
removed.

It refuses to report a result before every blob of it is at the controller, and never lets an
exception be the answer.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
from collections.abc import Callable, Iterator
from concurrent.futures import Executor as Threads
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, TypeVar

from buildnet._native import NativeError, Store, Trees, collect, remove_tree, undeclared_writes
from buildnet.errors import (
    BuildNetError,
    Cancelled,
    InvalidRequest,
    InvariantBroken,
    NotFound,
    StorageFull,
    from_code,
)
from buildnet.model.action import Outcome
from buildnet.model.digest import Digest
from buildnet.ports import Clock
from buildnet.sandbox import Ending, Place, Running, Sandbox
from buildnet.sandbox.policy import Limits, Means, Plan, plan_of
from buildnet.wire._gen.build.bazel.remote.execution.v2 import remote_execution_pb2 as re
from buildnet.wire.actions import digest_message
from buildnet.wire.native import translated
from buildnet.wire.usage import UndeclaredWrites, describe_effects, describe_usage
from buildnet.worker import inputs, results
from buildnet.worker.attempt import Handle
from buildnet.worker.clearing import Clearing
from buildnet.worker.inputs import Described, Root, Scratch
from buildnet.worker.lease_book import Assignment
from buildnet.worker.patience import Transfers
from buildnet.worker.program import check_program
from buildnet.worker.secrets import NO_SECRETS, Secrets

_T = TypeVar("_T")
_log = logging.getLogger(__name__)
_FLOOD_BYTES: Final = 32 << 10
_FLOOD_PAUSE_S: Final = 0.005


@dataclass(slots=True)
class _Times:
    """Wall-clock moments of ExecutedActionMetadata, in milliseconds since 1970, by field name."""

    clock: Clock
    at_unix_ms: dict[str, int] = field(default_factory=dict)

    def mark(self, name: str) -> None:
        self.at_unix_ms[f"{name}_timestamp"] = self.clock.now_unix_ms()

    def write(self, metadata: re.ExecutedActionMetadata) -> None:
        for name, unix_ms in self.at_unix_ms.items():
            getattr(metadata, name).FromMilliseconds(unix_ms)


@dataclass(frozen=True, slots=True)
class _Begun:
    """A command that was started, and what is needed once it has ended."""

    described: Described
    root: Root
    plan: Plan
    place: Place
    running: Running


class Executor:
    """Runs attempts on this machine.

    Args:
        store: the worker's own CAS.
        link: to the controller's CAS.
        sandbox: the backend that runs commands.
        scratch: a directory on the same file system as the store, one sub-directory for each fence.
        means: what `sandbox` can enforce.
        limits: what one command may use.
        hidden: directories that no command may look into.
        threads: where blocking native calls wait.
        clock: for timestamps.
        node: written into every result (REAPI ExecutedActionMetadata.worker).
        trees: input trees that are kept, where `sandbox` can show a mount in the root's place.
        secrets: those that commands may name.
    """

    def __init__(
        self,
        store: Store,
        link: Transfers,
        sandbox: Sandbox,
        scratch: Path,
        means: Means,
        limits: Limits,
        hidden: tuple[Path, ...],
        threads: Threads,
        clock: Clock,
        node: str,
        trees: Trees | None = None,
        secrets: Secrets = NO_SECRETS,
    ) -> None:
        self._store = store
        self._link = link
        self._sandbox = sandbox
        self._scratch = scratch
        self._means = means
        self._limits = limits
        self._hidden = tuple(str(path) for path in hidden)
        self._threads = threads
        self._clock = clock
        self._node = node
        self._trees = trees
        self._secrets = secrets
        self._clearing: Clearing

    def clear_scratch(self) -> None:
        """Remove what a killed worker left behind. Blocks; before the first attempt."""
        self._scratch.mkdir(parents=True, exist_ok=True, mode=0o700)
        for leftover in self._scratch.iterdir():
            with translated():
                remove_tree(str(leftover))
        self._clearing = Clearing(self._scratch.with_name("cleared"))

    def close(self) -> None:
        """Return once nothing of any attempt is left. Blocks; after the last attempt."""
        self._clearing.close()

    async def run(self, assignment: Assignment, handle: Handle) -> Outcome:
        """Run one attempt to its end; every failure is an Outcome."""
        scratch = Scratch(self._scratch / f"{assignment.fence:016x}")
        try:
            with _native_and_disk_errors():
                outcome = await self._attempt(assignment, handle, scratch)
        except BuildNetError as error:
            outcome = results.failure_of(error)
        except Exception as error:  # noqa: BLE001 - one attempt's bug must not end the others; it is told and logged
            _log.exception("attempt %016x failed in the worker itself", assignment.fence)
            outcome = results.failure_of(InvariantBroken(f"the worker failed: {error!r}"))
        if not scratch.is_clear:
            await self._in_thread(lambda: scratch.clear(self._clearing))
        return outcome

    async def _attempt(self, assignment: Assignment, handle: Handle, scratch: Scratch) -> Outcome:
        """Two stays in a thread, and the command's own time between them."""
        times = _Times(self._clock)
        begun = await self._in_thread(lambda: self._begin(assignment, handle, scratch, times))
        running, place = begun.running, begun.place
        try:
            handle.log.open(place.stdout_path, place.stderr_path)
            ending = await _follow(running, handle)
        finally:
            asyncio.get_running_loop().remove_reader(running.fd)
            # Cancelled from outside: nothing may go on running unseen. After a normal end this does
            # nothing.
            running.kill("killed")
        times.mark("execution_completed")
        if handle.stop_reason is not None:
            raise Cancelled(f"stopped: {handle.stop_reason}")
        return await self._in_thread(lambda: self._end(begun, scratch, ending, times))

    def _begin(self, assignment: Assignment, handle: Handle, scratch: Scratch, times: _Times) -> _Begun:
        """Fetch, stage and start. Blocks; what it leaves when it fails is the scratch's to clear."""
        times.mark("worker_start")
        times.mark("input_fetch_start")
        described = inputs.described_by(assignment, self._link, self._store, self._trees)
        _unless_stopped(handle)
        root = self._stage(described, scratch)
        times.mark("input_fetch_completed")
        _unless_stopped(handle)
        command = described.command
        plan = plan_of(
            command.arguments,
            described.environment,
            described.properties,
            self._means,
            self._limits.reserving(assignment.cpu_milli, assignment.memory_bytes, assignment.disk_bytes),
            assignment.timeout_s,
            self._secrets.given(described.properties, described.environment),
        )
        check_program(plan, Path(root.path, command.working_directory))
        times.mark("execution_start")
        place = self._place_of(scratch.path, command.working_directory, assignment.fence, root)
        try:
            with translated():
                running = self._sandbox.start(plan, place)
        except NotFound as error:
            # It was there for the worker, but its interpreter is not, or the sandbox does not show it.
            raise InvalidRequest(_unseen(error.message, plan), field="command.arguments") from error
        return _Begun(described, root, plan, place, running)

    def _stage(self, described: Described, scratch: Scratch) -> Root:
        path = scratch.path
        # A fence is used once; what is here was left by a worker that was killed while its scratch
        # was being cleared.
        remove_tree(str(path))
        path.mkdir(mode=0o700)
        (path / "tmp").mkdir(mode=0o700)
        root = inputs.staged(described, self._store, self._trees, path)
        scratch.root = root
        return root

    def _end(self, begun: _Begun, scratch: Scratch, ending: Ending, times: _Times) -> Outcome:
        """Collect, push and clear. Blocks."""
        try:
            times.mark("output_upload_start")
            result, failure, writes = self._collect(begun, ending)
            times.mark("output_upload_completed")
            times.mark("worker_completed")
        finally:
            scratch.clear(self._clearing)
        plan = begun.plan
        self._describe(result, ending, times)
        describe_effects(
            result.execution_metadata, ending.isolation, plan.effects, plan.unenforced, ending.limits, writes
        )
        return results.outcome_of(result, failure or results.limit_failure(ending, plan), self._node)

    def _undeclared(self, begun: _Begun, ending: Ending) -> UndeclaredWrites:
        scratch = Path(begun.place.root).parent
        layered = begun.root.is_layered
        paths, count, whole = undeclared_writes(
            self._store,
            begun.described.input_root,
            str(scratch / "upper") if layered else begun.place.root,
            begun.described.command_bytes,
            ending.begun_unix_ns,
            upper=layered,
        )
        return UndeclaredWrites(tuple(paths), count, not whole)

    def _collect(self, begun: _Begun, ending: Ending) -> tuple[re.ActionResult, BuildNetError | None, UndeclaredWrites]:
        """Store and push outputs and logs. An output that breaks the Command's rules still leaves
        the logs.
        """
        result = re.ActionResult()
        digests: list[str] = []
        failure: BuildNetError | None = None
        described = begun.described
        writes = self._undeclared(begun, ending)
        if begun.plan.writes_are_strict and not ending.reason:
            failure = results.strict_failure(writes)
        if not ending.reason and failure is None and described.has_outputs:
            try:
                collected, digests = collect(self._store, begun.root.path, described.command_bytes)
                result = re.ActionResult.FromString(collected)
            except NativeError as error:
                failure = from_code(error.code, error.message, **error.fields)
        printed = {"stdout": begun.place.stdout_path, "stderr": begun.place.stderr_path}
        for name, path in printed.items() if ending.stdout_bytes or ending.stderr_bytes else ():
            # Without namespaces a command can take away the very files that it prints to.
            if os.path.exists(path) and os.path.getsize(path):
                text = self._store.put_file(path)
                digests.append(text)
                getattr(result, f"{name}_digest").CopyFrom(digest_message(Digest.parse(text)))
        if digests:
            self._link.push_blobs(self._store, digests)
        return result, failure, writes

    def _describe(self, result: re.ActionResult, ending: Ending, times: _Times) -> None:
        result.exit_code = ending.exit_code
        metadata = result.execution_metadata
        metadata.worker = self._node
        times.write(metadata)
        # The clock that the timeout is measured with (REAPI virtual_execution_duration).
        metadata.virtual_execution_duration.FromNanoseconds(round(ending.wall_s * 1e9))
        describe_usage(metadata, ending.user_s, ending.system_s, ending.max_rss_bytes)

    def _place_of(self, scratch: Path, working_directory: str, fence: int, root: Root) -> Place:
        base = str(scratch)
        return Place(
            root=f"{base}/root",
            root_mount=root.mount_fd,
            counted=(f"{base}/upper", f"{base}/tmp") if root.is_layered else (),
            cwd=str(scratch / "root" / working_directory),
            tmp=f"{base}/tmp",
            stdout_path=f"{base}/stdout",
            stderr_path=f"{base}/stderr",
            name=f"{fence:016x}",
            hidden=self._hidden,
        )

    async def _in_thread(self, call: Callable[[], _T]) -> _T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, call)


async def _follow(running: Running, handle: Handle) -> Ending:
    """Say that something was printed as it comes, until the command has ended."""
    told_to_stop = False
    loop = asyncio.get_running_loop()
    loop.add_reader(running.fd, handle.news.set)
    while True:
        handle.news.clear()
        running.quiet()
        # In this order: once it has ended, so has all printing, and the look sees the whole.
        ending = running.poll()
        news_bytes = handle.log.look()
        if ending is not None:
            return ending
        if handle.stop_reason is not None and not told_to_stop:
            told_to_stop = True
            running.kill("killed")
        if news_bytes >= _FLOOD_BYTES:
            # A look for each buffer of a flood would cost more than its bytes.
            loop.remove_reader(running.fd)
            await asyncio.sleep(_FLOOD_PAUSE_S)
            loop.add_reader(running.fd, handle.news.set)
        await handle.news.wait()


def _unless_stopped(handle: Handle) -> None:
    if handle.stop_reason is not None:
        raise Cancelled(f"stopped before it ran: {handle.stop_reason}")


def _unseen(message: str, plan: Plan) -> str:
    if plan.isolation != "namespaces" or plan.effects.get("read") == "ambient":
        return message
    return (
        f"{message}. Actions see their inputs and the worker's toolchain paths only: make it an input, start the "
        "worker with --toolchain-path, or declare effect:read=ambient"
    )


@contextmanager
def _native_and_disk_errors() -> Iterator[None]:
    """Native errors and a full disk leave as errors of the tree."""
    try:
        with translated():
            yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise StorageFull(f"the worker's disk is full: {error}; free some space") from error
        raise
