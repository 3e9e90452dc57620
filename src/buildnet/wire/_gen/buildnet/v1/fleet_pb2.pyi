import datetime

from buildnet.wire._gen.build.bazel.remote.execution.v2 import remote_execution_pb2 as _remote_execution_pb2
from buildnet.wire._gen.buildnet.v1 import resource_pb2 as _resource_pb2
from buildnet.wire._gen.google.protobuf import duration_pb2 as _duration_pb2
from buildnet.wire._gen.google.protobuf import timestamp_pb2 as _timestamp_pb2
from buildnet.wire._gen.google.rpc import status_pb2 as _status_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class LogStream(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    LOG_STREAM_UNSPECIFIED: _ClassVar[LogStream]
    LOG_STREAM_STDOUT: _ClassVar[LogStream]
    LOG_STREAM_STDERR: _ClassVar[LogStream]

class NodeState(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    NODE_STATE_UNSPECIFIED: _ClassVar[NodeState]
    NODE_STATE_JOINING: _ClassVar[NodeState]
    NODE_STATE_ACTIVE: _ClassVar[NodeState]
    NODE_STATE_CORDONED: _ClassVar[NodeState]
    NODE_STATE_DRAINING: _ClassVar[NodeState]
    NODE_STATE_LEFT: _ClassVar[NodeState]
    NODE_STATE_REMOVED: _ClassVar[NodeState]

class JoinTokenState(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    JOIN_TOKEN_STATE_UNSPECIFIED: _ClassVar[JoinTokenState]
    JOIN_TOKEN_STATE_VALID: _ClassVar[JoinTokenState]
    JOIN_TOKEN_STATE_USED: _ClassVar[JoinTokenState]
    JOIN_TOKEN_STATE_EXPIRED: _ClassVar[JoinTokenState]
    JOIN_TOKEN_STATE_REVOKED: _ClassVar[JoinTokenState]
LOG_STREAM_UNSPECIFIED: LogStream
LOG_STREAM_STDOUT: LogStream
LOG_STREAM_STDERR: LogStream
NODE_STATE_UNSPECIFIED: NodeState
NODE_STATE_JOINING: NodeState
NODE_STATE_ACTIVE: NodeState
NODE_STATE_CORDONED: NodeState
NODE_STATE_DRAINING: NodeState
NODE_STATE_LEFT: NodeState
NODE_STATE_REMOVED: NodeState
JOIN_TOKEN_STATE_UNSPECIFIED: JoinTokenState
JOIN_TOKEN_STATE_VALID: JoinTokenState
JOIN_TOKEN_STATE_USED: JoinTokenState
JOIN_TOKEN_STATE_EXPIRED: JoinTokenState
JOIN_TOKEN_STATE_REVOKED: JoinTokenState

class Property(_message.Message):
    __slots__ = ("name", "value")
    NAME_FIELD_NUMBER: _ClassVar[int]
    VALUE_FIELD_NUMBER: _ClassVar[int]
    name: str
    value: str
    def __init__(self, name: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...

class JoinRequest(_message.Message):
    __slots__ = ("hello", "heartbeat", "accepted", "log", "done", "draining", "announcement", "command_ended")
    HELLO_FIELD_NUMBER: _ClassVar[int]
    HEARTBEAT_FIELD_NUMBER: _ClassVar[int]
    ACCEPTED_FIELD_NUMBER: _ClassVar[int]
    LOG_FIELD_NUMBER: _ClassVar[int]
    DONE_FIELD_NUMBER: _ClassVar[int]
    DRAINING_FIELD_NUMBER: _ClassVar[int]
    ANNOUNCEMENT_FIELD_NUMBER: _ClassVar[int]
    COMMAND_ENDED_FIELD_NUMBER: _ClassVar[int]
    hello: Hello
    heartbeat: Heartbeat
    accepted: Accepted
    log: LogChunk
    done: Done
    draining: Draining
    announcement: _resource_pb2.Announcement
    command_ended: CommandEnded
    def __init__(self, hello: _Optional[_Union[Hello, _Mapping]] = ..., heartbeat: _Optional[_Union[Heartbeat, _Mapping]] = ..., accepted: _Optional[_Union[Accepted, _Mapping]] = ..., log: _Optional[_Union[LogChunk, _Mapping]] = ..., done: _Optional[_Union[Done, _Mapping]] = ..., draining: _Optional[_Union[Draining, _Mapping]] = ..., announcement: _Optional[_Union[_resource_pb2.Announcement, _Mapping]] = ..., command_ended: _Optional[_Union[CommandEnded, _Mapping]] = ...) -> None: ...

class Hello(_message.Message):
    __slots__ = ("node_id", "boot_id", "version", "slots", "properties", "running", "hostname", "capacity", "action_max", "sent_at")
    NODE_ID_FIELD_NUMBER: _ClassVar[int]
    BOOT_ID_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    SLOTS_FIELD_NUMBER: _ClassVar[int]
    PROPERTIES_FIELD_NUMBER: _ClassVar[int]
    RUNNING_FIELD_NUMBER: _ClassVar[int]
    HOSTNAME_FIELD_NUMBER: _ClassVar[int]
    CAPACITY_FIELD_NUMBER: _ClassVar[int]
    ACTION_MAX_FIELD_NUMBER: _ClassVar[int]
    SENT_AT_FIELD_NUMBER: _ClassVar[int]
    node_id: str
    boot_id: str
    version: str
    slots: int
    properties: _containers.RepeatedCompositeFieldContainer[Property]
    running: _containers.RepeatedCompositeFieldContainer[RunningAttempt]
    hostname: str
    capacity: Amounts
    action_max: Amounts
    sent_at: _timestamp_pb2.Timestamp
    def __init__(self, node_id: _Optional[str] = ..., boot_id: _Optional[str] = ..., version: _Optional[str] = ..., slots: _Optional[int] = ..., properties: _Optional[_Iterable[_Union[Property, _Mapping]]] = ..., running: _Optional[_Iterable[_Union[RunningAttempt, _Mapping]]] = ..., hostname: _Optional[str] = ..., capacity: _Optional[_Union[Amounts, _Mapping]] = ..., action_max: _Optional[_Union[Amounts, _Mapping]] = ..., sent_at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ...) -> None: ...

class Amounts(_message.Message):
    __slots__ = ("cpu_milli", "memory_bytes", "disk_bytes", "gpus")
    CPU_MILLI_FIELD_NUMBER: _ClassVar[int]
    MEMORY_BYTES_FIELD_NUMBER: _ClassVar[int]
    DISK_BYTES_FIELD_NUMBER: _ClassVar[int]
    GPUS_FIELD_NUMBER: _ClassVar[int]
    cpu_milli: int
    memory_bytes: int
    disk_bytes: int
    gpus: int
    def __init__(self, cpu_milli: _Optional[int] = ..., memory_bytes: _Optional[int] = ..., disk_bytes: _Optional[int] = ..., gpus: _Optional[int] = ...) -> None: ...

class RunningAttempt(_message.Message):
    __slots__ = ("fence", "action_digest")
    FENCE_FIELD_NUMBER: _ClassVar[int]
    ACTION_DIGEST_FIELD_NUMBER: _ClassVar[int]
    fence: int
    action_digest: _remote_execution_pb2.Digest
    def __init__(self, fence: _Optional[int] = ..., action_digest: _Optional[_Union[_remote_execution_pb2.Digest, _Mapping]] = ...) -> None: ...

class Heartbeat(_message.Message):
    __slots__ = ("fences", "sent_at")
    FENCES_FIELD_NUMBER: _ClassVar[int]
    SENT_AT_FIELD_NUMBER: _ClassVar[int]
    fences: _containers.RepeatedScalarFieldContainer[int]
    sent_at: _timestamp_pb2.Timestamp
    def __init__(self, fences: _Optional[_Iterable[int]] = ..., sent_at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ...) -> None: ...

class Accepted(_message.Message):
    __slots__ = ("fence",)
    FENCE_FIELD_NUMBER: _ClassVar[int]
    fence: int
    def __init__(self, fence: _Optional[int] = ...) -> None: ...

class CommandEnded(_message.Message):
    __slots__ = ("fence",)
    FENCE_FIELD_NUMBER: _ClassVar[int]
    fence: int
    def __init__(self, fence: _Optional[int] = ...) -> None: ...

class LogChunk(_message.Message):
    __slots__ = ("fence", "stream", "offset", "data", "printed_at")
    FENCE_FIELD_NUMBER: _ClassVar[int]
    STREAM_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    PRINTED_AT_FIELD_NUMBER: _ClassVar[int]
    fence: int
    stream: LogStream
    offset: int
    data: bytes
    printed_at: _timestamp_pb2.Timestamp
    def __init__(self, fence: _Optional[int] = ..., stream: _Optional[_Union[LogStream, str]] = ..., offset: _Optional[int] = ..., data: _Optional[bytes] = ..., printed_at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ...) -> None: ...

class LogTaken(_message.Message):
    __slots__ = ("fence", "stdout_offset", "stderr_offset", "resend")
    FENCE_FIELD_NUMBER: _ClassVar[int]
    STDOUT_OFFSET_FIELD_NUMBER: _ClassVar[int]
    STDERR_OFFSET_FIELD_NUMBER: _ClassVar[int]
    RESEND_FIELD_NUMBER: _ClassVar[int]
    fence: int
    stdout_offset: int
    stderr_offset: int
    resend: bool
    def __init__(self, fence: _Optional[int] = ..., stdout_offset: _Optional[int] = ..., stderr_offset: _Optional[int] = ..., resend: _Optional[bool] = ...) -> None: ...

class KeepLogRequest(_message.Message):
    __slots__ = ("fence", "stream", "digest")
    FENCE_FIELD_NUMBER: _ClassVar[int]
    STREAM_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    fence: int
    stream: LogStream
    digest: _remote_execution_pb2.Digest
    def __init__(self, fence: _Optional[int] = ..., stream: _Optional[_Union[LogStream, str]] = ..., digest: _Optional[_Union[_remote_execution_pb2.Digest, _Mapping]] = ...) -> None: ...

class KeepLogResponse(_message.Message):
    __slots__ = ("kept", "waits")
    KEPT_FIELD_NUMBER: _ClassVar[int]
    WAITS_FIELD_NUMBER: _ClassVar[int]
    kept: bool
    waits: bool
    def __init__(self, kept: _Optional[bool] = ..., waits: _Optional[bool] = ...) -> None: ...

class Done(_message.Message):
    __slots__ = ("fence", "status", "error_code", "result", "missing")
    FENCE_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    ERROR_CODE_FIELD_NUMBER: _ClassVar[int]
    RESULT_FIELD_NUMBER: _ClassVar[int]
    MISSING_FIELD_NUMBER: _ClassVar[int]
    fence: int
    status: _status_pb2.Status
    error_code: str
    result: bytes
    missing: _containers.RepeatedCompositeFieldContainer[_remote_execution_pb2.Digest]
    def __init__(self, fence: _Optional[int] = ..., status: _Optional[_Union[_status_pb2.Status, _Mapping]] = ..., error_code: _Optional[str] = ..., result: _Optional[bytes] = ..., missing: _Optional[_Iterable[_Union[_remote_execution_pb2.Digest, _Mapping]]] = ...) -> None: ...

class Draining(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class JoinResponse(_message.Message):
    __slots__ = ("welcome", "assign", "cancel", "settled", "drain", "announced", "prefetch", "log_taken")
    WELCOME_FIELD_NUMBER: _ClassVar[int]
    ASSIGN_FIELD_NUMBER: _ClassVar[int]
    CANCEL_FIELD_NUMBER: _ClassVar[int]
    SETTLED_FIELD_NUMBER: _ClassVar[int]
    DRAIN_FIELD_NUMBER: _ClassVar[int]
    ANNOUNCED_FIELD_NUMBER: _ClassVar[int]
    PREFETCH_FIELD_NUMBER: _ClassVar[int]
    LOG_TAKEN_FIELD_NUMBER: _ClassVar[int]
    welcome: Welcome
    assign: Assign
    cancel: Cancel
    settled: Settled
    drain: Drain
    announced: _resource_pb2.Announced
    prefetch: Prefetch
    log_taken: LogTaken
    def __init__(self, welcome: _Optional[_Union[Welcome, _Mapping]] = ..., assign: _Optional[_Union[Assign, _Mapping]] = ..., cancel: _Optional[_Union[Cancel, _Mapping]] = ..., settled: _Optional[_Union[Settled, _Mapping]] = ..., drain: _Optional[_Union[Drain, _Mapping]] = ..., announced: _Optional[_Union[_resource_pb2.Announced, _Mapping]] = ..., prefetch: _Optional[_Union[Prefetch, _Mapping]] = ..., log_taken: _Optional[_Union[LogTaken, _Mapping]] = ...) -> None: ...

class Welcome(_message.Message):
    __slots__ = ("controller_id", "version", "heartbeat_interval", "lease_duration", "idle_heartbeat_interval", "strict", "takes_command_ended")
    CONTROLLER_ID_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    HEARTBEAT_INTERVAL_FIELD_NUMBER: _ClassVar[int]
    LEASE_DURATION_FIELD_NUMBER: _ClassVar[int]
    IDLE_HEARTBEAT_INTERVAL_FIELD_NUMBER: _ClassVar[int]
    STRICT_FIELD_NUMBER: _ClassVar[int]
    TAKES_COMMAND_ENDED_FIELD_NUMBER: _ClassVar[int]
    controller_id: str
    version: str
    heartbeat_interval: _duration_pb2.Duration
    lease_duration: _duration_pb2.Duration
    idle_heartbeat_interval: _duration_pb2.Duration
    strict: bool
    takes_command_ended: bool
    def __init__(self, controller_id: _Optional[str] = ..., version: _Optional[str] = ..., heartbeat_interval: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., lease_duration: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., idle_heartbeat_interval: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., strict: _Optional[bool] = ..., takes_command_ended: _Optional[bool] = ...) -> None: ...

class Assign(_message.Message):
    __slots__ = ("fence", "instance_name", "action_digest", "timeout", "attempt", "reserved", "action", "command")
    FENCE_FIELD_NUMBER: _ClassVar[int]
    INSTANCE_NAME_FIELD_NUMBER: _ClassVar[int]
    ACTION_DIGEST_FIELD_NUMBER: _ClassVar[int]
    TIMEOUT_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    RESERVED_FIELD_NUMBER: _ClassVar[int]
    ACTION_FIELD_NUMBER: _ClassVar[int]
    COMMAND_FIELD_NUMBER: _ClassVar[int]
    fence: int
    instance_name: str
    action_digest: _remote_execution_pb2.Digest
    timeout: _duration_pb2.Duration
    attempt: int
    reserved: Amounts
    action: bytes
    command: bytes
    def __init__(self, fence: _Optional[int] = ..., instance_name: _Optional[str] = ..., action_digest: _Optional[_Union[_remote_execution_pb2.Digest, _Mapping]] = ..., timeout: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., attempt: _Optional[int] = ..., reserved: _Optional[_Union[Amounts, _Mapping]] = ..., action: _Optional[bytes] = ..., command: _Optional[bytes] = ...) -> None: ...

class Prefetch(_message.Message):
    __slots__ = ("action_digest",)
    ACTION_DIGEST_FIELD_NUMBER: _ClassVar[int]
    action_digest: _remote_execution_pb2.Digest
    def __init__(self, action_digest: _Optional[_Union[_remote_execution_pb2.Digest, _Mapping]] = ...) -> None: ...

class Cancel(_message.Message):
    __slots__ = ("fence", "reason")
    FENCE_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    fence: int
    reason: str
    def __init__(self, fence: _Optional[int] = ..., reason: _Optional[str] = ...) -> None: ...

class Settled(_message.Message):
    __slots__ = ("fence",)
    FENCE_FIELD_NUMBER: _ClassVar[int]
    fence: int
    def __init__(self, fence: _Optional[int] = ...) -> None: ...

class Drain(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Node(_message.Message):
    __slots__ = ("node_id", "boot_id", "hostname", "version", "slots", "properties", "joined_at", "draining", "state", "cordoned", "last_seen", "running", "clock_skew", "asked_by", "capacity", "used", "node_key", "tier")
    NODE_ID_FIELD_NUMBER: _ClassVar[int]
    BOOT_ID_FIELD_NUMBER: _ClassVar[int]
    HOSTNAME_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    SLOTS_FIELD_NUMBER: _ClassVar[int]
    PROPERTIES_FIELD_NUMBER: _ClassVar[int]
    JOINED_AT_FIELD_NUMBER: _ClassVar[int]
    DRAINING_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    CORDONED_FIELD_NUMBER: _ClassVar[int]
    LAST_SEEN_FIELD_NUMBER: _ClassVar[int]
    RUNNING_FIELD_NUMBER: _ClassVar[int]
    CLOCK_SKEW_FIELD_NUMBER: _ClassVar[int]
    ASKED_BY_FIELD_NUMBER: _ClassVar[int]
    CAPACITY_FIELD_NUMBER: _ClassVar[int]
    USED_FIELD_NUMBER: _ClassVar[int]
    NODE_KEY_FIELD_NUMBER: _ClassVar[int]
    TIER_FIELD_NUMBER: _ClassVar[int]
    node_id: str
    boot_id: str
    hostname: str
    version: str
    slots: int
    properties: _containers.RepeatedCompositeFieldContainer[Property]
    joined_at: _timestamp_pb2.Timestamp
    draining: bool
    state: NodeState
    cordoned: bool
    last_seen: _timestamp_pb2.Timestamp
    running: int
    clock_skew: _duration_pb2.Duration
    asked_by: str
    capacity: Amounts
    used: Amounts
    node_key: str
    tier: str
    def __init__(self, node_id: _Optional[str] = ..., boot_id: _Optional[str] = ..., hostname: _Optional[str] = ..., version: _Optional[str] = ..., slots: _Optional[int] = ..., properties: _Optional[_Iterable[_Union[Property, _Mapping]]] = ..., joined_at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., draining: _Optional[bool] = ..., state: _Optional[_Union[NodeState, str]] = ..., cordoned: _Optional[bool] = ..., last_seen: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., running: _Optional[int] = ..., clock_skew: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., asked_by: _Optional[str] = ..., capacity: _Optional[_Union[Amounts, _Mapping]] = ..., used: _Optional[_Union[Amounts, _Mapping]] = ..., node_key: _Optional[str] = ..., tier: _Optional[str] = ...) -> None: ...

class ListNodesRequest(_message.Message):
    __slots__ = ("include_absent", "page_token")
    INCLUDE_ABSENT_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    include_absent: bool
    page_token: str
    def __init__(self, include_absent: _Optional[bool] = ..., page_token: _Optional[str] = ...) -> None: ...

class ListNodesResponse(_message.Message):
    __slots__ = ("nodes", "next_page_token")
    NODES_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    nodes: _containers.RepeatedCompositeFieldContainer[Node]
    next_page_token: str
    def __init__(self, nodes: _Optional[_Iterable[_Union[Node, _Mapping]]] = ..., next_page_token: _Optional[str] = ...) -> None: ...

class WatchNodesRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class NodeEvent(_message.Message):
    __slots__ = ("node", "left", "complete")
    NODE_FIELD_NUMBER: _ClassVar[int]
    LEFT_FIELD_NUMBER: _ClassVar[int]
    COMPLETE_FIELD_NUMBER: _ClassVar[int]
    node: Node
    left: bool
    complete: bool
    def __init__(self, node: _Optional[_Union[Node, _Mapping]] = ..., left: _Optional[bool] = ..., complete: _Optional[bool] = ...) -> None: ...

class DrainNodeRequest(_message.Message):
    __slots__ = ("node_id",)
    NODE_ID_FIELD_NUMBER: _ClassVar[int]
    node_id: str
    def __init__(self, node_id: _Optional[str] = ...) -> None: ...

class CordonNodeRequest(_message.Message):
    __slots__ = ("node_id", "cordoned")
    NODE_ID_FIELD_NUMBER: _ClassVar[int]
    CORDONED_FIELD_NUMBER: _ClassVar[int]
    node_id: str
    cordoned: bool
    def __init__(self, node_id: _Optional[str] = ..., cordoned: _Optional[bool] = ...) -> None: ...

class RemoveNodeRequest(_message.Message):
    __slots__ = ("node_id",)
    NODE_ID_FIELD_NUMBER: _ClassVar[int]
    node_id: str
    def __init__(self, node_id: _Optional[str] = ...) -> None: ...

class RemoveNodeResponse(_message.Message):
    __slots__ = ("node",)
    NODE_FIELD_NUMBER: _ClassVar[int]
    node: Node
    def __init__(self, node: _Optional[_Union[Node, _Mapping]] = ...) -> None: ...

class AllowNodeRequest(_message.Message):
    __slots__ = ("node_id",)
    NODE_ID_FIELD_NUMBER: _ClassVar[int]
    node_id: str
    def __init__(self, node_id: _Optional[str] = ...) -> None: ...

class AllowNodeResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class SetNodeTierRequest(_message.Message):
    __slots__ = ("node_id", "tier")
    NODE_ID_FIELD_NUMBER: _ClassVar[int]
    TIER_FIELD_NUMBER: _ClassVar[int]
    node_id: str
    tier: str
    def __init__(self, node_id: _Optional[str] = ..., tier: _Optional[str] = ...) -> None: ...

class CreateJoinTokenRequest(_message.Message):
    __slots__ = ("lifetime", "note", "tier")
    LIFETIME_FIELD_NUMBER: _ClassVar[int]
    NOTE_FIELD_NUMBER: _ClassVar[int]
    TIER_FIELD_NUMBER: _ClassVar[int]
    lifetime: _duration_pb2.Duration
    note: str
    tier: str
    def __init__(self, lifetime: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., note: _Optional[str] = ..., tier: _Optional[str] = ...) -> None: ...

class CreateJoinTokenResponse(_message.Message):
    __slots__ = ("token", "secret", "organisation", "controller_key", "term")
    TOKEN_FIELD_NUMBER: _ClassVar[int]
    SECRET_FIELD_NUMBER: _ClassVar[int]
    ORGANISATION_FIELD_NUMBER: _ClassVar[int]
    CONTROLLER_KEY_FIELD_NUMBER: _ClassVar[int]
    TERM_FIELD_NUMBER: _ClassVar[int]
    token: JoinToken
    secret: str
    organisation: str
    controller_key: str
    term: int
    def __init__(self, token: _Optional[_Union[JoinToken, _Mapping]] = ..., secret: _Optional[str] = ..., organisation: _Optional[str] = ..., controller_key: _Optional[str] = ..., term: _Optional[int] = ...) -> None: ...

class JoinToken(_message.Message):
    __slots__ = ("id", "state", "made_at", "expires_at", "made_by", "note", "used_by", "used_at", "tier")
    ID_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    MADE_AT_FIELD_NUMBER: _ClassVar[int]
    EXPIRES_AT_FIELD_NUMBER: _ClassVar[int]
    MADE_BY_FIELD_NUMBER: _ClassVar[int]
    NOTE_FIELD_NUMBER: _ClassVar[int]
    USED_BY_FIELD_NUMBER: _ClassVar[int]
    USED_AT_FIELD_NUMBER: _ClassVar[int]
    TIER_FIELD_NUMBER: _ClassVar[int]
    id: str
    state: JoinTokenState
    made_at: _timestamp_pb2.Timestamp
    expires_at: _timestamp_pb2.Timestamp
    made_by: str
    note: str
    used_by: str
    used_at: _timestamp_pb2.Timestamp
    tier: str
    def __init__(self, id: _Optional[str] = ..., state: _Optional[_Union[JoinTokenState, str]] = ..., made_at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., expires_at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., made_by: _Optional[str] = ..., note: _Optional[str] = ..., used_by: _Optional[str] = ..., used_at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., tier: _Optional[str] = ...) -> None: ...

class ListJoinTokensRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListJoinTokensResponse(_message.Message):
    __slots__ = ("tokens",)
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    tokens: _containers.RepeatedCompositeFieldContainer[JoinToken]
    def __init__(self, tokens: _Optional[_Iterable[_Union[JoinToken, _Mapping]]] = ...) -> None: ...

class RevokeJoinTokenRequest(_message.Message):
    __slots__ = ("id",)
    ID_FIELD_NUMBER: _ClassVar[int]
    id: str
    def __init__(self, id: _Optional[str] = ...) -> None: ...
