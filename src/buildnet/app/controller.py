"""Wire one controller: open what it stands on, lowest first, serve, and close in reverse. No logic."""

from __future__ import annotations

import asyncio
import ipaddress
import os
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Final

from buildnet import __version__
from buildnet.access import keys, tokens
from buildnet.access.members import Members
from buildnet.app import admission, fleet_file, quota_record, state
from buildnet.app.access_record import RevocationWatch, configured
from buildnet.app.clock import SystemClock, random_id
from buildnet.app.config import ControllerConfig, traces_wanted
from buildnet.app.descriptors import raise_limit
from buildnet.app.engine import engine_services, opened_engine
from buildnet.app.grounds import Grounds, opened_grounds, running
from buildnet.app.local_worker import supervise
from buildnet.app.report import hang_up_reopens, observed, report
from buildnet.app.unended import end_unended
from buildnet.edge.action import ActionService
from buildnet.edge.bridge import Bridge, Method
from buildnet.edge.cache import CacheService
from buildnet.edge.contracts import BYTE_CALLS, DECLARED, POOL, SERVICES
from buildnet.edge.fleet import FleetService
from buildnet.edge.history import result_teller
from buildnet.edge.join_tokens import JoinTokens, Self
from buildnet.edge.ledger import LedgerService
from buildnet.edge.node_tiers import NodeTiers
from buildnet.edge.reflection import ReflectionService
from buildnet.edge.resources import ResourceService
from buildnet.edge.results import ClientResults
from buildnet.edge.sessions import Sessions
from buildnet.edge.status import to_status
from buildnet.edge.unbuilt import unbuilt_methods
from buildnet.edge.web.asgi import Application, Asgi, Deferred
from buildnet.edge.web.view import View
from buildnet.ledger.follower import Follower
from buildnet.ledger.statements import Statements
from buildnet.model.caller import LOCAL_WORKER
from buildnet.scheduler.service import Scheduler
from buildnet.worker.secrets import Secrets

# Of an orderly stop: for what runs, to end; then for calls that move bytes.
_DRAIN_S: Final = 5.0
_GRACE_S: Final = 5.0
# A worker that was stopped for longer comes back with a new token; one that leaked is soon worth nothing.
_WORKER_TOKEN_S: Final = 3600
# Often, because a machine that slept wakes with an old token and a clock that has not counted.
_WORKER_TOKEN_RENEWED_S: Final = 60.0


@dataclass(frozen=True, slots=True)
class Ready:
    """What is said once the first call would be answered."""

    url: str
    listen: str
    state: str
    pid: int
    slots: int
    join: str = ""
    """The line that one worker elsewhere joins by; it holds a secret."""


@dataclass(frozen=True, slots=True)
class Built:
    """A controller that is ready to serve."""

    bridge: Bridge
    scheduler: Scheduler
    join_tokens: JoinTokens


async def run_controller(
    config: ControllerConfig,
    announce: Callable[[Ready], None],
    stop: asyncio.Event,
    stop_now: asyncio.Event | None = None,
) -> None:
    """Serve until `stop` is set; then let what runs end, within bounds, or not when `stop_now` is set too.

    Raises:
        BuildNetError: the state directory or the address cannot be used.
    """
    clock = SystemClock()
    descriptors = raise_limit()
    # Here, where somebody reads it: the worker beside would only end, and be started again.
    Secrets(config.secrets)
    leave, stop_now = asyncio.Event(), stop_now or asyncio.Event()
    async with build_controller(config, clock=clock) as built, asyncio.TaskGroup() as tasks:
        bridge = built.bridge
        address = await bridge.serve(config.listen)
        try:
            url = f"{'grpc' if config.tls is None else 'grpcs'}://{address}"
            local_url = url if bridge.local_address is None else f"grpc://{bridge.local_address}"
            slots = config.slots if config.worker else 0
            line = await built.join_tokens.line(_reached_at(address))
            ready = Ready(url, address, str(config.state), os.getpid(), slots, line.text)
            if config.worker:
                worker = supervise(
                    local_url,
                    config.state,
                    config.slots,
                    config.toolchain,
                    leave,
                    token=_worker_tokens(config, clock),
                    renew_s=_WORKER_TOKEN_RENEWED_S,
                    monotonic_s=clock.monotonic_s,
                    descriptors=descriptors,
                    cpu_milli=config.cpu_milli,
                    cache_size_bytes=config.cache_size_bytes,
                    secrets=config.secrets,
                    strict=config.strict,
                    limits=config.limits,
                )
                tasks.create_task(worker)
            # Others may read that file, and the line holds a secret.
            with state.announced(config.state, asdict(replace(ready, join=""))), hang_up_reopens(bridge):
                announce(ready)
                await stop.wait()
                await _drained(built.scheduler, stop_now)
        finally:
            # The local worker hands over its last results before the door closes.
            leave.set()
            await bridge.stop(0.0 if stop_now.is_set() else _GRACE_S)


