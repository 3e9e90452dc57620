"""Wire the action engine of a controller: its queue, scheduler, logs and history, and the calls over them. No logic."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Callable, Iterator, Mapping
from contextlib import AsyncExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Protocol

from buildnet.app.clock import random_id
from buildnet.app.config import ControllerConfig
from buildnet.app.grounds import Grounds, running
from buildnet.app.unsaid import unsaid
from buildnet.catalog.catalog import Catalog
from buildnet.catalog.pins import Pins
from buildnet.edge.action import ActionService, Descriptions
from buildnet.edge.action_logs import ActionLogs, StoredLogs
from buildnet.edge.announcements import Announcements
from buildnet.edge.binder import StoreBinder
from buildnet.edge.bridge import Method
from buildnet.edge.execution import ExecutionService
from buildnet.edge.explain import ExplainService
from buildnet.edge.fleet import LEASE_DURATION_S
from buildnet.edge.history import teller
from buildnet.edge.log_record import LogRecords
from buildnet.edge.logs import LogBook
from buildnet.edge.submission import SubmissionService, specs_of_pieces
from buildnet.history.store import SqliteHistory
from buildnet.ledger import queries
from buildnet.model.action import Lease, Outcome
from buildnet.model.operation import Intended
from buildnet.queue.store import SqliteOperations
from buildnet.scheduler.graphs import Graphs
from buildnet.scheduler.holds import LiveActions
from buildnet.scheduler.operation import Operation
from buildnet.scheduler.publish import OrderedPublisher
from buildnet.scheduler.recovery import recover
from buildnet.scheduler.service import Scheduler
from buildnet.wire.history import ActionMessages
from buildnet.wire.operations import stamped


class Service(Protocol):
    """Calls by path."""

    def methods(self) -> dict[str, Method]:
        """What it answers."""
        ...


@dataclass(frozen=True, slots=True)
class Engine:
    """Open until the stack that it was opened in is left."""

    scheduler: Scheduler
    graphs: Graphs
    binder: StoreBinder
    logs: LogBook
    history: SqliteHistory
    messages: ActionMessages
    descriptions: Descriptions
    pins: Pins
    announcements: Announcements
    log_records: LogRecords


async def opened_engine(
    config: ControllerConfig, grounds: Grounds, held: AsyncExitStack, trusts: Callable[[str], bool]
) -> Engine:
    """Open it, and go on with what an earlier controller left. `trusts`: whether what a node made may be everybody's.

    Raises:
        BuildNetError: what is kept cannot be read.
    """
    directory, clock, ledger, stores = grounds.directory, grounds.clock, grounds.ledger, grounds.stores
    operations = SqliteOperations.open(directory / "queue", config.durability)
    held.push_async_callback(operations.close)
    logs = await asyncio.to_thread(LogBook.opened, directory / "logs", clock)
    held.callback(logs.close)
    await held.enter_async_context(running(logs.run()))
    log_records = LogRecords(logs, stores.keep_log)
    held.push_async_callback(log_records.close)
    pins = Pins(directory / "keys" / "nodes")
    announcements = Announcements(Catalog(), pins, clock, controller_id=grounds.controller_id, record=grounds.record)
    messages = ActionMessages(stores.read)
    history = SqliteHistory.open(directory / "history", messages, clock)
    held.push_async_callback(history.close)
    descriptions = Descriptions()

    async def intend(lease: Lease, outcome: Outcome, cacheable: bool) -> None:
        operations.intend(lease.fence, Intended(outcome, cacheable, ledger.size))
        await operations.kept()

    async def published_since(start: int) -> Mapping[int, int]:
        return await ledger.look(queries.publications(start))

    tell_history = teller(history, descriptions.get)

    def ended(operation: Operation) -> None:
        grounds.usage.ended(operation)
        tell_history(operation)

    scheduler = Scheduler(
        cache=stores,
        publisher=OrderedPublisher(stores, grounds.recorder, stores, clock, intend, trusts),
        record=grounds.recorder.record,
        clock=clock,
        new_id=random_id,
        attempt_ended=logs.end,
        operation_ended=ended,
        limits=replace(config.scheduler, lease_s=LEASE_DURATION_S),
        fence_first=(grounds.term << 32) + 1,
        live=LiveActions(stores),
        resources=announcements,
        store=operations,
        stamp=stamped,
    )
    announcements.follow(scheduler.resources_changed)
    await held.enter_async_context(running(scheduler.run()))
    await scheduler.serving.wait()
    binder = StoreBinder(stores.read, stores.write, stores, config.ignored_properties, config.timeout_max_s)
    graphs = Graphs(scheduler, binder, clock, random_id, operations)
    await held.enter_async_context(running(graphs.run()))
    await graphs.serving.wait()
    with _collecting_later():
        recovered = await recover(operations, stores, published_since, clock.now_unix_ms())
        # The ledger is read only where something waits: what it has of caches may be long.
        if recovered.waiting:
            for entry in unsaid(recovered, await ledger.look(queries.last_words), clock.now_unix_ms()):
                grounds.recorder.record(entry)
        scheduler.restore(recovered)
        graphs.restore(recovered.graphs, specs_of_pieces)
    await held.enter_async_context(running(announcements.run()))
    return Engine(scheduler, graphs, binder, logs, history, messages, descriptions, pins, announcements, log_records)


@contextmanager
def _collecting_later() -> Iterator[None]:
    """Do not look for garbage while much is made that is kept: of a long queue it would take a third of the time."""
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def engine_services(
    config: ControllerConfig, grounds: Grounds, engine: Engine, actions: ActionService
) -> tuple[Service, ...]:
    """What clients ask of the engine."""
    scheduler, read = engine.scheduler, grounds.stores.read
    stored_logs = StoredLogs(read, grounds.stores.export, grounds.directory / "logs")
    return (
        ExecutionService(
            scheduler,
            read,
            engine.descriptions.add,
            grounds.clock,
            config.ignored_properties,
            absent_after_s=config.absent_after_s,
            timeout_max_s=config.timeout_max_s,
        ),
        actions,
        SubmissionService(scheduler, engine.graphs, engine.binder, engine.descriptions, actions.summary),
        ExplainService(engine.history, engine.messages, scheduler, grounds.clock),
        ActionLogs(scheduler, engine.logs, stored_logs, actions.find),
        engine.log_records,
    )
