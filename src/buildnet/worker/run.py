"""Puts a worker together and takes it apart again. No logic of its own."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Coroutine, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from buildnet._native import Crew, Link, Store, Trees, probe_isolation, start_launcher
from buildnet.catalog.plugins import Setting, built_in, installed
from buildnet.errors import BuildNetError, SandboxFailed
from buildnet.model.credentials import Credentials
from buildnet.model.resource import Resource
from buildnet.ports import Clock
from buildnet.sandbox import Sandbox
from buildnet.sandbox.launcher import own_files
from buildnet.sandbox.namespaces import NamespaceSandbox
from buildnet.sandbox.policy import Isolation, Limits, Means, means_of
from buildnet.sandbox.process import ProcessSandbox
from buildnet.sandbox.toolchain import toolchain_of
from buildnet.wire.native import translated
from buildnet.worker.ahead import Ahead
from buildnet.worker.announcer import Announcer
from buildnet.worker.capacity import capacity_of, given_in
from buildnet.worker.config import WorkerConfig
from buildnet.worker.executor import Executor
from buildnet.worker.identity import Randomness, identity_of, node_key, offered
from buildnet.worker.inventory import Stocktaker
from buildnet.worker.secrets import Secrets
from buildnet.worker.session import Ready, Session
from buildnet.worker.uplink import uplink_of

_log = logging.getLogger(__name__)
_RENEW_INTERVAL_S = 5.0
_SANDBOXES: dict[Isolation, type[NamespaceSandbox] | type[ProcessSandbox]] = {
    "namespaces": NamespaceSandbox,
    "process": ProcessSandbox,
}


async def run_worker(
    config: WorkerConfig,
    *,
    clock: Clock,
    rng: Randomness,
    stop: asyncio.Event,
    stop_now: asyncio.Event | None = None,
    ready: Ready | None = None,
) -> None:
    """Work for the controller at `config.url` until told to stop.

    Args:
        config: what to do and where.
        clock: for timestamps and the age of connections.
        rng: for identities and for the spread of reconnections.
        stop: set it to drain: no new leases, finish what runs, hand over, leave.
        stop_now: set it to kill what runs and leave; the controller runs it elsewhere.
        ready: called with the controller's id each time a session has begun.

    Raises:
        InvalidRequest: the controller refused the very first Hello.
        StateCorrupt: the state directory is damaged.
        StateLocked: another worker uses it.
        SandboxFailed: the isolation that was asked for is not to be had, or no bound of processors.
        InvalidRequest: a toolchain path cannot be shown, or a secret's file cannot serve.
    """
    secrets = Secrets(config.secrets)
    config.state.mkdir(parents=True, exist_ok=True, mode=0o700)
    with translated():
        probed = probe_isolation()
        start_launcher()
        means = means_of(probed, config.isolation, toolchain_of(config.toolchain), strict=config.strict)
        if config.limits.cpu_is_capped and not probed["cgroup_cpu"]:
            raise SandboxFailed(
                "actions can be held to their processors (--cpu-limit strict) in control groups alone, and there are "
                "none here; see `buildnet doctor`, or leave it out"
            )
        store = Store(
            str(config.state / "cas"),
            config.durability,
            size_bytes_max=config.blobs_size_bytes,
            keep_s=config.cache_keep_s,
        )
    limits = config.limits.within(config.capacity or capacity_of(config.state))
    if config.capacity is not None:
        config = replace(config, capacity=given_in(means.isolation, config.capacity))
    try:
        identity = identity_of(config.state, rng)
        uplink = uplink_of(config)
        link = uplink.link
        threads = ThreadPoolExecutor(config.attempts_max + 1, thread_name_prefix="attempt")
        try:
            crew = await asyncio.get_running_loop().run_in_executor(
                threads, crew_of, config, store, link, means, identity.node
            )
            ahead = Ahead(store, crew)
            executor = Executor(
                crew,
                store,
                _sandbox(means.isolation),
                config.state / "scratch",
                means,
                limits,
                _hidden(config),
                threads,
                identity.node,
                secrets,
            )
            properties = offered(means, config.properties | secrets.properties)
            setting = Setting(config.state, config.search_path)
            stock = Stocktaker([*built_in(setting), *installed(setting)], sandbox_resources(means, probed, limits))
            announcer = Announcer(stock, identity, node_key(config.state), clock)
            session = Session(
                config,
                identity,
                properties,
                executor,
                prefetch=ahead.fetch,
                be_strict=executor.be_strict,
                clock=clock,
                rng=rng,
                ready=ready,
                announcer=announcer,
                uplink=uplink,
            )
            async with _renewing(link, config.credentials), _beside(stock.run()):
                try:
                    await session.run(stop, stop_now or asyncio.Event())
                finally:
                    ahead.close()
                    executor.leave()
                    await asyncio.to_thread(crew.close)
        finally:
            uplink.close()
            threads.shutdown(wait=False, cancel_futures=True)
    finally:
        store.close()


@asynccontextmanager
async def _renewing(link: Link, credentials: Credentials) -> AsyncIterator[None]:
    """Give the link each new token: its calls go on for longer than a token lasts."""

    async def renew() -> None:
        known = ""
        while True:
            try:
                token = await asyncio.to_thread(credentials.token)
                if token != known:
                    with translated():
                        link.set_token(token)
                    known = token
            except BuildNetError as error:
                # The token known before may still be good, and its file may come back.
                _log.warning("no new token: %s", error.message)
            await asyncio.sleep(_RENEW_INTERVAL_S)

    async with _beside(renew()):
        yield


@asynccontextmanager
async def _beside(work: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    """Run `work` beside the body, and end it with the body."""
    task = asyncio.ensure_future(work)
    try:
        yield
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


def sandbox_resources(means: Means, probed: Mapping[str, bool], limits: Limits) -> list[Resource]:
    """What commands can be kept from here: one `sandbox`, named after its backend, with what the kernel allows, and the
    most that one command may use.
    """
    facts = {name: int(allowed) for name, allowed in probed.items()} | {
        "private_network": int(means.private_network),
        "memory_bytes_max": limits.memory_bytes or 0,
        "pids_max": limits.pids_max or 0,
        "disk_bytes_max": limits.disk_bytes or 0,
        "log_bytes_max": limits.log_size_bytes_max,
        "cpu_is_capped": int(limits.cpu_is_capped),
    }
    return [Resource("sandbox", means.isolation, attributes=tuple(sorted(facts.items())))]


def crew_of(config: WorkerConfig, store: Store, link: Link, means: Means, node: str) -> Crew:
    """Who makes this worker's attempts. Blocks: what a killed worker left behind goes.

    Raises:
        BuildNetError: a directory below the state cannot be emptied.
    """
    with translated():
        return Crew.open(
            {
                "store": store,
                "link": link,
                "trees": _trees(config, means),
                "scratch": config.state / "scratch",
                "cleared": config.state / "cleared",
                "node": node,
                "away_timeout_s": config.away_timeout_s,
                # Of those that run at once, and of those that send beside them; one more, so that a cancelled attempt's
                # end never waits for another's upload.
                "threads_max": config.attempts_max + config.slots + 1,
                "hidden": _hidden(config),
                "files": own_files(),
            }
        )


def _hidden(config: WorkerConfig) -> tuple[Path, ...]:
    return (config.state, *config.hidden)


def _trees(config: WorkerConfig, means: Means) -> Trees | None:
    """Kept trees are out of every command's reach in namespaces alone; elsewhere inputs are copied."""
    if means.isolation != "namespaces":
        return None
    with translated():
        return Trees.open(str(config.state / "trees"), config.trees_size_bytes)


def _sandbox(isolation: Isolation) -> Sandbox:
    return _SANDBOXES[isolation]()
