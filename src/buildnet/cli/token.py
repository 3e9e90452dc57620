"""`buildnet token`: make, show and revoke access tokens of the controller whose state directory this is.

A token is printed once, to standard output, and is never taken as an argument: other users can read those.
"""

from __future__ import annotations

import re
import secrets
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from buildnet.cli import options
from buildnet.errors import InvalidRequest
from buildnet.model.quantity import duration_s_of

if TYPE_CHECKING:
    from buildnet.access.tokens import Token

_TOKEN_BYTES_MAX = 1 << 16
# Three parts of base64url (RFC 7515 section 3.1), of a length that no file's name of people's has.
_JWT = re.compile(r"[A-Za-z0-9_-]{20,}\.[A-Za-z0-9_-]{20,}\.[A-Za-z0-9_-]{20,}")


def _directory(state: Path | None) -> Path:
    from buildnet.app.config import default_state_dir

    return (state or default_state_dir()).absolute()


def _now_unix_s() -> int:
    from buildnet.app.clock import SystemClock

    return SystemClock().now_unix_ms() // 1000


def _time(unix_s: int) -> str:
    try:
        return datetime.fromtimestamp(unix_s, UTC).isoformat().replace("+00:00", "Z")
    except (ValueError, OverflowError, OSError):
        return f"second {unix_s}"


def _facts(token: Token) -> dict[str, Any]:
    return {
        "id": token.id,
        "subject": token.subject,
        "scopes": list(token.scopes),
        "instances": None if token.instances is None else list(token.instances),
        "namespace": token.namespace,
        "expires": _time(token.expires_unix_s),
        "expires_unix_s": token.expires_unix_s,
    }


@click.group("token", epilog="Example: buildnet token create --scope read,write --expires 30d --subject ci")
def command() -> None:
    """Make, show and revoke access tokens."""


@command.command("create", epilog="Example: buildnet token create --scope read,write --instance team/ --expires 30d")
@options.state
@click.option(
    "--scope", default="read,write", show_default=True, help="What its holder may do: read, write, cas-only, …"
)
@click.option("--instance", "instances", multiple=True, help="Only this instance and those below it; may be repeated.")
@click.option("--expires", default="30d", show_default=True, help="When it ends, as in 12h or 30d.")
@click.option("--namespace", default="", help="Keep the results of its holder apart, under this name.")
@click.option("--subject", default="", help="Who it is for; refusals and logs say it.")
@options.as_json
def create(
    state: Path | None,
    scope: str,
    instances: tuple[str, ...],
    expires: str,
    namespace: str,
    subject: str,
    as_json: bool,
) -> None:
    """Print a new token. Scopes: read, write (blobs, results), cas-only (blobs), execute, worker (to join), admin."""
    from buildnet.access import keys, tokens

    duration_s = duration_s_of(expires, "expires")
    if not 0 < duration_s <= tokens.DURATION_S_MAX:
        raise InvalidRequest(f"{expires} is not from one second to ten years", field="expires")
    now_unix_s = _now_unix_s()
    token = tokens.Token(
        id=secrets.token_hex(8),
        scopes=tuple(part for part in scope.replace(",", " ").split() if part),
        expires_unix_s=now_unix_s + duration_s,
        subject=subject,
        instances=tuple(instances) or None,
        namespace=namespace,
        issued_unix_s=now_unix_s,
    )
    tokens.check_grant(token.scopes, token.instances, token.namespace)
    text = tokens.sign(keys.load_or_create(_directory(state)), token)
    if as_json:
        options.echo_json({"token": text, **_facts(token)})
    else:
        click.echo(text)


@command.command(
    "show", epilog="Example: buildnet token show < token, or with $BUILDNET_TOKEN set: buildnet token show"
)
@options.state
@click.argument("file", required=False, type=click.Path(path_type=Path, allow_dash=True))
@options.as_json
def show(state: Path | None, file: Path | None, as_json: bool) -> None:
    """Say what a token allows, whether this controller believes it and when it ends. Exits with 1 when it does not.

    The token comes from FILE, from standard input (-), or from $BUILDNET_TOKEN.
    """
    from buildnet.access import keys, tokens

    directory = _directory(state)
    signer = keys.load_or_create(directory).public if keys.key_path(directory).exists() else None
    token, signed = tokens.read(_token_text(file), [signer] if signer else [])
    gone = token.id in keys.revoked(directory)
    left_s = token.expires_unix_s - _now_unix_s()
    state_of = "signed by another key" if not signed else "revoked" if gone else "expired" if left_s <= 0 else "valid"
    facts = {**_facts(token), "state": state_of, "left_s": max(0, left_s)}
    if as_json:
        options.echo_json(facts)
    else:
        everywhere = "every instance" if token.instances is None else ", ".join(map(repr, token.instances))
        options.echo_table(
            ["", ""],
            [
                ["id", token.id],
                ["subject", token.subject or "-"],
                ["may", " ".join(token.scopes)],
                ["in", everywhere],
                ["namespace", token.namespace or "- (trusted)"],
                ["expires", facts["expires"]],
                ["state", state_of],
            ],
        )
    if state_of != "valid":
        raise click.exceptions.Exit(1)


def _token_text(file: Path | None) -> str:
    from buildnet.app.config import token_of_environment

    if file is None:
        text = token_of_environment()
        if not text:
            raise click.UsageError("name a file with the token, - for standard input, or set BUILDNET_TOKEN")
        return text
    if _JWT.fullmatch(str(file)):
        raise click.UsageError(
            "that is a token, and other users can read what a command was called with; revoke it, and hand the "
            "next one over in a file, on standard input (-), or in BUILDNET_TOKEN"
        )
    if str(file) == "-":
        return sys.stdin.read(_TOKEN_BYTES_MAX).strip()
    try:
        with file.open() as opened:
            return opened.read(_TOKEN_BYTES_MAX).strip()
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidRequest(f"cannot read a token from {file}: {error}", field="file") from error


@command.command("revoke", epilog="Example: buildnet token revoke 0123456789abcdef")
@options.state
@click.argument("token_id", metavar="ID")
@options.as_json
def revoke(state: Path | None, token_id: str, as_json: bool) -> None:
    """Have a token refused from now on, by its id. A running controller takes it up within two seconds."""
    from buildnet.access import keys

    directory = _directory(state)
    if not keys.key_path(directory).exists():
        raise InvalidRequest(f"{directory} has made no tokens; name its state directory with --state", field="state")
    fresh = keys.revoke(directory, token_id, 0)
    if as_json:
        options.echo_json({"id": token_id, "revoked": True, "fresh": fresh})
    else:
        click.echo(f"{token_id} is revoked" if fresh else f"{token_id} was revoked already")


@command.command("key", epilog="Example: buildnet token key > build.pub")
@options.state
def key(state: Path | None) -> None:
    """Print the public key that tokens are verified by, for another controller to trust ([access] trusted_keys)."""
    from buildnet._native import public_pem
    from buildnet.access import keys

    click.echo(public_pem(keys.load_or_create(_directory(state)).public), nl=False)
