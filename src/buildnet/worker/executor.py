"""An attempt is fetched, staged, run, collected and offered; whatever happens, its scratch is
removed.

It refuses to report a result before every blob of it is at the controller, and never lets an
exception be the answer.
"""

from __future__ import annotations

import asyncio
import errno
import logging
from collections.abc import Callable, Iterator
from concurrent.futures import Executor as Threads
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, TypeVar

from google.protobuf.message import DecodeError

from buildnet._native import (
    KeptTree,
    NativeError,
    StagedRoot,
    Store,
    Trees,
    collect,
    remove_tree,
    stage,
    undeclared_writes,
)
from buildnet.errors import (
    BlobsMissing,
    BuildNetError,
    Cancelled,
    Forbidden,
    InvalidRequest,
    InvariantBroken,
    NotFound,
    SandboxFailed,
    StorageFull,
    Unauthenticated,
    from_code,
)
from buildnet.model.action import Outcome, Properties
from buildnet.model.digest import Digest
from buildnet.ports import Clock
from buildnet.sandbox import Ending, Place, Running, Sandbox
from buildnet.sandbox.policy import Limits, Means, Plan, plan_of
from buildnet.wire._gen.build.bazel.remote.execution.v2 import remote_execution_pb2 as re
from buildnet.wire.actions import digest_message, digest_of
from buildnet.wire.native import translated
from buildnet.wire.usage import UndeclaredWrites, describe_effects, describe_usage
from buildnet.worker.attempt import Handle
from buildnet.worker.lease_book import Assignment
from buildnet.worker.patience import Transfers
from buildnet.worker.program import check_program
from buildnet.worker.secrets import NO_SECRETS, Secrets

_T = TypeVar("_T")
_log = logging.getLogger(__name__)
_MESSAGE_SIZE_BYTES_MAX: Final = 4 << 20
_FLOOD_BYTES: Final = 32 << 10
_FLOOD_PAUSE_S: Final = 0.005
# Undeclared writes that an error names.
_NAMED_MAX: Final = 10

_LIMIT_REMEDIES: Final = {
    "memory": (
        "used more memory than the worker allows ({memory_bytes} bytes); make it smaller or use a larger worker"
    ),
    "pids": "started more processes than the worker allows ({pids_max}); let it start fewer",
    "cpu": "used more processor time than the worker allows ({cpu_s} s); split it",
    "disk": (
        "wrote more to its execution root and /tmp than it may ({disk_bytes} bytes); write less, or ask for more with "
        "resource:disk_bytes"
    ),
    "log_limit": ("printed more than the worker keeps ({log_size_bytes_max} bytes); write to an output file instead"),
}


@dataclass(frozen=True, slots=True)
class Described:
    """An Action and its Command, decoded. `kept` is in use when its input tree is on the disk already."""

    action: re.Action
    command: re.Command
    command_bytes: bytes
    kept: KeptTree | None = None

    @property
    def properties(self) -> Properties:
        """Platform properties; Action.platform wins over the deprecated Command.platform (REAPI
        2.2).
        """
        holder = self.action if self.action.HasField("platform") else self.command
        return frozenset((p.name, p.value) for p in holder.platform.properties)

    @property
    def environment(self) -> list[tuple[str, str]]:
        """The Command's variables in their order."""
        return [(v.name, v.value) for v in self.command.environment_variables]


