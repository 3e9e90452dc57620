"""Why an operation was no hit, and in what two actions differ, from what the history and the store still have.

It reads; what is gone from both is said to be gone.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Final

from buildnet.errors import NotFound
from buildnet.history.difference import difference
from buildnet.history.relatives import Candidate, Relative, nearest, reason_of
from buildnet.model.caller import looked_up
from buildnet.model.digest import Digest
from buildnet.model.history import Difference, Explanation, Parts, PastOperation, TreeDirectory
from buildnet.ports import ActionMessages, HistoryReader

# Of each kind of relation; and of the Commands of all.
CANDIDATES_MAX: Final = 20
COMPARED_BYTES_MAX: Final = 8 << 20
_AGAIN_MAX: Final = 50


class Explainer:
    """Explains out of one reader, and reads no message twice."""

    def __init__(self, reader: HistoryReader, messages: ActionMessages) -> None:
        self._reader = reader
        self._messages = messages
        self._directories: dict[Digest, TreeDirectory | None] = {}

    def explain(self, subject: PastOperation) -> Explanation:
        """Why `subject` was not answered from the cache, as far as can be told."""
        subject = self._filled(subject)
        parts = self.parts(subject.key.digest)
        again = self._again(subject)
        shared = self._reader.shared(subject)
        relative: list[Relative | None] = []

        def related() -> bool:
            relative.append(self._nearest(subject, parts) if parts is not None else None)
            return relative[0] is not None

        reason = reason_of(subject, parts, again, shared, related)
        since_unix_ms = self._reader.since_unix_ms()
        if again is not None:
            return Explanation(subject, reason, again, "the same action", since_unix_ms=since_unix_ms)
        if reason in ("not_cacheable", "lookup_skipped"):
            # It would have run all the same; what has changed is told beside.
            related()
        found = relative[0] if relative else None
        if found is None or parts is None:
            return Explanation(subject, reason, since_unix_ms=since_unix_ms)
        changes = difference(found.parts, parts, self._directory, same_action=False)
        return Explanation(subject, reason, found.past, found.relation, changes, since_unix_ms)

    def differ(self, before: Digest, after: Digest) -> Difference:
        """In what two actions differ.

        Raises:
            NotFound: one's messages are neither kept nor in the store.
        """
        mine, theirs = self._known(before), self._known(after)
        return difference(mine, theirs, self._directory, same_action=before == after)

    def parts(self, action: Digest) -> Parts | None:
        """What an action is made of, None when its messages are to be had nowhere."""
        body = self.message(action)
        if body is None:
            return None
        command = dict(self._messages.refers("action", body)).get("command")
        other = self.message(command) if command is not None else None
        return None if other is None else self._messages.parts(body, other)

    def message(self, digest: Digest) -> bytes | None:
        """A message from the history, else from the store."""
        kept = self._reader.message(digest)
        return self._messages.fetch(digest) if kept is None else kept

    def _filled(self, subject: PastOperation) -> PastOperation:
        """What stands in for an operation names no Command yet, and its Action does."""
        body = self.message(subject.key.digest) if subject.command is None else None
        if body is None:
            return subject
        refers = dict(self._messages.refers("action", body))
        return replace(subject, command=refers.get("command"), root=refers.get("directory"))

    def _known(self, action: Digest) -> Parts:
        parts = self.parts(action)
        if parts is None:
            raise NotFound(
                f"the Action {action} or its Command is neither in the history nor in the cache; run it again",
                kind="action",
                name=action.text,
            )
        return parts

    def _directory(self, digest: Digest) -> TreeDirectory | None:
        if digest not in self._directories:
            body = self.message(digest)
            self._directories[digest] = None if body is None else self._messages.directory(body)
        return self._directories[digest]

    def _again(self, subject: PastOperation) -> PastOperation | None:
        instances = set(looked_up(subject.key.instance))
        before = subject.number or None
        found = self._reader.of_action(subject.key.digest, _AGAIN_MAX, before=before)
        same = [past for past in found if past.key.instance in instances and not past.cached]
        # What ran apart says nothing of the cache, unless there is nothing else.
        return next((past for past in same if past.kept), same[0] if same else None)

    def _nearest(self, subject: PastOperation, parts: Parts) -> Relative | None:
        instances = tuple(looked_up(subject.key.instance))
        found = self._reader.candidates(subject, parts, instances, CANDIDATES_MAX)
        return nearest(subject, parts, self._candidates(found))

    def _candidates(self, found: Iterable[PastOperation]) -> Iterator[Candidate]:
        seen: set[Digest] = set()
        left = COMPARED_BYTES_MAX
        for past in found:
            # Of one action the newest stands for all.
            if past.key.digest in seen or past.command is None:
                continue
            seen.add(past.key.digest)
            left -= past.command.size_bytes
            if left < 0:
                return
            yield Candidate(past, self.parts(past.key.digest))