async def _drained(scheduler: Scheduler, stop_now: asyncio.Event) -> None:
    """Take no more, and let what runs end; what does not in time goes on with its worker, for the next controller."""
    scheduler.stop_accepting()
    ends = {asyncio.ensure_future(scheduler.quiet()), asyncio.ensure_future(stop_now.wait())}
    try:
        await asyncio.wait(ends, timeout=_DRAIN_S, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for end in ends:
            end.cancel()


@asynccontextmanager
async def build_controller(config: ControllerConfig, *, clock: SystemClock) -> AsyncIterator[Built]:
    """Open everything a controller stands on, lowest first; close it in reverse."""
    async with AsyncExitStack() as held:
        grounds = await opened_grounds(config, clock, held)
        directory, ledger, stores = grounds.directory, grounds.ledger, grounds.stores
        members = Members(directory / "members.sqlite")
        held.callback(members.close)
        node_tiers = NodeTiers(members, grounds.append, config.strict_tiers)
        began_unix_ms = clock.now_unix_ms()
        engine = await opened_engine(config, grounds, held, node_tiers.publishes)
        own = keys.node_keys(directory)
        sessions = Sessions(
            members,
            engine.pins,
            clock,
            record=grounds.record,
            append=grounds.append,
            removed=lambda name: fleet.removed(name),
        )
        join_tokens = JoinTokens(members, clock, Self(config.organisation, own.name, grounds.term), grounds.append)
        fleet = FleetService(
            engine.scheduler,
            engine.logs,
            clock,
            controller_id=grounds.controller_id,
            version=__version__,
            record=grounds.record,
            append=grounds.append,
            announcements=engine.announcements,
            policies=fleet_file.load(directory),
            keep=partial(fleet_file.keep, directory),
            tiers=node_tiers,
            sessions=sessions,
            read=stores.read,
        )
        await held.enter_async_context(running(fleet.run()))
        accounted = Statements(directory / "views")
        held.callback(accounted.close)
        actions = ActionService(engine.scheduler, engine.descriptions, engine.graphs, stores.read)
        methods: dict[str, Method] = {}
        for service in (
            *engine_services(config, grounds, engine, actions),
            LedgerService(ledger, grounds.store.entry_index, accounted, grounds.cosigned),
            CacheService(grounds.store, grounds.record),
            fleet,
            join_tokens,
            ResourceService(engine.announcements),
            ReflectionService(POOL, SERVICES),
        ):
            methods |= service.methods()
        methods |= unbuilt_methods(DECLARED, [*methods, *BYTE_CALLS])
        follower = Follower(ledger, directory / "views", clock.monotonic_s)
        held.push_async_callback(follower.close)
        await held.enter_async_context(running(follower.run()))
        record = grounds.recorder.record
        ends = end_unended(follower, ledger.size, engine.scheduler, record, began_unix_ms, clock.now_unix_ms)
        await held.enter_async_context(running(ends))
        view = View(ledger, follower, actions, fleet, engine.announcements.catalog)
        await held.enter_async_context(running(view.run()))
        access = config.access.for_door(config.listen, config.tls, directory)
        revocations = RevocationWatch(directory, grounds.record)
        grounds.record("access.configured", configured(access, revocations.known))
        await quota_record.tell(directory / "views", ledger, config.scheduler, clock.now_unix_ms())
        await held.enter_async_context(running(revocations.run()))
        bridge = Bridge(
            grounds.store,
            methods,
            to_status,
            ClientResults(ledger, clock, result_teller(engine.history, clock, random_id)).record,
            access=access,
            tls=admission.for_door(config.tls),
            # The local worker has nothing to verify the certificate by: it is made out for other names.
            local=config.tls is not None and config.worker,
            sessions={
                "node_seed": own.node_seed,
                "session_secret": own.session_secret,
                "organisation": config.organisation,
                "term": grounds.term,
            },
            gate=sessions,
            web=Asgi(Deferred(lambda: _pages(view, grounds, clock))),
            tiers=stores.tiers,
            observed=observed(config, traces=traces_wanted()),
        )
        sessions.over(bridge)
        grounds.usage.over(bridge.take_usage)
        await held.enter_async_context(running(grounds.usage.run()))
        # The bridge knows the gate and the gate the bridge: a circle would keep the store's lock until it is collected.
        held.callback(sessions.over, None)

        def counts() -> dict[str, int]:
            refused = {"join_tokens_refused": sessions.tokens_refused}
            return {**grounds.witnesses.counts(), **engine.history.statistics(), **refused, **follower.views.counts()}

        await held.enter_async_context(running(report(bridge, ledger, counts)))
        yield Built(bridge, engine.scheduler, join_tokens)


def _pages(view: View, grounds: Grounds, clock: SystemClock) -> Application:
    # A cache is rarely asked for a page, and what makes one is a tenth of what it would hold.
    from buildnet.app.pages import pages

    return pages(view, grounds, clock)


def _reached_at(address: str) -> str:
    """Where others reach an address that was listened on: one that means every address is told by this host's name."""
    host, _, port = address.rpartition(":")
    everywhere = ipaddress.ip_address(host.strip("[]")).is_unspecified
    return f"{socket.gethostname()}:{port}" if everywhere else address


def _worker_tokens(config: ControllerConfig, clock: SystemClock) -> Callable[[], str]:
    signer = keys.load_or_create(config.state)

    def token() -> str:
        now_unix_s = clock.now_unix_ms() // 1000
        ends_unix_s = now_unix_s + _WORKER_TOKEN_S
        says = tokens.Token(random_id(), ("worker",), ends_unix_s, LOCAL_WORKER, issued_unix_s=now_unix_s)
        return tokens.sign(signer, says)

    return token
