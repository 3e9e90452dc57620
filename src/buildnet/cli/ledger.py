"""`buildnet ledger tail|show|prove|receipt|verify|accounts|statement|export`. Nothing of an entry is printed raw."""

from __future__ import annotations

import json
import re
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from buildnet.cli import moments, options
from buildnet.cli.printable import shown
from buildnet.errors import InvalidRequest

if TYPE_CHECKING:
    from buildnet.client import SyncClient
    from buildnet.ledger.proof_file import Proven
    from buildnet.ledger.receipt import Receipt

_LAST = 20
_FACT_MAX = 24
# C2SP signed-note: name, hash, key.
_VERIFIER_KEY = re.compile(r"[^\s+]+\+[0-9a-f]{8}\+[A-Za-z0-9+/=]+")
_since = click.option("--since", metavar="AGO|TIME", help="From this moment on: 10m, 2h, 7d, or 2031-05-01T12:00.")
_out = click.option(
    "--out", type=click.Path(path_type=Path, dir_okay=False), help="Write the proof to this file (c2sp.org/tlog-proof)."
)


@click.group("ledger", epilog="Example: buildnet ledger verify")
def command() -> None:
    """Read and verify the ledger."""


def _since_ms(since: str | None) -> int | None:
    now_unix_ms = int(time.time() * 1000)  # noqa: TID251 - what a person calls ten minutes ago
    return None if since is None else moments.unix_ms(since, now_unix_ms)


@command.command("tail", epilog="Example: buildnet ledger tail -f --kind action.published")
@options.of_server
@click.option("-f", "--follow", is_flag=True, help="Stay and print what comes.")
@click.option("--kind", "kinds", multiple=True, metavar="KIND", help="Only entries of this kind; may be repeated.")
@click.option(
    "--of", "instances", multiple=True, metavar="INSTANCE", help="Only entries of this instance and those below it."
)
@_since
@click.option("--from", "start", type=options.INDEX, help=f"First entry.  [default: the last {_LAST}]")
@options.as_json
def tail(
    url: str | None,
    state: Path | None,
    instance: str,
    follow: bool,
    kinds: tuple[str, ...],
    instances: tuple[str, ...],
    since: str | None,
    start: int | None,
    as_json: bool,
) -> None:
    """Print entries in order."""
    since_unix_ms = _since_ms(since)
    with options.connected(url, state, instance) as client:
        if start is None:
            start = 0 if since is not None else max(0, client.ledger_size() - _LAST)
        entries = client.ledger_tail(
            start, follow=follow, kinds=kinds, instances=instances, since_unix_ms=since_unix_ms, on_break=options.broke
        )
        for index, body in entries:
            if as_json:
                options.echo_json({"index": index, "body": json.loads(body)})
            else:
                click.echo(_line(index, json.loads(body)))


def _line(index: int, fields: dict[str, Any]) -> str:
    at = moments.shown(fields.pop("at_unix_ms"))
    kind = fields.pop("kind")
    fields.pop("v", None)
    facts = " ".join(f"{name}={_cut(_text(fact))}" for name, fact in fields.items() if fact != "")
    return shown(f"{index:>7} {at} {kind:18} {facts}")


def _text(fact: object) -> str:
    return ", ".join(map(str, fact)) if isinstance(fact, list) else str(fact)


def _cut(text: str) -> str:
    return text if len(text) <= _FACT_MAX else text[: _FACT_MAX - 1] + "…"


@command.command("show", epilog="Example: buildnet ledger show 12")
@options.of_server
@options.as_json
@click.argument("index", type=options.INDEX)
def show(url: str | None, state: Path | None, instance: str, as_json: bool, index: int) -> None:
    """Print one entry whole."""
    with options.connected(url, state, instance) as client:
        fields = json.loads(client.ledger_entry(index))
    if as_json:
        options.echo_json({"index": index, "body": fields})
        return
    click.echo(f"{'index':16} {index}")
    for name, fact in fields.items():
        for line in fact if isinstance(fact, list) else [fact]:
            text = moments.shown(line) if name == "at_unix_ms" else str(line)
            click.echo(shown(f"{name:16} {text}"))


