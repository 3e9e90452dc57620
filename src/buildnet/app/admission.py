"""Who a controller lets in: TLS, tokens, certificates. It refuses to listen beyond this machine for callers whom it
does not know, or in plaintext unless that was asked for in so many words.
"""

from __future__ import annotations

import ipaddress
import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from buildnet.access import keys, tokens
from buildnet.errors import InvalidRequest

_ANONYMOUS: Final = {"all": ("admin",), "read": ("read",), "none": ()}
_EXAMPLE: Final = "127.0.0.1:8980"
_NAMES: Final = ("CN=", "DNS:", "URI:", "EMAIL:")


@dataclass(frozen=True, slots=True)
class TlsConfig:
    """Files of PEM, read again when they change. `client_ca` makes callers of those whose certificates it signed."""

    certificate: Path
    key: Path
    client_ca: Path | None = None


@dataclass(frozen=True, slots=True)
class CertificateGrant:
    """What the holder of a certificate with this name may do. `name` is `CN=…`, `DNS:…`, `URI:…` or `EMAIL:…`."""

    name: str
    scopes: tuple[str, ...] = ("read", "write")
    instances: tuple[str, ...] | None = None
    namespace: str = ""

    def __post_init__(self) -> None:
        if not self.name.startswith(_NAMES) or self.name in _NAMES:
            raise InvalidRequest(
                f"{self.name!r} is not a certificate's name; write one of {', '.join(f'{n}…' for n in _NAMES)}",
                field="access.certificate.name",
            )
        tokens.check_grant(self.scopes, self.instances, self.namespace, f"certificate {self.name!r}: ")


@dataclass(frozen=True, slots=True)
class AccessConfig:
    """Who is believed.

    Args:
        anonymous: what callers without credentials may do: all, read or none; None for all on loopback unless there is
            an authority for clients, and none elsewhere.
        trusted_keys: public keys whose tokens are believed, beside this controller's own.
        certificates: the first that names a client's certificate is its grant.
        certificate_scopes: of a certificate that none of them names.
        insecure_plaintext: whether to send tokens beyond this machine in plaintext.
    """

    anonymous: str | None = None
    trusted_keys: tuple[Path, ...] = ()
    certificates: tuple[CertificateGrant, ...] = ()
    certificate_scopes: tuple[str, ...] = ("read", "write")
    insecure_plaintext: bool = False

    def __post_init__(self) -> None:
        if self.anonymous is not None and self.anonymous not in _ANONYMOUS:
            raise InvalidRequest(
                f"anonymous {self.anonymous!r} is not known; use {', '.join(_ANONYMOUS)}", field="access.anonymous"
            )
        if self.certificate_scopes:
            tokens.check_grant(self.certificate_scopes, None, "", "certificate_scopes: ")

    def for_door(self, listen: str, tls: TlsConfig | None, state: Path) -> dict[str, Any]:
        """The same as the native door takes it; makes the key that signs tokens at first use.

        Raises:
            StateCorrupt: the key cannot be used.
            InvalidRequest: a trusted key cannot be read.
        """
        public = [keys.load_or_create(state).public, *(keys.load_public(path) for path in self.trusted_keys)]
        certificates = [
            {
                "name": rule.name,
                "scopes": list(rule.scopes),
                "instances": None if rule.instances is None else [name.rstrip("/") for name in rule.instances],
                "namespace": rule.namespace or None,
            }
            for rule in self.certificates
        ]
        certificates.append({"name": "", "scopes": list(self.certificate_scopes), "instances": None, "namespace": None})
        return {
            "keys": public,
            "revoked": str(keys.revoked_path(state)),
            "anonymous": list(_ANONYMOUS[anonymous_of(listen, self, tls)]),
            "certificates": certificates,
        }


def for_door(tls: TlsConfig | None) -> dict[str, Any] | None:
    """TLS as the native door takes it."""
    if tls is None:
        return None
    client_ca = None if tls.client_ca is None else str(tls.client_ca)
    return {"certificate": str(tls.certificate), "key": str(tls.key), "client_ca": client_ca}


def anonymous_of(listen: str, access: AccessConfig, tls: TlsConfig | None) -> str:
    """What callers without credentials may do on this address: all, read or none."""
    if access.anonymous is not None:
        return access.anonymous
    return "all" if is_loopback(listen) and (tls is None or tls.client_ca is None) else "none"


def check(listen: str, access: AccessConfig, tls: TlsConfig | None) -> None:
    """Refuse an address whose callers would not be known, or whose tokens could be read on the way.

    Raises:
        InvalidRequest: with the field and the remedy.
    """
    if access.certificates and (tls is None or tls.client_ca is None):
        raise InvalidRequest(
            "certificates are granted rights, but no authority for them is named; set client_ca in [tls]",
            field="access.certificate",
        )
    if is_loopback(listen):
        return
    if anonymous_of(listen, access, tls) == "all":
        raise InvalidRequest(
            f"refusing to listen on {listen} for callers without credentials: anybody could write results that others "
            "build on; leave out --anonymous all, and make tokens with: buildnet token create",
            field="access.anonymous",
        )
    if tls is None and not access.insecure_plaintext:
        raise InvalidRequest(
            f"refusing to listen on {listen} in plaintext: tokens could be read on the way; set --tls-cert and "
            "--tls-key, or say --insecure-plaintext where the network itself is trusted",
            field="listen",
        )


def is_loopback(listen: str) -> bool:
    """Whether an address is reached from this machine only.

    Raises:
        InvalidRequest: it is not an address.
    """
    host, separator, port = listen.rpartition(":")
    if not separator or not port.isdigit() or int(port) > 65535:
        raise InvalidRequest(
            f"{listen!r} is not an address to listen on; write HOST:PORT, for example {_EXAMPLE}", field="listen"
        )
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


def check_files(access: AccessConfig, tls: TlsConfig | None) -> None:
    """Look into the files that a configuration names, as the door will.

    Raises:
        InvalidRequest: one cannot be read or does not hold what it should.
    """
    for path in access.trusted_keys:
        keys.load_public(path)
    if tls is None:
        return
    try:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(tls.certificate, tls.key)
    except OSError as error:
        # An ssl.SSLError is one too; either way the two files together are no server's certificate.
        raise InvalidRequest(f"cannot use {tls.certificate} with {tls.key} for TLS: {error}", field="tls") from error
    if tls.client_ca is not None:
        try:
            context.load_verify_locations(tls.client_ca)
        except OSError as error:
            raise InvalidRequest(f"cannot use {tls.client_ca} for TLS: {error}", field="tls.client_ca") from error
