"""A spec becomes an action in the store: its input tree composed, its messages written, its inputs found or named.

The store is asked in threads: what is acknowledged may have to be on the disk first.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection, Mapping, Sequence

from google.protobuf.message import DecodeError

from buildnet.catalog.constraint import parse
from buildnet.errors import BlobsMissing, BuildNetError, InvariantBroken, NotFound, Overloaded
from buildnet.model.action import ActionKey, Wanted
from buildnet.model.action_spec import ActionSpec, OutputInput
from buildnet.model.caller import is_apart, share_of
from buildnet.model.timeout import TIMEOUT_MAX_S, timeout_s_of
from buildnet.ports import BlobStore
from buildnet.wire._gen.build.bazel.remote.execution.v2 import remote_execution_pb2 as re
from buildnet.wire.action_spec import lower
from buildnet.wire.actions import near_root, requirements_of
from buildnet.wire.asked import asked_of
from buildnet.wire.input_tree import compose, needed

log = logging.getLogger(__name__)

Read = Callable[[str], bytes]
Put = Callable[[bytes], str]


class StoreBinder:
    """See ports.Binder.

    Args:
        read: returns a blob by its digest text.
        put: stores a blob; *blocks*.
        blobs: names what is absent, and keeps what is needed.
        ignored: platform properties that no worker need offer.
        timeout_max_s: what an action may ask for.
    """

    def __init__(
        self,
        read: Read,
        put: Put,
        blobs: BlobStore,
        ignored: Collection[str] = (),
        timeout_max_s: float = TIMEOUT_MAX_S,
    ) -> None:
        self._read = read
        self._put = put
        self._blobs = blobs
        self._ignored = frozenset(ignored)
        self._timeout_max_s = timeout_max_s

    async def check(self, specs: Collection[ActionSpec]) -> None:
        """Refuse specs that no worker could be asked for.

        Raises:
            InvalidRequest: a constraint is none, or a timeout is over the maximum.
        """
        # In a thread for its length: of a graph of thousands there is much to look through.
        await asyncio.to_thread(_check, specs, self._timeout_max_s)

    async def require(self, spec: ActionSpec) -> None:
        """Refuse a spec that cannot be run; it takes no output of another.

        Raises:
            InvalidRequest: a constraint is none, or its timeout is over the maximum.
            BlobsMissing: inputs are absent; every one is named.
        """
        _check([spec], self._timeout_max_s)
        _refuse(await self._blobs.missing_of_result(_needed_by([spec])))

    async def hold(self, name: str, specs: Collection[ActionSpec]) -> None:
        """See ports.Binder."""
        inputs = await asyncio.to_thread(_needed_by, specs)
        try:
            absent = await self._blobs.hold_result(name, inputs)
        except Overloaded as error:
            log.warning("the inputs of %s are not held: %s", name, error)
            absent = await self._blobs.missing_of_result(inputs)
        _refuse(absent)

    async def hold_outputs(self, name: str, result: bytes) -> None:
        """See ports.Binder."""
        try:
            absent = await self._blobs.hold_result(name, result)
        except BuildNetError as error:
            log.warning("%s is not held: %s", name, error)
        else:
            if absent:
                log.warning("%s is not held: %d blobs of it are gone", name, len(absent))

    def release(self, name: str) -> None:
        """See ports.Binder."""
        self._blobs.release(name)

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


def _refuse(absent: Sequence[str]) -> None:
    if absent:
        raise BlobsMissing(
            f"{len(absent)} inputs are not in the store; upload them and ask again", digests=list(absent)
        )


def _check(specs: Collection[ActionSpec], timeout_max_s: float) -> None:
    for spec in specs:
        timeout_s_of(spec.timeout_s, timeout_max_s)
    for given in {spec.constraints for spec in specs}:
        # The scheduler asks for nothing but what can be understood.
        parse(given)


def _needed_by(specs: Collection[ActionSpec]) -> bytes:
    inputs = {one for spec in specs for one in spec.inputs if not isinstance(one, OutputInput)}
    return needed(inputs).SerializeToString()
