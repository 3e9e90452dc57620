"""Wire one controller: open what it stands on, lowest first, serve, and close in reverse. No logic."""

from __future__ import annotations

import asyncio
import ipaddress
import os
import socket
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any, Final

from buildnet import __version__
from buildnet._native import Store
from buildnet.access import keys, tokens
from buildnet.access.members import Members
from buildnet.app import admission, fleet_file, state
from buildnet.app.clock import SystemClock, random_id
from buildnet.app.config import ControllerConfig, traces_wanted
from buildnet.app.descriptors import raise_limit
from buildnet.app.local_worker import supervise
from buildnet.app.recorder import LedgerRecorder
from buildnet.app.report import hang_up_reopens, observed, report
from buildnet.app.stores import NativeStores, opened_tiers
from buildnet.app.tiers import parse_tiers
from buildnet.app.witnesses import asked
from buildnet.catalog.catalog import Catalog
from buildnet.catalog.pins import Pins
from buildnet.edge.action import ActionService, Descriptions
from buildnet.edge.announcements import Announcements
from buildnet.edge.bridge import Bridge, Method
from buildnet.edge.cache import CacheService
from buildnet.edge.contracts import BYTE_CALLS, DECLARED, POOL, SERVICES
from buildnet.edge.execution import ExecutionService
from buildnet.edge.fleet import LEASE_DURATION_S, FleetService
from buildnet.edge.join_tokens import JoinTokens, Self
from buildnet.edge.ledger import LedgerService
from buildnet.edge.logs import LogBook
from buildnet.edge.reflection import ReflectionService
from buildnet.edge.resources import ResourceService
from buildnet.edge.results import ClientResults
from buildnet.edge.sessions import Sessions
from buildnet.edge.status import to_status
from buildnet.edge.unbuilt import unbuilt_methods
from buildnet.edge.web import api, page
from buildnet.edge.web import ledger as ledger_pages
from buildnet.edge.web.app import application
from buildnet.edge.web.asgi import Asgi
from buildnet.edge.web.view import View
from buildnet.ledger.cosigned import Cosigned
from buildnet.ledger.log import LedgerLog, load_or_create_key
from buildnet.model.entry import Entry, Value
from buildnet.scheduler.core import Limits
from buildnet.scheduler.holds import LiveActions
from buildnet.scheduler.publish import OrderedPublisher
from buildnet.scheduler.service import Scheduler
from buildnet.wire.native import translated

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


async def run_controller(config: ControllerConfig, announce: Callable[[Ready], None], stop: asyncio.Event) -> None:
    """Serve until `stop` is set.

    Raises:
        BuildNetError: the state directory or the address cannot be used.
    """
    clock = SystemClock()
    descriptors = raise_limit()
    async with _opened(config, clock=clock) as (bridge, join_tokens), asyncio.TaskGroup() as tasks:
        address = await bridge.serve(config.listen)
        try:
            url = f"{'grpc' if config.tls is None else 'grpcs'}://{address}"
            local_url = url if bridge.local_address is None else f"grpc://{bridge.local_address}"
            slots = config.slots if config.worker else 0
            line = await join_tokens.line(_reached_at(address))
            ready = Ready(url, address, str(config.state), os.getpid(), slots, line.text)
            if config.worker:
                worker = supervise(
                    local_url,
                    config.state,
                    config.slots,
                    stop,
                    token=_worker_tokens(config, clock),
                    renew_s=_WORKER_TOKEN_RENEWED_S,
                    monotonic_s=clock.monotonic_s,
                    descriptors=descriptors,
                )
                tasks.create_task(worker)
            # Others may read that file, and the line holds a secret.
            with state.announced(config.state, asdict(replace(ready, join=""))), hang_up_reopens(bridge):
                announce(ready)
                await stop.wait()
        finally:
            # The local worker hands over its last results before the door closes.
            stop.set()
            await bridge.stop(_GRACE_S)


@asynccontextmanager
async def build_controller(config: ControllerConfig, *, clock: SystemClock) -> AsyncIterator[Bridge]:
    """Open everything a controller stands on, lowest first; close it in reverse."""
    async with _opened(config, clock=clock) as (bridge, _):
        yield bridge


def _reached_at(address: str) -> str:
    """Where others reach an address that was listened on: one that means every address is told by this host's name."""
    host, _, port = address.rpartition(":")
    everywhere = ipaddress.ip_address(host.strip("[]")).is_unspecified
    return f"{socket.gethostname()}:{port}" if everywhere else address


