"""Where a controller is, who must answer there, and what to show: one line that a person copies. It is checked as a
whole; a token is in no `repr`.
"""

from __future__ import annotations

import base64
import binascii
import re
from dataclasses import dataclass, field, replace
from typing import Final
from urllib.parse import parse_qsl, urlsplit

from buildnet.errors import InvalidRequest

SCHEME: Final = "bnet"
CARRIERS: Final = ("", "http", "https")
TOKEN_BYTES: Final = 20
LINE_CHARACTERS_MAX: Final = 1024
TERM_MAX: Final = (1 << 64) - 1
_KEY: Final = re.compile(r"[0-9a-f]{64}")
_ORGANISATION: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
_PARTS: Final = ("key", "term", "token")


@dataclass(frozen=True, slots=True)
class JoinLine:
    """`bnet://HOST:PORT/ORGANISATION?key=HEX&term=N&token=BASE32`; `bnet+https://…` or `bnet+http://…` where only
    HTTP/2 passes, with or without TLS up to whoever ends it.

    Args:
        target: `HOST:PORT`, an IPv6 address in brackets.
        organisation: whose controller it is.
        key: of the controller, 64 hexadecimal digits.
        term: of the controller when the line was made, or earlier; 0 when it is not known.
        token: 32 letters of base32; "" for a node that has joined before.
        carrier: `https` or `http` where a call by HTTP/2 carries the sessions; "" where they are dialled directly.
    """

    target: str
    organisation: str
    key: str
    term: int = 0
    token: str = field(default="", repr=False)
    carrier: str = ""

    @property
    def url(self) -> str:
        """The line without what must stay secret or passes."""
        scheme = f"{SCHEME}+{self.carrier}" if self.carrier else SCHEME
        return f"{scheme}://{self.target}/{self.organisation}"

    @property
    def text(self) -> str:
        """The whole line; `parse` gives it back."""
        token = f"&token={self.token}" if self.token else ""
        return f"{self.url}?key={self.key}&term={self.term}{token}"

    @property
    def token_bytes(self) -> bytes:
        """The token as it is shown in a handshake."""
        return base64.b32decode(self.token) if self.token else b""

    def without_token(self) -> JoinLine:
        """The same for a node that has joined."""
        return replace(self, token="")

    @staticmethod
    def parse(text: str) -> JoinLine:
        """A line as a person pasted it.

        Raises:
            InvalidRequest: it is not one; the message does not repeat its token.
        """
        text = text.strip()
        # urlsplit drops control characters where it should refuse them.
        if len(text) > LINE_CHARACTERS_MAX or not text.isascii() or not text.isprintable() or " " in text:
            raise _refusal("it is too long, or holds what no such line does")
        try:
            parts = urlsplit(text)
            host, port = parts.hostname, parts.port
            pairs = parse_qsl(parts.query, keep_blank_values=True, strict_parsing=True, max_num_fields=len(_PARTS))
        except ValueError:
            raise _refusal("it is cut short or misspelt") from None
        scheme, plus, carrier = parts.scheme.partition("+")
        known = scheme == SCHEME and bool(plus) == bool(carrier) and carrier in CARRIERS
        if not known or not host or not port or "@" in parts.netloc or parts.fragment:
            raise _refusal("it does not begin with bnet://HOST:PORT/ORGANISATION, bnet+https:// or bnet+http://")
        given = dict(pairs)
        if len(given) < len(pairs) or not given.keys() <= set(_PARTS) or "key" not in given:
            raise _refusal("after the question mark stand key, term and token, each once; the key must")
        return JoinLine(
            f"[{host}]:{port}" if ":" in host else f"{host}:{port}",
            check_organisation(parts.path.removeprefix("/")),
            _key_of(given["key"]),
            _term_of(given.get("term", "0")),
            _token_of(given["token"]) if "token" in given else "",
            carrier,
        )


def is_join_line(text: str) -> bool:
    """Whether a text is meant as one, well or badly written."""
    return text.strip().lower().startswith((f"{SCHEME}:", f"{SCHEME}+"))


def check_organisation(name: str) -> str:
    """Refuse what is no organisation's name.

    Raises:
        InvalidRequest: it is not 1 to 63 letters, digits or `._-`, the first a letter or digit.
    """
    if _ORGANISATION.fullmatch(name) is None:
        raise InvalidRequest(
            f"the organisation {name[:64]!a} must be 1 to 63 letters, digits or ._-, for example team",
            field="organisation",
        )
    return name


def _key_of(text: str) -> str:
    if _KEY.fullmatch(text) is None:
        raise _refusal("its key is not 64 hexadecimal digits")
    return text


def _term_of(text: str) -> int:
    if not text.isdigit() or len(text) > 20 or int(text) > TERM_MAX:
        raise _refusal("its term is not a number")
    return int(text)


def _token_of(text: str) -> str:
    token = text.upper()
    try:
        raw = base64.b32decode(token)
    except (binascii.Error, ValueError):
        raw = b""
    if len(raw) != TOKEN_BYTES:
        raise _refusal("its token is not 32 letters and digits of base32")
    return token


def _refusal(why: str) -> InvalidRequest:
    return InvalidRequest(
        f"this is not a join line: {why}; copy the whole line that `buildnet up` or `buildnet fleet tokens new` "
        "printed, in quotes",
        field="line",
    )
