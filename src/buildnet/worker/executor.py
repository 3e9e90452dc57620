"""An attempt is decided here and made in the native half: an order goes in, and what it came to is told.

It never lets an exception be the answer. That no result is reported before every blob of it is at the controller, and
that its scratch is gone whatever happens, is kept by `native/attempt`.
"""

from __future__ import annotations

import asyncio
import errno
import logging
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Executor as Threads
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, TypeVar

from buildnet._native import Attempt, Crew, Shown, Store
from buildnet.errors import BuildNetError, Cancelled, InvalidRequest, InvariantBroken, NotFound, StorageFull
from buildnet.model.action import Outcome
from buildnet.sandbox import Ending, Place, Running, Sandbox
from buildnet.sandbox.launcher import Launched, rules_of
from buildnet.sandbox.policy import Limits, Means, Plan, plan_of, search_path
from buildnet.wire.native import error_of, translated
from buildnet.wire.usage import UndeclaredWrites
from buildnet.worker import inputs, results
from buildnet.worker.attempt import Handle
from buildnet.worker.inputs import Described
from buildnet.worker.lease_book import Assignment
from buildnet.worker.secrets import NO_SECRETS, Secrets

_T = TypeVar("_T")
_log = logging.getLogger(__name__)
_FLOOD_BYTES: Final = 32 << 10
_FLOOD_PAUSE_S: Final = 0.005
_CACHED_MAX: Final = 64


@dataclass(slots=True)
class _Running:
    """One attempt that the native half makes. `ended` has what was told at its end: what, and about it."""

    handle: Handle
    attempt: Attempt
    ended: asyncio.Future[tuple[str, Any]]
    staged: asyncio.Future[int]
    has_printed: bool = False