@asynccontextmanager
async def _opened(config: ControllerConfig, *, clock: SystemClock) -> AsyncIterator[tuple[Bridge, JoinTokens]]:
    behind = parse_tiers(config.tiers)
    async with AsyncExitStack() as held:
        directory = held.enter_context(state.opened(config.state))
        with translated():
            store = Store(
                str(directory / "cas"),
                config.durability,
                size_bytes_max=config.cache_size_bytes,
                keep_s=config.cache_keep_s,
            )
        held.callback(store.close)
        tiers = await held.enter_async_context(opened_tiers(behind, store, directory / "tiers"))
        signer = load_or_create_key(directory / "keys" / "ledger.key")
        ledger = LedgerLog.open(directory / "ledger", signer, config.durability)
        held.push_async_callback(ledger.close)
        cosigned = Cosigned.open(directory / "ledger", signer.verifier, ledger.size)
        witnesses = await held.enter_async_context(asked(config, ledger, cosigned))
        recorder = LedgerRecorder(ledger)
        held.push_async_callback(recorder.close)
        term = state.next_term(directory)
        controller_id = random_id()
        fields: dict[str, Value] = {"controller": controller_id, "term": term, "version": __version__}
        await ledger.append([Entry("controller.started", clock.now_unix_ms(), fields)])

        stores = NativeStores(store, tiers)
        logs = LogBook()

        def record(kind: str, facts: Mapping[str, Value]) -> None:
            recorder.record(Entry(kind, clock.now_unix_ms(), facts))

        pins = Pins(directory / "keys" / "nodes")
        announcements = Announcements(Catalog(), pins, clock, controller_id=controller_id, record=record)
        scheduler = Scheduler(
            cache=stores,
            publisher=OrderedPublisher(stores, ledger, stores, clock),
            record=recorder.record,
            clock=clock,
            new_id=random_id,
            attempt_ended=logs.end,
            limits=Limits(lease_s=LEASE_DURATION_S),
            fence_first=(term << 32) + 1,
            live=LiveActions(stores),
            resources=announcements,
        )
        announcements.follow(scheduler.resources_changed)
        await held.enter_async_context(_running(scheduler.run()))
        await held.enter_async_context(_running(announcements.run()))
        descriptions = Descriptions()

        async def append(kind: str, facts: Mapping[str, Value]) -> None:
            await ledger.append([Entry(kind, clock.now_unix_ms(), facts)])

        own = keys.node_keys(directory)
        members = Members(directory / "members.sqlite")
        held.callback(members.close)
        sessions = Sessions(
            members, pins, clock, record=record, append=append, removed=lambda name: fleet.removed(name)
        )
        join_tokens = JoinTokens(members, clock, Self(config.organisation, own.name, term), append)
        fleet = FleetService(
            scheduler,
            logs,
            clock,
            controller_id=controller_id,
            version=__version__,
            record=record,
            append=append,
            announcements=announcements,
            policies=fleet_file.load(directory),
            keep=partial(fleet_file.keep, directory),
            sessions=sessions,
        )
        await held.enter_async_context(_running(fleet.run()))
        actions = ActionService(scheduler, logs, descriptions, stores.read)
        methods: dict[str, Method] = {}
        for service in (
            ExecutionService(scheduler, stores.read, descriptions.add),
            actions,
            LedgerService(ledger, store.entry_index, cosigned),
            CacheService(store, record),
            fleet,
            join_tokens,
            ResourceService(announcements),
            ReflectionService(POOL, SERVICES),
        ):
            methods |= service.methods()
        methods |= unbuilt_methods(DECLARED, [*methods, *BYTE_CALLS])
        view = View(ledger, actions, fleet)
        await held.enter_async_context(_running(view.run()))
        bridge = Bridge(
            store,
            methods,
            to_status,
            ClientResults(ledger, clock).record,
            access=config.access.for_door(config.listen, config.tls, directory),
            tls=admission.for_door(config.tls),
            # The local worker has nothing to verify the certificate by: it is made out for other names.
            local=config.tls is not None and config.worker,
            sessions={
                "node_seed": own.node_seed,
                "session_secret": own.session_secret,
                "organisation": config.organisation,
                "term": term,
            },
            gate=sessions,
            web=Asgi(
                application(
                    page.routes(),
                    api.routes(view, ledger, clock, __version__),
                    ledger_pages.routes(ledger, cosigned, witnesses.standings),
                )
            ),
            tiers=tiers,
            observed=observed(config, traces=traces_wanted()),
        )
        sessions.over(bridge)
        # The bridge knows the gate and the gate the bridge: a circle would keep the store's lock until it is collected.
        held.callback(sessions.over, None)
        counts = lambda: {**witnesses.counts(), "join_tokens_refused": sessions.tokens_refused}  # noqa: E731
        await held.enter_async_context(_running(report(bridge, ledger, counts)))
        yield bridge, join_tokens


def _worker_tokens(config: ControllerConfig, clock: SystemClock) -> Callable[[], str]:
    signer = keys.load_or_create(config.state)

    def token() -> str:
        now_unix_s = clock.now_unix_ms() // 1000
        ends_unix_s = now_unix_s + _WORKER_TOKEN_S
        says = tokens.Token(random_id(), ("worker",), ends_unix_s, "local worker", issued_unix_s=now_unix_s)
        return tokens.sign(signer, says)

    return token


@asynccontextmanager
async def _running(work: Coroutine[Any, Any, None]) -> AsyncIterator[asyncio.Task[None]]:
    """Run `work` beside the body, and end it with the body."""
    task = asyncio.ensure_future(work)
    try:
        yield task
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
