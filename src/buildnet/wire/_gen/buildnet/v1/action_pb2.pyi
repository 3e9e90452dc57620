import datetime

from buildnet.wire._gen.build.bazel.remote.execution.v2 import remote_execution_pb2 as _remote_execution_pb2
from buildnet.wire._gen.buildnet.v1 import fleet_pb2 as _fleet_pb2
from buildnet.wire._gen.google.protobuf import duration_pb2 as _duration_pb2
from buildnet.wire._gen.google.protobuf import timestamp_pb2 as _timestamp_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class ActionState(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    ACTION_STATE_UNSPECIFIED: _ClassVar[ActionState]
    ACTION_STATE_QUEUED: _ClassVar[ActionState]
    ACTION_STATE_EXECUTING: _ClassVar[ActionState]
    ACTION_STATE_COMPLETED: _ClassVar[ActionState]
    ACTION_STATE_FAILED: _ClassVar[ActionState]
    ACTION_STATE_CANCELLED: _ClassVar[ActionState]
ACTION_STATE_UNSPECIFIED: ActionState
ACTION_STATE_QUEUED: ActionState
ACTION_STATE_EXECUTING: ActionState
ACTION_STATE_COMPLETED: ActionState
ACTION_STATE_FAILED: ActionState
ACTION_STATE_CANCELLED: ActionState

class ActionSummary(_message.Message):
    __slots__ = ("id", "action_digest", "instance_name", "state", "worker", "exit_code", "error_code", "submitted_at", "completed_at", "cached", "entry_index", "has_entry", "command_arguments", "target_id", "mnemonic", "message")
    ID_FIELD_NUMBER: _ClassVar[int]
    ACTION_DIGEST_FIELD_NUMBER: _ClassVar[int]
    INSTANCE_NAME_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    WORKER_FIELD_NUMBER: _ClassVar[int]
    EXIT_CODE_FIELD_NUMBER: _ClassVar[int]
    ERROR_CODE_FIELD_NUMBER: _ClassVar[int]
    SUBMITTED_AT_FIELD_NUMBER: _ClassVar[int]
    COMPLETED_AT_FIELD_NUMBER: _ClassVar[int]
    CACHED_FIELD_NUMBER: _ClassVar[int]
    ENTRY_INDEX_FIELD_NUMBER: _ClassVar[int]
    HAS_ENTRY_FIELD_NUMBER: _ClassVar[int]
    COMMAND_ARGUMENTS_FIELD_NUMBER: _ClassVar[int]
    TARGET_ID_FIELD_NUMBER: _ClassVar[int]
    MNEMONIC_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    id: str
    action_digest: _remote_execution_pb2.Digest
    instance_name: str
    state: ActionState
    worker: str
    exit_code: int
    error_code: str
    submitted_at: _timestamp_pb2.Timestamp
    completed_at: _timestamp_pb2.Timestamp
    cached: bool
    entry_index: int
    has_entry: bool
    command_arguments: _containers.RepeatedScalarFieldContainer[str]
    target_id: str
    mnemonic: str
    message: str
    def __init__(self, id: _Optional[str] = ..., action_digest: _Optional[_Union[_remote_execution_pb2.Digest, _Mapping]] = ..., instance_name: _Optional[str] = ..., state: _Optional[_Union[ActionState, str]] = ..., worker: _Optional[str] = ..., exit_code: _Optional[int] = ..., error_code: _Optional[str] = ..., submitted_at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., completed_at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., cached: _Optional[bool] = ..., entry_index: _Optional[int] = ..., has_entry: _Optional[bool] = ..., command_arguments: _Optional[_Iterable[str]] = ..., target_id: _Optional[str] = ..., mnemonic: _Optional[str] = ..., message: _Optional[str] = ...) -> None: ...

class SubmitActionRequest(_message.Message):
    __slots__ = ("client_id", "instance_name")
    CLIENT_ID_FIELD_NUMBER: _ClassVar[int]
    INSTANCE_NAME_FIELD_NUMBER: _ClassVar[int]
    client_id: str
    instance_name: str
    def __init__(self, client_id: _Optional[str] = ..., instance_name: _Optional[str] = ...) -> None: ...

class ListActionsRequest(_message.Message):
    __slots__ = ("page_size", "page_token", "states", "instance_name", "filter_instance_name")
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    STATES_FIELD_NUMBER: _ClassVar[int]
    INSTANCE_NAME_FIELD_NUMBER: _ClassVar[int]
    FILTER_INSTANCE_NAME_FIELD_NUMBER: _ClassVar[int]
    page_size: int
    page_token: str
    states: _containers.RepeatedScalarFieldContainer[ActionState]
    instance_name: str
    filter_instance_name: bool
    def __init__(self, page_size: _Optional[int] = ..., page_token: _Optional[str] = ..., states: _Optional[_Iterable[_Union[ActionState, str]]] = ..., instance_name: _Optional[str] = ..., filter_instance_name: _Optional[bool] = ...) -> None: ...

class ListActionsResponse(_message.Message):
    __slots__ = ("actions", "next_page_token")
    ACTIONS_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    actions: _containers.RepeatedCompositeFieldContainer[ActionSummary]
    next_page_token: str
    def __init__(self, actions: _Optional[_Iterable[_Union[ActionSummary, _Mapping]]] = ..., next_page_token: _Optional[str] = ...) -> None: ...

class GetActionRequest(_message.Message):
    __slots__ = ("id",)
    ID_FIELD_NUMBER: _ClassVar[int]
    id: str
    def __init__(self, id: _Optional[str] = ...) -> None: ...

class WatchActionsRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class StreamLogsRequest(_message.Message):
    __slots__ = ("id", "action_digest", "follow")
    ID_FIELD_NUMBER: _ClassVar[int]
    ACTION_DIGEST_FIELD_NUMBER: _ClassVar[int]
    FOLLOW_FIELD_NUMBER: _ClassVar[int]
    id: str
    action_digest: _remote_execution_pb2.Digest
    follow: bool
    def __init__(self, id: _Optional[str] = ..., action_digest: _Optional[_Union[_remote_execution_pb2.Digest, _Mapping]] = ..., follow: _Optional[bool] = ...) -> None: ...

class LogRecord(_message.Message):
    __slots__ = ("stream", "offset", "data", "gap")
    STREAM_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    GAP_FIELD_NUMBER: _ClassVar[int]
    stream: _fleet_pb2.LogStream
    offset: int
    data: bytes
    gap: bool
    def __init__(self, stream: _Optional[_Union[_fleet_pb2.LogStream, str]] = ..., offset: _Optional[int] = ..., data: _Optional[bytes] = ..., gap: _Optional[bool] = ...) -> None: ...

class CancelActionRequest(_message.Message):
    __slots__ = ("id",)
    ID_FIELD_NUMBER: _ClassVar[int]
    id: str
    def __init__(self, id: _Optional[str] = ...) -> None: ...

class CancelActionResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ExplainActionRequest(_message.Message):
    __slots__ = ("id",)
    ID_FIELD_NUMBER: _ClassVar[int]
    id: str
    def __init__(self, id: _Optional[str] = ...) -> None: ...

class ExplainActionResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Usage(_message.Message):
    __slots__ = ("user_cpu", "system_cpu", "max_rss_bytes")
    USER_CPU_FIELD_NUMBER: _ClassVar[int]
    SYSTEM_CPU_FIELD_NUMBER: _ClassVar[int]
    MAX_RSS_BYTES_FIELD_NUMBER: _ClassVar[int]
    user_cpu: _duration_pb2.Duration
    system_cpu: _duration_pb2.Duration
    max_rss_bytes: int
    def __init__(self, user_cpu: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., system_cpu: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., max_rss_bytes: _Optional[int] = ...) -> None: ...

class EffectReport(_message.Message):
    __slots__ = ("isolation", "effects", "undeclared_writes", "undeclared_write_count", "undeclared_writes_partial", "limits")
    ISOLATION_FIELD_NUMBER: _ClassVar[int]
    EFFECTS_FIELD_NUMBER: _ClassVar[int]
    UNDECLARED_WRITES_FIELD_NUMBER: _ClassVar[int]
    UNDECLARED_WRITE_COUNT_FIELD_NUMBER: _ClassVar[int]
    UNDECLARED_WRITES_PARTIAL_FIELD_NUMBER: _ClassVar[int]
    LIMITS_FIELD_NUMBER: _ClassVar[int]
    isolation: str
    effects: _containers.RepeatedCompositeFieldContainer[EffectGrant]
    undeclared_writes: _containers.RepeatedScalarFieldContainer[str]
    undeclared_write_count: int
    undeclared_writes_partial: bool
    limits: _containers.RepeatedCompositeFieldContainer[LimitKept]
    def __init__(self, isolation: _Optional[str] = ..., effects: _Optional[_Iterable[_Union[EffectGrant, _Mapping]]] = ..., undeclared_writes: _Optional[_Iterable[str]] = ..., undeclared_write_count: _Optional[int] = ..., undeclared_writes_partial: _Optional[bool] = ..., limits: _Optional[_Iterable[_Union[LimitKept, _Mapping]]] = ...) -> None: ...

class EffectGrant(_message.Message):
    __slots__ = ("name", "level", "enforced")
    NAME_FIELD_NUMBER: _ClassVar[int]
    LEVEL_FIELD_NUMBER: _ClassVar[int]
    ENFORCED_FIELD_NUMBER: _ClassVar[int]
    name: str
    level: str
    enforced: bool
    def __init__(self, name: _Optional[str] = ..., level: _Optional[str] = ..., enforced: _Optional[bool] = ...) -> None: ...

class LimitKept(_message.Message):
    __slots__ = ("name", "by")
    NAME_FIELD_NUMBER: _ClassVar[int]
    BY_FIELD_NUMBER: _ClassVar[int]
    name: str
    by: str
    def __init__(self, name: _Optional[str] = ..., by: _Optional[str] = ...) -> None: ...