class Executor:
    """Runs attempts on this machine.

    Args:
        crew: makes them; its scratch is `scratch`.
        store: the worker's own CAS.
        sandbox: the backend that runs commands.
        scratch: one sub-directory for each fence.
        means: what `sandbox` can enforce.
        limits: what one command may use.
        hidden: directories that no command may look into.
        threads: where blocking calls wait.
        node: told of every result (REAPI ExecutedActionMetadata.worker); as the crew has it.
        secrets: those that commands may name.
    """

    def __init__(
        self,
        crew: Crew,
        store: Store,
        sandbox: Sandbox,
        scratch: Path,
        means: Means,
        limits: Limits,
        hidden: tuple[Path, ...],
        threads: Threads,
        node: str,
        secrets: Secrets = NO_SECRETS,
    ) -> None:
        self._crew = crew
        self._store = store
        self._sandbox = sandbox
        self._scratch = scratch
        self._own_means = self._means = means
        self._limits = limits
        self._hidden = tuple(str(path) for path in hidden)
        self._threads = threads
        self._node = node
        self._secrets = secrets
        self._running: dict[int, _Running] = {}
        self._shown: dict[tuple[str, ...], Shown] = {}
        self._loop: asyncio.AbstractEventLoop | None = None

    def be_strict(self, strict: bool) -> None:
        """From now on, what commands write is declared if the controller says so, or this worker is strict anyway."""
        self._means = replace(self._own_means, strict=strict or self._own_means.strict)

    def leave(self) -> None:
        """Hear no more of attempts; after the last one, in the event loop."""
        if self._loop is not None:
            self._loop.remove_reader(self._crew.fd)
            self._loop = None

    async def run(self, assignment: Assignment, handle: Handle) -> Outcome:
        """Run one attempt to its end; every failure is an Outcome."""
        try:
            with _native_and_disk_errors():
                return await self._attempt(assignment, handle)
        except BuildNetError as error:
            return results.failure_of(error)
        except Exception as error:  # noqa: BLE001 - one attempt's bug must not end the others; it is told and logged
            _log.exception("attempt %016x failed in the worker itself", assignment.fence)
            return results.failure_of(InvariantBroken(f"the worker failed: {error!r}"))

    async def _attempt(self, assignment: Assignment, handle: Handle) -> Outcome:
        described = inputs.given(assignment)
        if described is None:
            described = await self._in_thread(lambda: inputs.fetched(assignment, self._crew, self._store))
        if described.names_secrets:
            plan = await self._in_thread(lambda: self._plan_of(described, assignment))
        else:
            plan = self._plan_of(described, assignment)
        if handle.stop_reason is not None:
            raise Cancelled(f"stopped before it ran: {handle.stop_reason}")
        what, about = await self._made(assignment.fence, plan, described, handle)
        if what == "failed":
            raise about
        return _outcome_of(about, plan, self._node)

    def _plan_of(self, described: Described, assignment: Assignment) -> Plan:
        properties, environment = described.properties, described.environment
        return plan_of(
            described.command.arguments,
            environment,
            properties,
            self._means,
            self._limits.reserving(assignment.cpu_milli, assignment.memory_bytes, assignment.disk_bytes),
            assignment.timeout_s,
            self._secrets.given(properties, environment),
        )

    async def _made(self, fence: int, plan: Plan, described: Described, handle: Handle) -> tuple[str, Any]:
        """Have it made; returns what was told at its end."""
        loop = self._hearing()
        launched = isinstance(self._sandbox, Launched)
        order = self._order_of(fence, plan, described, elsewhere=not launched)
        attempt = self._crew.run(order)
        running = _Running(handle, attempt, loop.create_future(), loop.create_future())
        self._running[fence] = running
        handle.on_stop(attempt.stop)
        try:
            if not launched:
                await self._elsewhere(running, plan, described, fence)
            return await running.ended
        except asyncio.CancelledError:
            # From outside: nothing may go on running unseen.
            attempt.stop("killed")
            raise
        finally:
            del self._running[fence]

    def _order_of(self, fence: int, plan: Plan, described: Described, *, elsewhere: bool) -> dict[str, Any]:
        """An order in the words of `buildnet._native.Crew`."""
        if (shown := self._shown.get(plan.shown)) is None:
            if len(self._shown) >= _CACHED_MAX:
                self._shown.clear()
            shown = self._shown[plan.shown] = Shown(list(plan.shown))
        unenforced = plan.unenforced
        return rules_of(plan) | {
            "shown": shown,
            "fence": fence,
            "command": described.command_bytes,
            "working_directory": described.command.working_directory,
            "search_path": list(search_path(plan.env)),
            "input_root": described.input_root,
            "has_outputs": described.has_outputs,
            "writes_are_strict": plan.writes_are_strict,
            "effects": [(name, level, name not in unenforced) for name, level in plan.effects.items()],
            "unseen_hint": _unseen(plan),
            "elsewhere": elsewhere,
        }

    # What attempts have to say.

    def _hearing(self) -> asyncio.AbstractEventLoop:
        loop = asyncio.get_running_loop()
        if self._loop is not loop:
            self._loop = loop
            loop.add_reader(self._crew.fd, self._hear)
        return loop

    def _hear(self) -> None:
        for fence, what, about in self._crew.take():
            # One that was given up still ends.
            if (running := self._running.get(fence)) is None:
                continue
            if what == "printed":
                running.has_printed = True
                self._look(fence)
            elif what == "staged":
                _settle(running.staged, about)
            elif what == "command_ended":
                running.handle.command_ended()
            else:
                _settle(running.staged, -1)
                if running.has_printed:
                    # Once it has ended, so has all printing, and the look sees the whole.
                    _look(running)
                _settle(running.ended, (what, about))

    def _look(self, fence: int) -> None:
        if (running := self._running.get(fence)) is None or running.ended.done():
            return
        running.attempt.quiet()
        if _look(running) >= _FLOOD_BYTES and self._loop is not None:
            # A look for each buffer of a flood would cost more than its bytes.
            running.attempt.mute()
            self._loop.call_later(_FLOOD_PAUSE_S, self._look, fence)

    # Sandboxes that are not the launcher's.

    async def _elsewhere(self, running: _Running, plan: Plan, described: Described, fence: int) -> None:
        """Run what is staged in a sandbox of this process, and hand back how it ended."""
        mount_fd = await running.staged
        if running.ended.done():
            return
        ending: Ending | None = None
        try:
            place = self._place_of(fence, described.command.working_directory, mount_fd)
            command = await self._in_thread(lambda: self._started(plan, place))
            try:
                running.handle.log.open(place.stdout_path, place.stderr_path)
                ending = await _follow(command, running.handle)
            finally:
                asyncio.get_running_loop().remove_reader(command.fd)
                command.kill("killed")
        finally:
            running.attempt.finish(None if ending is None else _facts_of(ending))
            if ending is None:
                # Its scratch goes first; the error that is on its way is the one to tell.
                await asyncio.shield(running.ended)

    def _started(self, plan: Plan, place: Place) -> Running:
        try:
            with translated():
                return self._sandbox.start(plan, place)
        except NotFound as error:
            raise InvalidRequest(f"{error.message}{_unseen(plan)}", field="command.arguments") from error

    def _place_of(self, fence: int, working_directory: str, mount_fd: int) -> Place:
        base = str(self._scratch / f"{fence:016x}")
        return Place(
            root=f"{base}/root",
            root_mount=mount_fd,
            counted=(f"{base}/upper", f"{base}/tmp") if mount_fd >= 0 else (),
            cwd=str(Path(base, "root", working_directory)),
            tmp=f"{base}/tmp",
            stdout_path=f"{base}/stdout",
            stderr_path=f"{base}/stderr",
            name=f"{fence:016x}",
            hidden=self._hidden,
        )

    async def _in_thread(self, call: Callable[[], _T]) -> _T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, call)


