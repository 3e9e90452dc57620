"""What this end shows a server and what it verifies the server by. Secrets are in no `repr`; no file is read here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from buildnet.errors import InvalidRequest


def _no_token() -> str:
    return ""


@dataclass(frozen=True, slots=True)
class Credentials:
    """All PEM. `token` is asked at each connection, because tokens are renewed; "" for none.

    Args:
        ca_pem: authorities of the server's certificate; None for those that browsers trust.
        certificate_pem: this end's certificate.
        key_pem: its private key.
        token: gives the token that is valid now.
    """

    ca_pem: bytes | None = None
    certificate_pem: bytes | None = field(default=None, repr=False)
    key_pem: bytes | None = field(default=None, repr=False)
    token: Callable[[], str] = field(default=_no_token, repr=False)

    def __post_init__(self) -> None:
        if (self.certificate_pem is None) != (self.key_pem is None):
            raise InvalidRequest("a client certificate needs its key, and the key its certificate", field="key_file")


NONE = Credentials()


@dataclass(frozen=True, slots=True)
class Address:
    """A server: `target` is `HOST:PORT`, in plaintext or within TLS."""

    target: str
    tls: bool

    @property
    def url(self) -> str:
        """As the native half dials it."""
        return f"{'grpcs' if self.tls else 'grpc'}://{self.target}"

    @staticmethod
    def parse(url: str) -> Address:
        """`grpc://HOST:PORT`, `grpcs://HOST:PORT` for TLS, the same with `http` and `https`, or `HOST:PORT`.

        Raises:
            InvalidRequest: the URL names no server.
        """
        try:
            parts = urlsplit(url if "://" in url else f"grpc://{url}")
            host, port = parts.hostname, parts.port
        except ValueError:
            host, port = None, None
        else:
            if parts.scheme not in ("grpc", "grpcs", "http", "https") or parts.path not in ("", "/"):
                host = None
        if not host or not port:
            raise InvalidRequest(
                f"{url!r} is not a server's address; write grpc://HOST:PORT, or grpcs://HOST:PORT for TLS", field="url"
            )
        target = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        return Address(target, parts.scheme in ("grpcs", "https"))
