"""grpcio's channels, for those who only ask. A token leaves in metadata only."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import grpc
import grpc.aio

from buildnet.errors import InvalidRequest
from buildnet.model.credentials import Address, Credentials


def channel_of(address: Address, credentials: Credentials, options: Sequence[tuple[str, Any]]) -> grpc.aio.Channel:
    """A channel that dials at the first call."""
    if not address.tls:
        return grpc.aio.insecure_channel(address.target, options=options)
    tls = grpc.ssl_channel_credentials(credentials.ca_pem, credentials.key_pem, credentials.certificate_pem)
    return grpc.aio.secure_channel(address.target, tls, options=options)


def metadata_of(credentials: Credentials) -> tuple[tuple[str, str], ...]:
    """What each call brings.

    Raises:
        InvalidRequest: the token holds what no header can.
    """
    token = credentials.token()
    if not token:
        return ()
    if not (token.isascii() and token.isprintable()):
        raise InvalidRequest("the token holds what no header can; is it a token?", field="token")
    return (("authorization", f"Bearer {token}"),)