def _settle(future: asyncio.Future[_T], value: _T) -> None:
    if not future.done():
        future.set_result(value)


def _look(running: _Running) -> int:
    """Notice what was printed; returns how many bytes."""
    log = running.handle.log
    if not log.is_whole:
        log.follow(*running.attempt.logs())
    return log.look()


def _outcome_of(report: Mapping[str, Any], plan: Plan, node: str) -> Outcome:
    failure: BuildNetError | None = None
    if plan.writes_are_strict and not report["reason"]:
        failure = results.strict_failure(UndeclaredWrites(tuple(report["paths"]), report["count"], not report["whole"]))
    if failure is None and report["failure"] is not None:
        failure = error_of(report["failure"])
    failure = failure or results.limit_failure(report["reason"], plan)
    return results.outcome_of(report["result"], report["exit_code"], failure, node)


def _facts_of(ending: Ending) -> dict[str, Any]:
    """An ending in the words of `buildnet._native.Attempt`."""
    return {
        "exit_code": ending.exit_code,
        "reason": ending.reason,
        "wall_s": ending.wall_s,
        "user_s": ending.user_s,
        "system_s": ending.system_s,
        "max_rss_bytes": ending.max_rss_bytes,
        "isolation": ending.isolation,
        "limits": list(ending.limits.items()),
        "begun_unix_ns": ending.begun_unix_ns,
        "printed_bytes": ending.stdout_bytes + ending.stderr_bytes,
    }


async def _follow(running: Running, handle: Handle) -> Ending:
    """Say that something was printed as it comes, until the command has ended."""
    told_to_stop = False
    loop = asyncio.get_running_loop()
    news = asyncio.Event()
    handle.on_stop(lambda _: news.set())
    loop.add_reader(running.fd, news.set)
    while True:
        news.clear()
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
            loop.add_reader(running.fd, news.set)
        await news.wait()


def _unseen(plan: Plan) -> str:
    """What follows the error of a program that the worker has and the command does not see."""
    if plan.isolation != "namespaces" or plan.effects.get("read") == "ambient":
        return ""
    return (
        ". Actions see their inputs and the worker's toolchain paths only: make it an input, start the "
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
