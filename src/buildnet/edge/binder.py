"""A spec becomes an action in the store: its input tree composed, its messages written, its inputs found or named.

The store is asked in threads: what is acknowledged may have to be on the disk first.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence

from google.protobuf.message import DecodeError

from buildnet.catalog.constraint import parse
from buildnet.errors import BlobsMissing, InvariantBroken, NotFound
from buildnet.model.action import ActionKey, Wanted
from buildnet.model.action_spec import ActionSpec, Input, OutputInput
from buildnet.model.caller import is_apart, share_of
from buildnet.model.timeout import TIMEOUT_MAX_S, timeout_s_of
from buildnet.wire._gen.build.bazel.remote.execution.v2 import remote_execution_pb2 as re
from buildnet.wire.action_spec import lower
from buildnet.wire.actions import near_root, requirements_of
from buildnet.wire.asked import asked_of
from buildnet.wire.input_tree import compose, needed

Read = Callable[[str], bytes]
Put = Callable[[bytes], str]
Missing = Callable[[bytes], Awaitable[Sequence[str]]]


class StoreBinder:
    """See ports.Binder.

    Args:
        read: returns a blob by its digest text.
        put: stores a blob; *blocks*.
        missing: names what is absent of all that an ActionResult references, at any depth.
        ignored: platform properties that no worker need offer.
        timeout_max_s: what an action may ask for.
    """

    def __init__(
        self,
        read: Read,
        put: Put,
        missing: Missing,
        ignored: Collection[str] = (),
        timeout_max_s: float = TIMEOUT_MAX_S,
    ) -> None:
        self._read = read
        self._put = put
        self._missing = missing
        self._ignored = frozenset(ignored)
        self._timeout_max_s = timeout_max_s

    async def require(self, specs: Iterable[ActionSpec]) -> None:
        """Refuse specs that cannot be run whatever others leave.

        Raises:
            InvalidRequest: a constraint is none, or a timeout is over the maximum.
            BlobsMissing: inputs are absent; every one is named.
        """
        # In a thread for its length: of a graph of thousands there is much to look through.
        absent = await self._missing(await asyncio.to_thread(_needed_by, specs, self._timeout_max_s))
        if absent:
            raise BlobsMissing(
                f"{len(absent)} inputs are not in the store; upload them and ask again", digests=list(absent)
            )

    async def bind(self, spec: ActionSpec, instance: str, caller: str, results: Mapping[str, bytes]) -> Wanted:
        """See ports.Binder."""
        return await asyncio.to_thread(self._bind, spec, instance, caller, results)

    def _bind(self, spec: ActionSpec, instance: str, caller: str, results: Mapping[str, bytes]) -> Wanted:
        try:
            taken = {name: re.ActionResult.FromString(result) for name, result in results.items()}
        except DecodeError as error:
            raise InvariantBroken("a stored result cannot be decoded") from error
        try:
            composed = compose(spec.inputs, self._read, taken)
        except NotFound as error:
            # A directory that was there when the graph was accepted.
            name = str(error.fields.get("name", ""))
            raise BlobsMissing(error.message, digests=[name] if name else []) from error
        lowered = lower(spec, composed.root)
        for message in (*composed.messages.values(), lowered.command, lowered.action):
            self._put(message)
        properties = tuple(spec.properties())
        return Wanted(
            key=ActionKey(instance, lowered.digest),
            requirements=requirements_of(properties, self._ignored, apart=is_apart(instance)),
            # Accepted under the maximum of its time: a controller with a lower one goes on with it.
            timeout_s=spec.timeout_s or timeout_s_of(None, self._timeout_max_s),
            priority=spec.priority,
            do_not_cache=spec.do_not_cache,
            caller=caller,
            asked=asked_of(properties),
            share=share_of(caller),
            near=near_root(composed.root.hash),
        )


def _needed_by(specs: Iterable[ActionSpec], timeout_max_s: float) -> bytes:
    inputs, constraints = set[Input](), set[tuple[str, ...]]()
    for spec in specs:
        timeout_s_of(spec.timeout_s, timeout_max_s)
        constraints.add(spec.constraints)
        inputs.update(one for one in spec.inputs if not isinstance(one, OutputInput))
    for given in constraints:
        # The scheduler asks for nothing but what can be understood.
        parse(given)
    return needed(inputs).SerializeToString()