@command.command("prove", epilog="Example: buildnet ledger prove 12 --out entry-12.tlog-proof")
@options.of_server
@_out
@options.as_json
@click.argument("index", type=options.INDEX)
def prove(url: str | None, state: Path | None, instance: str, out: Path | None, as_json: bool, index: int) -> None:
    """Fetch one entry with its proof and check the proof here, against the signed checkpoint."""
    with options.connected(url, state, instance) as client:
        _hand_over(client.prove(index), out, as_json)


@command.command("receipt", epilog="Example: buildnet ledger receipt $ACTION_DIGEST --out made.tlog-proof")
@options.of_server
@_out
@options.as_json
@click.argument("action", metavar="ACTION_DIGEST")
def receipt(url: str | None, state: Path | None, instance: str, out: Path | None, as_json: bool, action: str) -> None:
    """Fetch the proof that the newest result of an action is in the ledger; `ledger verify FILE` checks it offline.

    ACTION_DIGEST is HASH/SIZE, as `buildnet run --json` and `actions show` print it.
    """
    from buildnet.model.digest import Digest

    digest = Digest.parse(action)
    with options.connected(url, state, instance) as client:
        _hand_over(client.receipt(digest), out, as_json)


def _hand_over(proven: Receipt, out: Path | None, as_json: bool) -> None:
    if out is not None:
        write_receipt(proven, out)
    if as_json:
        options.echo_json(proven.facts())
    else:
        _say(proven)
        if out is not None:
            click.echo(f"written to {out}; check it with: buildnet ledger verify {out} --key '{shown(proven.key)}'")


def write_receipt(proven: Receipt, out: Path) -> None:
    """Write a receipt's file.

    Raises:
        InvalidRequest: it cannot be written there.
    """
    try:
        out.write_text(proven.text)
    except OSError as error:
        raise InvalidRequest(f"the receipt cannot be written: {error}; name another file", field="out") from error


def _say(proven: Receipt) -> None:
    head = proven.verify()
    click.echo(shown(f"proven: entry {proven.index} is in the tree of {head.size} entries that {proven.key} signed"))
    click.echo(shown(proven.body.decode()))


@command.command("verify", epilog="Example: buildnet ledger verify --state ~/.local/state/buildnet")
@options.state
@click.option(
    "--from",
    "--known",
    "known",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    metavar="CHECKPOINT",
    help="A checkpoint that you kept elsewhere: the ledger must go on from it.",
)
@click.option("--key", metavar="KEY", help="With FILE: the ledger's verifier key, or the file that holds it.")
@click.option("--witness", "witnesses", multiple=True, metavar="KEY", help="With FILE: who must have cosigned.")
@options.as_json
@click.argument("file", required=False, type=click.Path(exists=True, dir_okay=False, path_type=Path))
def verify(
    state: Path | None,
    known: Path | None,
    key: str | None,
    witnesses: tuple[str, ...],
    as_json: bool,
    file: Path | None,
) -> None:
    """Recompute the whole ledger from its files: entries, balances, tree, signatures, every byte. Needs no server.

    With FILE, a proof or receipt, check that alone, against --key or the key in the state directory.
    Exits with 1 when anything was altered, and says where.
    """
    from buildnet.app.config import default_state_dir
    from buildnet.ledger import audit

    state = state or default_state_dir()
    if file is not None:
        if known is not None:
            raise click.UsageError("a proof is checked by itself: leave --from away")
        proven = audit.verify_proof(file, _key_of(key, state), [_read_key(witness) for witness in witnesses])
        _say_proven(proven, as_json)
        return
    if key is not None or witnesses:
        raise click.UsageError("--key and --witness are for a proof: name its file")
    report = audit.verify(state, known.read_text(errors="replace") if known else None)
    if as_json:
        options.echo_json({"verified": True, **asdict(report)})
        return
    click.echo(f"verified: {report.size} entries, root {report.root[:16]}…, in {report.seconds:.2f} s")
    for kind, count in sorted(report.kinds.items()):
        click.echo(shown(f"  {count:>7} {kind}"))
    click.echo(f"  {report.accounts:>7} balances are what these entries come to")
    if report.waiting:
        click.echo(f"  {report.waiting:>7} of these wait in the tail, under no checkpoint yet")