@dataclass(slots=True)
class _Root:
    """An execution root: `path` is where this process finds it, `mount_fd` what the command sees
    in its place, or -1. A Path would lose the dot at its end, by which a descriptor's name is followed.
    """

    path: str
    staged: StagedRoot | None = None

    @property
    def mount_fd(self) -> int:
        return -1 if self.staged is None else self.staged.mount_fd

    @property
    def is_layered(self) -> bool:
        """Whether what the command writes goes to a layer of its own, `upper` beside it."""
        return self.mount_fd >= 0

    def close(self) -> None:
        if self.staged is not None:
            self.staged.close()


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

    def clear_scratch(self) -> None:
        """Remove what a killed worker left behind. Blocks."""
        self._scratch.mkdir(parents=True, exist_ok=True, mode=0o700)
        for leftover in self._scratch.iterdir():
            with translated():
                remove_tree(str(leftover))

    async def run(self, assignment: Assignment, handle: Handle) -> Outcome:
        """Run one attempt to its end; every failure is an Outcome."""
        place = self._scratch / f"{assignment.fence:016x}"
        try:
            with _native_and_disk_errors():
                outcome = await self._attempt(assignment, handle, place)
        except BuildNetError as error:
            outcome = _failure(error)
        except Exception as error:  # noqa: BLE001 - one attempt's bug must not end the others; it is told and logged
            _log.exception("attempt %016x failed in the worker itself", assignment.fence)
            outcome = _failure(InvariantBroken(f"the worker failed: {error!r}"))
        try:
            with _native_and_disk_errors():
                await self._in_thread(lambda: remove_tree(str(place)))
        except BuildNetError as error:
            _log.warning("%s could not be removed: %s", place, error.message)
        return outcome

    async def _attempt(self, assignment: Assignment, handle: Handle, place: Path) -> Outcome:
        times = _Times(self._clock)
        times.mark("worker_start")
        times.mark("input_fetch_start")
        described = await self._in_thread(lambda: self._fetch(assignment.key.digest))
        _unless_stopped(handle)
        root = await self._in_thread(lambda: self._stage(described, place))
        times.mark("input_fetch_completed")
        try:
            _unless_stopped(handle)
            return await self._in_root(assignment, handle, place, described, root, times)
        finally:
            # Before the scratch is removed: what is mounted over it is in use.
            root.close()

    async def _in_root(
        self, assignment: Assignment, handle: Handle, place: Path, described: Described, root: _Root, times: _Times
    ) -> Outcome:
        command = described.command
        secrets = await self._in_thread(lambda: self._secrets.given(described.properties, described.environment))
        plan = plan_of(
            command.arguments,
            described.environment,
            described.properties,
            self._means,
            self._limits.reserving(assignment.cpu_milli, assignment.memory_bytes, assignment.disk_bytes),
            assignment.timeout_s,
            secrets,
        )
        check_program(plan, Path(root.path, command.working_directory))
        times.mark("execution_start")
        cwd = place / "root" / command.working_directory
        ending = await self._execute(plan, self._place_of(place, cwd, assignment.fence, root), handle)
        times.mark("execution_completed")
        if handle.stop_reason is not None:
            raise Cancelled(f"stopped: {handle.stop_reason}")
        times.mark("output_upload_start")
        result, failure, writes = await self._in_thread(lambda: self._collect(described, root, place, plan, ending))
        times.mark("output_upload_completed")
        times.mark("worker_completed")
        self._describe(result, ending, times)
        describe_effects(
            result.execution_metadata, ending.isolation, plan.effects, plan.unenforced, ending.limits, writes
        )
        return _outcome(result, failure or _limit_failure(ending, plan), self._node)

    def _fetch(self, digest: Digest) -> Described:
        """Bring the action and all it needs into the worker's own store, or say everything that is
        missing.
        """
        self._link.fetch_blobs(self._store, [digest.text])
        action = _decoded(re.Action, self._read(digest), "action_digest")
        missing: list[str] = []
        command_digest = digest_of(action.command_digest)
        root = digest_of(action.input_root_digest).text
        kept = None if self._trees is None else self._trees.find(root)
        fetches: list[Callable[[], object]] = [lambda: self._link.fetch_blobs(self._store, [command_digest.text])]
        if kept is None:
            fetches.append(lambda: self._link.fetch_tree(self._store, root))
        for fetch in fetches:
            try:
                fetch()
            except NativeError as error:
                if error.code != BlobsMissing.code:
                    raise
                missing.extend(error.fields.get("digests", ()))
        if missing:
            unique = sorted(set(missing))
            raise BlobsMissing(f"{len(unique)} inputs are missing; upload them and ask again", digests=unique)
        command_bytes = self._read(command_digest)
        return Described(action, _decoded(re.Command, command_bytes, "command_digest"), command_bytes, kept)

    def _read(self, digest: Digest) -> bytes:
        return self._store.get_bytes(digest.text, _MESSAGE_SIZE_BYTES_MAX)

    def _stage(self, described: Described, place: Path) -> _Root:
        # A fence is used once; what is here was left by a worker that was killed while its scratch
        # was being cleared.
        remove_tree(str(place))
        (place / "tmp").mkdir(parents=True, mode=0o700)
        root = digest_of(described.action.input_root_digest).text
        if self._trees is None:
            stage(self._store, root, str(place / "root"), described.command_bytes)
            return _Root(str(place / "root"))
        staged = self._trees.stage(self._store, root, str(place), described.command_bytes)
        if described.kept is not None:
            # What was staged holds it now.
            described.kept.release()
        return _Root(staged.path, staged)

    async def _execute(self, plan: Plan, place: Place, handle: Handle) -> Ending:
        try:
            with translated():
                running = await self._in_thread(lambda: self._sandbox.start(plan, place))
        except NotFound as error:
            # It was there for the worker, but its interpreter is not, or the sandbox does not show it.
            raise InvalidRequest(_unseen(error.message, plan), field="command.arguments") from error
        try:
            handle.log.open(place.stdout_path, place.stderr_path)
            return await _follow(running, handle)
        finally:
            asyncio.get_running_loop().remove_reader(running.fd)
            # Cancelled from outside: nothing may go on running unseen. After a normal end this does
            # nothing.
            running.kill("killed")

    def _undeclared(self, described: Described, root: _Root, place: Path, ending: Ending) -> UndeclaredWrites:
        input_root = digest_of(described.action.input_root_digest).text
        work = place / "upper" if root.is_layered else place / "root"
        paths, count, whole = undeclared_writes(
            self._store,
            input_root,
            str(work),
            described.command_bytes,
            ending.begun_unix_ns,
            upper=root.is_layered,
        )
        return UndeclaredWrites(tuple(paths), count, not whole)

    def _collect(
        self, described: Described, root: _Root, place: Path, plan: Plan, ending: Ending
    ) -> tuple[re.ActionResult, BuildNetError | None, UndeclaredWrites]:
        """Store and push outputs and logs. An output that breaks the Command's rules still leaves
        the logs.
        """
        result = re.ActionResult()
        digests: list[str] = []
        failure: BuildNetError | None = None
        writes = self._undeclared(described, root, place, ending)
        if plan.writes_are_strict and not ending.reason:
            failure = _strict_failure(writes)
        if not ending.reason and failure is None:
            try:
                collected, digests = collect(self._store, root.path, described.command_bytes)
                result = re.ActionResult.FromString(collected)
            except NativeError as error:
                failure = from_code(error.code, error.message, **error.fields)
        for name in ("stdout", "stderr"):
            path = place / name
            if path.exists() and path.stat().st_size:
                text = self._store.put_file(str(path))
                digests.append(text)
                getattr(result, f"{name}_digest").CopyFrom(digest_message(Digest.parse(text)))
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

    def _place_of(self, place: Path, cwd: Path, fence: int, root: _Root) -> Place:
        return Place(
            root=str(place / "root"),
            root_mount=root.mount_fd,
            counted=(str(place / "upper"), str(place / "tmp")) if root.is_layered else (),
            cwd=str(cwd),
            tmp=str(place / "tmp"),
            stdout_path=str(place / "stdout"),
            stderr_path=str(place / "stderr"),
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


_M = TypeVar("_M", re.Action, re.Command)


def _decoded(kind: type[_M], data: bytes, field_name: str) -> _M:
    try:
        return kind.FromString(data)
    except DecodeError as error:
        raise InvalidRequest(f"{field_name} does not name a {kind.__name__}", field=field_name) from error


def _unseen(message: str, plan: Plan) -> str:
    if plan.isolation != "namespaces" or plan.effects.get("read") == "ambient":
        return message
    return (
        f"{message}. Actions see their inputs and the worker's toolchain paths only: make it an input, start the "
        "worker with --toolchain-path, or declare effect:read=ambient"
    )


def _strict_failure(writes: UndeclaredWrites) -> BuildNetError | None:
    """The error of a command that declared its writes and did not keep to them."""
    if not writes.count and not writes.partial:
        return None
    if not writes.count:
        return from_code(
            "output_invalid",
            "effect:write=declared cannot be kept: the execution root has too many entries to look at; leave fewer",
        )
    named = ", ".join(writes.paths[:_NAMED_MAX])
    more = f" and {writes.count - _NAMED_MAX} more" if writes.count > _NAMED_MAX else ""
    return from_code(
        "output_invalid",
        f"the command wrote what effect:write=declared forbids: {named}{more}; declare them as outputs, write them to "
        "/tmp, or leave the effect out",
        path=writes.paths[0],
    )


def _limit_failure(ending: Ending, plan: Plan) -> BuildNetError | None:
    """The error of a command that was stopped, with what would help."""
    if not ending.reason:
        return None
    if ending.reason == "timeout":
        return from_code(
            "deadline_passed",
            f"the command ran for its whole timeout of {plan.timeout_s:g} s and was stopped; give it a longer timeout",
            timeout_s=plan.timeout_s,
        )
    if ending.reason == "killed":
        return Cancelled("the command was stopped")
    if ending.reason == "storage_full":
        return StorageFull("the worker's disk was full while the command printed; free some space")
    if ending.reason == "sandbox_failed":
        return SandboxFailed("the worker could not keep what the command printed")
    limits = {name: getattr(plan.limits, name) for name in plan.limits.__slots__}
    return from_code(
        "too_large",
        "the command " + _LIMIT_REMEDIES[ending.reason].format(**limits),
        limit=ending.reason,
    )


def _outcome(result: re.ActionResult, failure: BuildNetError | None, node: str) -> Outcome:
    data = result.SerializeToString(deterministic=True)
    if failure is None:
        return Outcome("ok", data, worker=node, exit_code=result.exit_code)
    return Outcome(failure.code, data, failure.message, worker=node, exit_code=result.exit_code)


def _failure(error: BuildNetError) -> Outcome:
    if isinstance(error, (Unauthenticated, Forbidden)):
        # The worker's own credentials: to whoever waits for the action, a worker that cannot reach its controller.
        return Outcome("node_down", None, f"the controller refused this worker's credentials: {error.message}")
    return Outcome(error.code, None, error.message, missing=tuple(error.fields.get("digests", ())))


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
