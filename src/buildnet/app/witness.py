"""Wire one witness: its state, its key, an HTTP server with limits. No logic."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import uvicorn
from starlette.applications import Starlette
from uvicorn.protocols.http.h11_impl import H11Protocol

from buildnet.app import state
from buildnet.app.admission import is_loopback
from buildnet.app.clock import SystemClock
from buildnet.edge.web.witness import routes
from buildnet.errors import InvalidRequest, PortInUse
from buildnet.ledger import keys, note
from buildnet.ledger.checkpoint import Verifier
from buildnet.ledger.cosignature import Cosigner
from buildnet.ledger.witness_state import Witness

CONNECTIONS_MAX: Final = 256
HEADERS_BYTES_MAX: Final = 16 << 10
SILENCE_S: Final = 15
_GRACE_S: Final = 5


@dataclass(frozen=True, slots=True)
class WitnessRunConfig:
    """A witness of the logs `logs`, which signs as `name`, or as its own key is called."""

    state: Path
    listen: str
    logs: tuple[Verifier, ...]
    name: str | None = None

    def __post_init__(self) -> None:
        if not self.logs:
            raise InvalidRequest("name at least one log to witness, by its key: --origin", field="origin")
        if self.name is not None and not note.is_name(self.name):
            raise InvalidRequest("a witness's name is not empty and holds no blank and no +", field="name")


@dataclass(frozen=True, slots=True)
class WitnessReady:
    """What is said once the first request would be answered."""

    url: str
    listen: str
    state: str
    key: str


class BoundedProtocol(H11Protocol):
    """HTTP/1.1 whose next request's headers must have come within SILENCE_S; uvicorn itself waits for ever."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Await the first request."""
        super().connection_made(transport)
        self._await_request()

    def on_response_complete(self) -> None:
        """Await the next request."""
        super().on_response_complete()
        self._await_request()

    def connection_lost(self, exc: Exception | None) -> None:
        """Await nothing any more."""
        self._deadline.cancel()
        super().connection_lost(exc)

    def _await_request(self) -> None:
        self._deadline = self.loop.call_later(SILENCE_S, self._end_unless_begun, self.cycle)

    def _end_unless_begun(self, before: object) -> None:
        if self.cycle is before and not self.transport.is_closing():
            self.transport.close()


class _Server(uvicorn.Server):
    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        # Signals are the command's.
        yield


async def run_witness(config: WitnessRunConfig, announce: Callable[[WitnessReady], None], stop: asyncio.Event) -> None:
    """Serve until `stop` is set.

    Raises:
        BuildNetError: the state directory or the address cannot be used.
    """
    clock = SystemClock()
    with state.opened(config.state) as directory, _listening(config.listen) as listener:
        private = keys.load_or_create(directory / "keys" / "witness.key")
        name = config.name or f"buildnet.local/witness/{private.public.hex()[:16]}"
        cosigner = Cosigner(name, private)
        (directory / "key.pub").write_text(cosigner.key.text + "\n")
        witness = Witness.open(directory, cosigner, config.logs)
        try:
            application = Starlette(routes=routes(witness, lambda: clock.now_unix_ms() // 1000))
            server = _Server(_limits(application))
            host, port = listener.getsockname()[:2]
            address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
            # Whoever connects from now on waits in the listener's queue until the server takes it.
            announce(WitnessReady(f"http://{address}", address, str(directory), cosigner.key.text))
            serving = asyncio.ensure_future(server.serve([listener]))
            stopping = asyncio.ensure_future(stop.wait())
            await asyncio.wait([stopping, serving], return_when=asyncio.FIRST_COMPLETED)
            stopping.cancel()
            server.should_exit = True
            await serving
        finally:
            witness.close()


def _limits(application: Any) -> uvicorn.Config:
    return uvicorn.Config(
        application,
        http=BoundedProtocol,
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        limit_concurrency=CONNECTIONS_MAX,
        h11_max_incomplete_event_size=HEADERS_BYTES_MAX,
        timeout_keep_alive=SILENCE_S,
        timeout_graceful_shutdown=_GRACE_S,
    )


@contextmanager
def _listening(listen: str) -> Iterator[socket.socket]:
    # Plain HTTP may go anywhere: what comes is signed, what leaves is too, and nothing of it is secret.
    is_loopback(listen)
    host, _, port = listen.rpartition(":")
    host = host.strip("[]")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listener = socket.create_server((host, int(port)), family=family, backlog=CONNECTIONS_MAX)
    except OSError as error:
        raise PortInUse(f"cannot listen on {listen}: {error.strerror or error}", listen=listen) from error
    with listener:
        yield listener