def _say_proven(proven: Proven, as_json: bool) -> None:
    if as_json:
        fields = {"index": proven.index, "body": proven.body.decode(), "origin": proven.origin, "size": proven.size}
        options.echo_json({"verified": True, **fields, "root": proven.root.hex(), "cosigned": proven.cosigned})
        return
    click.echo(shown(f"proven: entry {proven.index} is in the tree of {proven.size} entries of {proven.origin}"))
    for witness, at_unix_s in proven.cosigned.items():
        click.echo(shown(f"cosigned {moments.shown(1000 * at_unix_s)} by {witness}"))
    click.echo(shown(proven.body.decode()))


def _key_of(key: str | None, state: Path) -> str:
    if key is not None:
        return _read_key(key)
    try:
        return (state / "ledger" / "key.pub").read_text().strip()
    except OSError as error:
        raise InvalidRequest(
            "a proof is worth what the key is that it is checked with: give the ledger's by --key, or --state",
            field="key",
        ) from error


def _read_key(key: str) -> str:
    if _VERIFIER_KEY.fullmatch(key):
        return key
    try:
        return Path(key).read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidRequest(
            f"{key!r} is neither a verifier key nor a file that holds one: {error}", field="key"
        ) from error


@command.command("accounts", epilog="Example: buildnet ledger accounts --prefix caller:")
@options.of_server
@click.option("--prefix", default="", metavar="TEXT", help="Only names that begin so, such as node: or caller:.")
@options.as_json
def accounts(url: str | None, state: Path | None, instance: str, prefix: str, as_json: bool) -> None:
    """List accounts with what left them (debits), what came to them (credits), and what is set aside."""
    with options.connected(url, state, instance) as client:
        found = client.accounts(prefix)
    if as_json:
        options.echo_json([asdict(account) for account in found])
        return
    options.echo_table(
        ["ACCOUNT", "UNIT", "DEBITS", "CREDITS", "BALANCE", "HELD", "LIMIT"],
        [
            [
                account.name,
                account.unit,
                str(account.debits_posted),
                str(account.credits_posted),
                str(account.credits_posted - account.debits_posted),
                str(account.debits_pending + account.credits_pending),
                account.limit or "-",
            ]
            for account in found
        ],
    )


@command.command("statement", epilog="Example: buildnet ledger statement caller:anonymous --since 1d")
@options.of_server
@_since
@options.as_json
@click.argument("account")
def statement(
    url: str | None, state: Path | None, instance: str, since: str | None, as_json: bool, account: str
) -> None:
    """Print what was posted to and from ACCOUNT, with the balance in each unit as it was then."""
    with options.connected(url, state, instance) as client:
        lines = client.statement(account, since_unix_ms=_since_ms(since))
        if as_json:
            for line in lines:
                options.echo_json(asdict(line))
            return
        options.echo_table(
            ["ENTRY", "AT", "KIND", "WITH", "UNIT", "AMOUNT", "STATUS", "BALANCE"],
            [
                [
                    str(line.index),
                    moments.shown(line.at_unix_ms),
                    line.kind,
                    line.debit if line.credit == account else line.credit,
                    line.unit,
                    f"{'+' if line.credit == account else '-'}{line.amount}",
                    line.status,
                    str(line.credits_posted - line.debits_posted),
                ]
                for line in lines
            ],
        )


@command.command("export", epilog="Example: buildnet ledger export --from 100 --to 200 > entries.jsonl")
@options.of_server
@click.option("--from", "start", type=options.INDEX, default=0, show_default=True, help="First entry.")
@click.option("--to", "end", type=options.INDEX, help="The entry to end before.  [default: the newest]")
@options.json_flag("As without it: it is always JSON lines.")
def export(url: str | None, state: Path | None, instance: str, start: int, end: int | None, as_json: bool) -> None:
    """Print entries as JSON lines, each with its index and its leaf's exact text."""
    with options.connected(url, state, instance) as client:
        for index, body in _between(client, start, end):
            options.echo_json({"index": index, "leaf": body.decode()})


def _between(client: SyncClient, start: int, end: int | None) -> Any:
    if end is not None and end <= start:
        return
    for index, body in client.ledger_tail(start):
        yield index, body
        if end is not None and index + 1 >= end:
            return
