"""A node that announces what a test says, well or wrongly. It discovers nothing."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from buildnet._native import SigningKey
from buildnet.catalog import announcement
from buildnet.model.resource import Announcement, Key, Resource
from buildnet.wire._gen.buildnet.v1 import resource_pb2
from buildnet.wire.announcements import body_of


@dataclass
class AnnouncingNode:
    """One boot of one node. `say` raises its sequence; times are its own clock's."""

    node: str = "n" * 32
    boot: str = "b" * 32
    controller: str = "c" * 32
    key: SigningKey = field(default_factory=SigningKey.generate)
    sequence: int = 0

    def say(
        self, now_unix_ms: int, present: Iterable[Resource] = (), gone: Iterable[Key] = (), *, base: int = 0
    ) -> Announcement:
        """The next announcement."""
        self.sequence += 1
        return Announcement(
            self.node,
            self.boot,
            self.controller,
            self.sequence,
            base,
            now_unix_ms,
            now_unix_ms + announcement.VALID_MS,
            tuple(sorted(present, key=lambda resource: resource.key)),
            tuple(sorted(gone)),
        )

    def signed(self, said: Announcement) -> resource_pb2.Announcement:
        """Its message."""
        packing, body = body_of(said)
        return resource_pb2.Announcement(
            body=body,
            packing=packing,  # type: ignore[arg-type]
            public_key=self.key.public,
            signature=announcement.sign(self.key, packing, body),
        )

    def reborn(self, boot: str) -> AnnouncingNode:
        """The same node after a restart."""
        return replace(self, boot=boot, sequence=0)
