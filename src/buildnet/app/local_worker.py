"""Keep one worker process beside a controller: start it, start it again when it dies, stop it with the controller.

One that was drained has left as somebody wished: it is not started again.
"""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from pathlib import Path
from types import MappingProxyType

from buildnet.app.config import child_environment
from buildnet.app.descriptors import give_back
from buildnet.model.amounts import decimal_of_milli
from buildnet.sandbox.policy import Limits

log = logging.getLogger(__name__)

_NO_LIMITS = Limits()
_RESTART_DELAY_S = 0.5
_RESTART_DELAY_MAX_S = 30.0
_LASTED_S = 60.0
_STOP_GRACE_S = 3.0


async def supervise(
    url: str,
    state: Path,
    slots: int,
    toolchain: tuple[Path, ...],
    stop: asyncio.Event,
    *,
    token: Callable[[], str],
    renew_s: float,
    monotonic_s: Callable[[], float],
    descriptors: tuple[int, int],
    cpu_milli: int | None = None,
    cache_size_bytes: int | None = None,
    secrets: Mapping[str, Path] = MappingProxyType({}),
    strict: bool = False,
    limits: Limits = _NO_LIMITS,
) -> None:
    """Run `buildnet join` as a child until `stop` is set, then let it drain and end it.

    Args:
        url: where the child dials.
        state: of the controller; the child keeps its own below it.
        slots: attempts that may run at once of those that ask for no cpus.
        toolchain: paths that actions may read besides the usual ones.
        stop: ends both.
        token: makes the child's next token. It travels by the child's standard input: other users can read arguments,
            and what the child runs could read its environment.
        renew_s: how often, which is well before a token ends.
        monotonic_s: a clock.
        descriptors: the child's limits of open files, soft and hard.
        cpu_milli: what actions may ask for together; None: all that the machine gives.
        secrets: files with the values of secrets, by name. The values are in no argument and no variable of the child.
        strict: actions write nothing but what they declare.
        limits: what one action may use.
        cache_size_bytes: what the child keeps beside the controller's own cache; None: as the disk allows.
    """
    delay_s = _RESTART_DELAY_S
    while not stop.is_set():
        started_s = monotonic_s()
        child = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "buildnet.cli.main",
            "join",
            url,
            "--state",
            str(state / "worker"),
            "--slots",
            str(slots),
            # The controller's keys are nobody's input.
            "--hide",
            str(state),
            *(argument for path in toolchain for argument in ("--toolchain-path", str(path))),
            *(argument for name, path in secrets.items() for argument in ("--secret", f"{name}={path.absolute()}")),
            *(() if cpu_milli is None else ("--cpus", decimal_of_milli(cpu_milli))),
            *(() if cache_size_bytes is None else ("--cache-size", str(cache_size_bytes))),
            *(("--strict",) if strict else ()),
            *_arguments_of(limits),
            "--quiet",
            # The pipe closes with this process, however it ends: a killed controller leaves no worker behind.
            "--until-stdin-closes",
            "--token-from-stdin",
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.DEVNULL,
            env=child_environment(),
            # Ctrl-C in a terminal reaches the whole group; the controller decides when its worker stops.
            start_new_session=True,
        )
        give_back(child.pid, descriptors)
        while child.returncode is None and not stop.is_set():
            _tell(child, token())
            await _first(child.wait(), stop.wait(), asyncio.sleep(renew_s))
        if stop.is_set():
            await _end(child)
            return
        if child.returncode == 0:
            log.warning(
                "the local worker was drained and has left; it is started again with this controller, "
                "or join a worker now with: buildnet join %s",
                url,
            )
            await stop.wait()
            return
        log.warning("the local worker ended with code %s; starting it again", child.returncode)
        delay_s = _RESTART_DELAY_S if monotonic_s() - started_s > _LASTED_S else delay_s * 2
        await _first(asyncio.sleep(min(delay_s, _RESTART_DELAY_MAX_S)), stop.wait())


def _arguments_of(limits: Limits) -> tuple[str, ...]:
    sizes = {
        "--memory-max": limits.memory_bytes,
        "--disk-max": limits.disk_bytes,
        "--log-max": limits.log_size_bytes_max,
    }
    told = [f"{option}={size_bytes}B" for option, size_bytes in sizes.items() if size_bytes is not None]
    if limits.pids_max is not None:
        told.append(f"--pids-max={limits.pids_max}")
    return (*told, *(("--cpu-limit=strict",) if limits.cpu_is_capped else ()))


def _tell(child: asyncio.subprocess.Process, token: str) -> None:
    assert child.stdin is not None
    # A child that is gone reads nothing more; its end is seen by whoever waits for it.
    if not child.stdin.is_closing():
        child.stdin.write(f"{token}\n".encode())


async def _end(child: asyncio.subprocess.Process) -> None:
    if child.returncode is not None:
        return
    # First a drain, then an orderly stop that gives up what runs, then the end.
    for insist in (child.terminate, child.terminate, child.kill):
        insist()
        with suppress(TimeoutError):
            await asyncio.wait_for(child.wait(), _STOP_GRACE_S)
            return
    await child.wait()


async def _first(*waits: Awaitable[object]) -> None:
    tasks = [asyncio.ensure_future(wait) for wait in waits]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
