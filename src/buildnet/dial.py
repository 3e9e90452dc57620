"""Native outbound connections, in plaintext or within TLS. A token leaves in metadata only."""

from __future__ import annotations

from buildnet._native import Call, Link
from buildnet.model.credentials import Address, Credentials
from buildnet.wire.native import translated


def link_of(address: Address, credentials: Credentials, *, instance: str = "") -> Link:
    """A native connection that moves blobs.

    Raises:
        InvalidRequest: a certificate, key or token is not one.
    """
    with translated():
        return Link(
            address.url,
            instance=instance,
            ca_pem=credentials.ca_pem,
            certificate_pem=credentials.certificate_pem,
            key_pem=credentials.key_pem,
            token=credentials.token(),
        )


def call_of(address: Address, credentials: Credentials, path: str) -> Call:
    """A native call of `path` that dials when it is first turned, and brings the token that is valid now.

    Raises:
        InvalidRequest: a certificate, key or token is not one.
    """
    with translated():
        return Call(
            address.url,
            path,
            ca_pem=credentials.ca_pem,
            certificate_pem=credentials.certificate_pem,
            key_pem=credentials.key_pem,
            token=credentials.token(),
        )
