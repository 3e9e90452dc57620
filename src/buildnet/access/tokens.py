"""A token says what its holder may do and when that ends; it is a JWT signed with Ed25519 (RFC 7519, RFC 8037).

It refuses to sign what the door would not believe, and what would never end. Time and identity are arguments.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from buildnet._native import SigningKey
from buildnet.errors import BadSignature, InvalidRequest

SCOPES = ("read", "write", "cas-only", "execute", "worker", "admin")
DURATION_S_MAX = 10 * 366 * 86400
# Those of native/door/src/tokens.rs.
_AUDIENCE = "buildnet"
_INSTANCES_MAX = 64
_NAME_BYTES_MAX = 255
_NAMESPACE_BYTES_MAX = 64


@dataclass(frozen=True, slots=True)
class Token:
    """What a token says. `instances` with all below them, None for every one; `namespace` "" for none. Times are Unix
    seconds; `valid_from_unix_s` 0 for at once.
    """

    id: str
    scopes: tuple[str, ...]
    expires_unix_s: int
    subject: str = ""
    instances: tuple[str, ...] | None = None
    namespace: str = ""
    issued_unix_s: int = 0
    valid_from_unix_s: int = 0


def check_grant(scopes: Iterable[str], instances: tuple[str, ...] | None, namespace: str, where: str = "") -> None:
    """Refuse scopes, instances and a namespace that mean nothing, before they are signed or configured.

    Raises:
        InvalidRequest: with the field and the reason; `where` goes before it.
    """
    scopes = tuple(scopes)
    for scope in scopes:
        if scope not in SCOPES:
            raise InvalidRequest(f"{where}{scope!r} is not a scope; there are {', '.join(SCOPES)}", field="scope")
    if not scopes:
        raise InvalidRequest(f"{where}no scope is named; there are {', '.join(SCOPES)}", field="scope")
    if instances is not None:
        if "worker" in scopes:
            raise InvalidRequest(
                f"{where}a worker serves every instance; leave out either the scope worker or the instances",
                field="instance",
            )
        if len(instances) > _INSTANCES_MAX:
            raise InvalidRequest(f"{where}more than {_INSTANCES_MAX} instances", field="instance")
        for instance in instances:
            _check_name(instance, _NAME_BYTES_MAX, f"{where}the instance", "instance")
    if namespace:
        if any(scope in ("worker", "admin") for scope in scopes):
            raise InvalidRequest(
                f"{where}a worker's results are published for everybody; leave out either the namespace or the scopes "
                "worker and admin",
                field="namespace",
            )
        _check_name(namespace, _NAMESPACE_BYTES_MAX, f"{where}the namespace", "namespace")


def _check_name(name: str, bytes_max: int, what: str, field: str) -> None:
    if len(name.encode()) > bytes_max:
        raise InvalidRequest(f"{what} {name[:32]!r} is over {bytes_max} bytes", field=field)
    if any(ord(character) < 0x20 or 0x7F <= ord(character) < 0xA0 for character in name):
        raise InvalidRequest(f"{what} {name!r} holds a control character", field=field)


def sign(key: SigningKey, token: Token) -> str:
    """The token as it is sent, three parts of base64url with dots.

    Raises:
        InvalidRequest: it says what the door would not believe.
    """
    check_grant(token.scopes, token.instances, token.namespace)
    _check_name(token.subject, _NAME_BYTES_MAX, "the subject", "subject")
    claims: dict[str, Any] = {
        "aud": _AUDIENCE,
        "jti": token.id,
        "sub": token.subject,
        "iat": token.issued_unix_s,
        "exp": token.expires_unix_s,
        "scope": " ".join(token.scopes),
    }
    if token.valid_from_unix_s:
        claims["nbf"] = token.valid_from_unix_s
    if token.instances is not None:
        claims["instances"] = list(token.instances)
    if token.namespace:
        claims["namespace"] = token.namespace
    # A controller whose callers bring no tokens never needs them, and they take 10 MiB.
    import jwt
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    private = Ed25519PrivateKey.from_private_bytes(key.seed)
    return jwt.encode(claims, private, algorithm="EdDSA", headers={"kid": key_id(key.public)})


def read(text: str, keys: Iterable[bytes]) -> tuple[Token, bool]:
    """What a token says, and whether one of these keys, 32 bytes each, signed it. Its time is not looked at.

    Raises:
        InvalidRequest: it is not a token.
        BadSignature: it names one of the keys, which did not sign it.
    """
    import jwt
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    known = {key_id(key): Ed25519PublicKey.from_public_bytes(key) for key in keys}
    try:
        name = str(jwt.get_unverified_header(text).get("kid", ""))
        trusted = name in known
        claims: Mapping[str, Any] = jwt.decode(
            text,
            known.get(name, ""),
            algorithms=["EdDSA"],
            audience=_AUDIENCE,
            options={
                "verify_signature": trusted,
                "verify_exp": False,
                "verify_nbf": False,
                "verify_iat": False,
                "require": ["exp", "jti", "scope"],
            },
        )
    except jwt.InvalidSignatureError as error:
        raise BadSignature("the token's signature is not good; somebody has altered it") from error
    except jwt.PyJWTError as error:
        raise InvalidRequest(f"this is not a token of BuildNET: {error}", field="token") from error
    instances = claims.get("instances")
    token = Token(
        id=str(claims["jti"]),
        scopes=tuple(str(claims["scope"]).split()),
        expires_unix_s=int(claims["exp"]),
        subject=str(claims.get("sub", "")),
        instances=None if instances is None else tuple(str(instance) for instance in instances),
        namespace=str(claims.get("namespace", "")),
        issued_unix_s=int(claims.get("iat", 0)),
        valid_from_unix_s=int(claims.get("nbf", 0)),
    )
    return token, trusted


def key_id(public: bytes) -> str:
    """What a key is called: the first half of its SHA-256, in hex."""
    return hashlib.sha256(public).hexdigest()[:32]
