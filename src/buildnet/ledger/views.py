"""All that is read from the ledger's entries as they come: nodes, actions, and how many there are of each kind. Pure:
`state, entry -> state`, and the text by which a state is kept.

It is a cache of the entries and no source: what is kept is taken back whole, or not at all.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Final

import orjson

from buildnet.ledger.action_view import ENDED_MAX, ActionView
from buildnet.ledger.node_view import ABSENT_MAX, NodeView

VERSION: Final = 1
_PIECE_ROWS: Final = 500


class Views:
    """What the first `size` entries say."""

    def __init__(self, ended_max: int = ENDED_MAX, absent_max: int = ABSENT_MAX) -> None:
        self.size = 0
        self.last = b""
        """SHA-256 of the last of them: of which ledger they are."""
        self.kinds: Counter[str] = Counter()
        self.results = 0
        """Rows of `results.updated`: what clients wrote."""
        self.nodes = NodeView(absent_max)
        self.actions = ActionView(ended_max)

    def apply(self, bodies: Sequence[bytes]) -> None:
        """Take the next entries.

        Raises:
            ValueError, KeyError: one of them is no entry; those before it were taken.
        """
        start = self.size
        try:
            for body in bodies:
                self._take(orjson.loads(body))
        finally:
            if self.size > start:
                self.last = hashlib.sha256(bodies[self.size - start - 1]).digest()

    def _take(self, said: Mapping[str, Any]) -> None:
        kind, at_unix_ms = said["kind"], said["at_unix_ms"]
        results = len(said["results"]) if kind == "results.updated" else 0
        self.actions.apply(self.size, kind, at_unix_ms, said)
        self.nodes.apply(kind, at_unix_ms, said)
        self.kinds[kind] += 1
        self.results += results
        self.size += 1

    def counts(self) -> dict[str, int]:
        """For the metrics: facts of the ledger as numbers that only rise."""
        ends = {
            f"ledger_actions_{end}": self.kinds[f"action.{end}"]
            for end in ("published", "cached", "failed", "cancelled")
        }
        return {
            "ledger_entries_read": self.size,
            "ledger_actions_submitted": self.kinds["action.submitted"],
            **ends,
            "ledger_nodes_joined": self.kinds["node.joined"],
            "ledger_results_updated": self.results,
        }

    def dump(self) -> Iterator[bytes]:
        """The state as text, in pieces of bounded work; `load` takes it back. It is not to change meanwhile."""
        head = [VERSION, self.size, self.last.hex(), dict(self.kinds), self.results]
        told = hashlib.sha256()
        for piece in _pieces(
            [("views", head)], (("node", r) for r in self.nodes.rows()), (("action", r) for r in self.actions.rows())
        ):
            told.update(piece)
            yield piece
        yield told.hexdigest().encode() + b"\n"

    @classmethod
    def load(cls, text: bytes) -> Views:
        """A state that was dumped.

        Raises:
            ValueError: the text is damaged, or of another version.
        """
        body, _, end = text.removesuffix(b"\n").rpartition(b"\n")
        body += b"\n"
        if hashlib.sha256(body).hexdigest().encode() != end:
            raise ValueError("it is damaged")
        views = cls()
        try:
            for line in body.splitlines():
                views._restore(orjson.loads(line))
        except (TypeError, AttributeError, LookupError) as error:
            raise ValueError(f"it holds something else: {error}") from error
        return views

    def _restore(self, line: list[Any]) -> None:
        what, row = line
        if what == "action":
            self.actions.restore(row)
        elif what == "node":
            self.nodes.restore(row)
        else:
            version, self.size, last, kinds, self.results = row
            if version != VERSION:
                raise ValueError(f"it is of version {version}")
            self.last, self.kinds = bytes.fromhex(last), Counter(kinds)


def _pieces(*parts: Iterable[tuple[str, Sequence[Any]]]) -> Iterator[bytes]:
    lines: list[bytes] = []
    for part in parts:
        for line in part:
            lines.append(orjson.dumps(line, option=orjson.OPT_APPEND_NEWLINE))
            if len(lines) == _PIECE_ROWS:
                yield b"".join(lines)
                lines = []
    yield b"".join(lines)
