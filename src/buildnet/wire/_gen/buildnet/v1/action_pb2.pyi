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
    ACTION_STATE_WAITING: _ClassVar[ActionState]

class MissReason(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    MISS_REASON_UNSPECIFIED: _ClassVar[MissReason]
    MISS_REASON_CACHED: _ClassVar[MissReason]
    MISS_REASON_JOINED: _ClassVar[MissReason]
    MISS_REASON_NOT_CACHEABLE: _ClassVar[MissReason]
    MISS_REASON_LOOKUP_SKIPPED: _ClassVar[MissReason]
    MISS_REASON_FAILED_BEFORE: _ClassVar[MissReason]
    MISS_REASON_NOT_KEPT: _ClassVar[MissReason]
    MISS_REASON_EVICTED: _ClassVar[MissReason]
    MISS_REASON_CHANGED: _ClassVar[MissReason]
    MISS_REASON_NEVER_SEEN: _ClassVar[MissReason]
    MISS_REASON_WRITTEN_AGAIN: _ClassVar[MissReason]

class ActionPart(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    ACTION_PART_UNSPECIFIED: _ClassVar[ActionPart]
    ACTION_PART_INPUT: _ClassVar[ActionPart]
    ACTION_PART_ARGUMENT: _ClassVar[ActionPart]
    ACTION_PART_VARIABLE: _ClassVar[ActionPart]
    ACTION_PART_PROPERTY: _ClassVar[ActionPart]
    ACTION_PART_EFFECT: _ClassVar[ActionPart]
    ACTION_PART_CONSTRAINT: _ClassVar[ActionPart]
    ACTION_PART_OUTPUT: _ClassVar[ActionPart]
    ACTION_PART_WORKING_DIRECTORY: _ClassVar[ActionPart]
    ACTION_PART_TIMEOUT: _ClassVar[ActionPart]
    ACTION_PART_DO_NOT_CACHE: _ClassVar[ActionPart]
    ACTION_PART_SALT: _ClassVar[ActionPart]
    ACTION_PART_OUTPUT_FORMAT: _ClassVar[ActionPart]
    ACTION_PART_ENCODING: _ClassVar[ActionPart]
ACTION_STATE_UNSPECIFIED: ActionState
ACTION_STATE_QUEUED: ActionState
ACTION_STATE_EXECUTING: ActionState
ACTION_STATE_COMPLETED: ActionState
ACTION_STATE_FAILED: ActionState
ACTION_STATE_CANCELLED: ActionState
ACTION_STATE_WAITING: ActionState
MISS_REASON_UNSPECIFIED: MissReason
MISS_REASON_CACHED: MissReason
MISS_REASON_JOINED: MissReason
MISS_REASON_NOT_CACHEABLE: MissReason
MISS_REASON_LOOKUP_SKIPPED: MissReason
MISS_REASON_FAILED_BEFORE: MissReason
MISS_REASON_NOT_KEPT: MissReason
MISS_REASON_EVICTED: MissReason
MISS_REASON_CHANGED: MissReason
MISS_REASON_NEVER_SEEN: MissReason
MISS_REASON_WRITTEN_AGAIN: MissReason
ACTION_PART_UNSPECIFIED: ActionPart
ACTION_PART_INPUT: ActionPart
ACTION_PART_ARGUMENT: ActionPart
ACTION_PART_VARIABLE: ActionPart
ACTION_PART_PROPERTY: ActionPart
ACTION_PART_EFFECT: ActionPart
ACTION_PART_CONSTRAINT: ActionPart
ACTION_PART_OUTPUT: ActionPart
ACTION_PART_WORKING_DIRECTORY: ActionPart
ACTION_PART_TIMEOUT: ActionPart
ACTION_PART_DO_NOT_CACHE: ActionPart
ACTION_PART_SALT: ActionPart
ACTION_PART_OUTPUT_FORMAT: ActionPart
ACTION_PART_ENCODING: ActionPart

class ActionSummary(_message.Message):
    __slots__ = ("id", "action_digest", "instance_name", "state", "worker", "exit_code", "error_code", "submitted_at", "completed_at", "cached", "entry_index", "has_entry", "command_arguments", "target_id", "mnemonic", "message", "graph_id", "graph_name", "invocation_id")
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
    GRAPH_ID_FIELD_NUMBER: _ClassVar[int]
    GRAPH_NAME_FIELD_NUMBER: _ClassVar[int]
    INVOCATION_ID_FIELD_NUMBER: _ClassVar[int]
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
    graph_id: str
    graph_name: str
    invocation_id: str
    def __init__(self, id: _Optional[str] = ..., action_digest: _Optional[_Union[_remote_execution_pb2.Digest, _Mapping]] = ..., instance_name: _Optional[str] = ..., state: _Optional[_Union[ActionState, str]] = ..., worker: _Optional[str] = ..., exit_code: _Optional[int] = ..., error_code: _Optional[str] = ..., submitted_at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., completed_at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., cached: _Optional[bool] = ..., entry_index: _Optional[int] = ..., has_entry: _Optional[bool] = ..., command_arguments: _Optional[_Iterable[str]] = ..., target_id: _Optional[str] = ..., mnemonic: _Optional[str] = ..., message: _Optional[str] = ..., graph_id: _Optional[str] = ..., graph_name: _Optional[str] = ..., invocation_id: _Optional[str] = ...) -> None: ...

class ActionSpec(_message.Message):
    __slots__ = ("inputs", "variables", "pins", "arguments", "working_directory", "outputs", "effects", "resources", "require", "platform", "timeout", "secrets", "do_not_cache", "salt", "priority", "tier")
    class VariablesEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    class PinsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    class EffectsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    class SecretsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    INPUTS_FIELD_NUMBER: _ClassVar[int]
    VARIABLES_FIELD_NUMBER: _ClassVar[int]
    PINS_FIELD_NUMBER: _ClassVar[int]
    ARGUMENTS_FIELD_NUMBER: _ClassVar[int]
    WORKING_DIRECTORY_FIELD_NUMBER: _ClassVar[int]
    OUTPUTS_FIELD_NUMBER: _ClassVar[int]
    EFFECTS_FIELD_NUMBER: _ClassVar[int]
    RESOURCES_FIELD_NUMBER: _ClassVar[int]
    REQUIRE_FIELD_NUMBER: _ClassVar[int]
    PLATFORM_FIELD_NUMBER: _ClassVar[int]
    TIMEOUT_FIELD_NUMBER: _ClassVar[int]
    SECRETS_FIELD_NUMBER: _ClassVar[int]
    DO_NOT_CACHE_FIELD_NUMBER: _ClassVar[int]
    SALT_FIELD_NUMBER: _ClassVar[int]
    PRIORITY_FIELD_NUMBER: _ClassVar[int]
    TIER_FIELD_NUMBER: _ClassVar[int]
    inputs: _containers.RepeatedCompositeFieldContainer[ActionInput]
    variables: _containers.ScalarMap[str, str]
    pins: _containers.ScalarMap[str, str]
    arguments: _containers.RepeatedScalarFieldContainer[str]
    working_directory: str
    outputs: _containers.RepeatedScalarFieldContainer[str]
    effects: _containers.ScalarMap[str, str]
    resources: ActionResources
    require: _containers.RepeatedScalarFieldContainer[str]
    platform: _containers.RepeatedCompositeFieldContainer[_remote_execution_pb2.Platform.Property]
    timeout: _duration_pb2.Duration
    secrets: _containers.ScalarMap[str, str]
    do_not_cache: bool
    salt: bytes
    priority: int
    tier: str
    def __init__(self, inputs: _Optional[_Iterable[_Union[ActionInput, _Mapping]]] = ..., variables: _Optional[_Mapping[str, str]] = ..., pins: _Optional[_Mapping[str, str]] = ..., arguments: _Optional[_Iterable[str]] = ..., working_directory: _Optional[str] = ..., outputs: _Optional[_Iterable[str]] = ..., effects: _Optional[_Mapping[str, str]] = ..., resources: _Optional[_Union[ActionResources, _Mapping]] = ..., require: _Optional[_Iterable[str]] = ..., platform: _Optional[_Iterable[_Union[_remote_execution_pb2.Platform.Property, _Mapping]]] = ..., timeout: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., secrets: _Optional[_Mapping[str, str]] = ..., do_not_cache: _Optional[bool] = ..., salt: _Optional[bytes] = ..., priority: _Optional[int] = ..., tier: _Optional[str] = ...) -> None: ...

class ActionInput(_message.Message):
    __slots__ = ("path", "tree", "file", "output")
    PATH_FIELD_NUMBER: _ClassVar[int]
    TREE_FIELD_NUMBER: _ClassVar[int]
    FILE_FIELD_NUMBER: _ClassVar[int]
    OUTPUT_FIELD_NUMBER: _ClassVar[int]
    path: str
    tree: _remote_execution_pb2.Digest
    file: ActionFile
    output: ActionOutput
    def __init__(self, path: _Optional[str] = ..., tree: _Optional[_Union[_remote_execution_pb2.Digest, _Mapping]] = ..., file: _Optional[_Union[ActionFile, _Mapping]] = ..., output: _Optional[_Union[ActionOutput, _Mapping]] = ...) -> None: ...

class ActionFile(_message.Message):
    __slots__ = ("digest", "is_executable")
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    IS_EXECUTABLE_FIELD_NUMBER: _ClassVar[int]
    digest: _remote_execution_pb2.Digest
    is_executable: bool
    def __init__(self, digest: _Optional[_Union[_remote_execution_pb2.Digest, _Mapping]] = ..., is_executable: _Optional[bool] = ...) -> None: ...

class ActionOutput(_message.Message):
    __slots__ = ("action", "path")
    ACTION_FIELD_NUMBER: _ClassVar[int]
    PATH_FIELD_NUMBER: _ClassVar[int]
    action: str
    path: str
    def __init__(self, action: _Optional[str] = ..., path: _Optional[str] = ...) -> None: ...

class ActionResources(_message.Message):
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

class SubmitActionRequest(_message.Message):
    __slots__ = ("client_id", "instance_name", "spec", "skip_cache_lookup")
    CLIENT_ID_FIELD_NUMBER: _ClassVar[int]
    INSTANCE_NAME_FIELD_NUMBER: _ClassVar[int]
    SPEC_FIELD_NUMBER: _ClassVar[int]
    SKIP_CACHE_LOOKUP_FIELD_NUMBER: _ClassVar[int]
    client_id: str
    instance_name: str
    spec: ActionSpec
    skip_cache_lookup: bool
    def __init__(self, client_id: _Optional[str] = ..., instance_name: _Optional[str] = ..., spec: _Optional[_Union[ActionSpec, _Mapping]] = ..., skip_cache_lookup: _Optional[bool] = ...) -> None: ...

class SubmitActionsRequest(_message.Message):
    __slots__ = ("client_id", "instance_name", "actions", "skip_cache_lookup")
    CLIENT_ID_FIELD_NUMBER: _ClassVar[int]
    INSTANCE_NAME_FIELD_NUMBER: _ClassVar[int]
    ACTIONS_FIELD_NUMBER: _ClassVar[int]
    SKIP_CACHE_LOOKUP_FIELD_NUMBER: _ClassVar[int]
    client_id: str
    instance_name: str
    actions: _containers.RepeatedCompositeFieldContainer[NamedAction]
    skip_cache_lookup: bool
    def __init__(self, client_id: _Optional[str] = ..., instance_name: _Optional[str] = ..., actions: _Optional[_Iterable[_Union[NamedAction, _Mapping]]] = ..., skip_cache_lookup: _Optional[bool] = ...) -> None: ...

class NamedAction(_message.Message):
    __slots__ = ("name", "spec")
    NAME_FIELD_NUMBER: _ClassVar[int]
    SPEC_FIELD_NUMBER: _ClassVar[int]
    name: str
    spec: ActionSpec
    def __init__(self, name: _Optional[str] = ..., spec: _Optional[_Union[ActionSpec, _Mapping]] = ...) -> None: ...

class SubmitActionsResponse(_message.Message):
    __slots__ = ("graph_id", "actions")
    GRAPH_ID_FIELD_NUMBER: _ClassVar[int]
    ACTIONS_FIELD_NUMBER: _ClassVar[int]
    graph_id: str
    actions: _containers.RepeatedCompositeFieldContainer[SubmittedAction]
    def __init__(self, graph_id: _Optional[str] = ..., actions: _Optional[_Iterable[_Union[SubmittedAction, _Mapping]]] = ...) -> None: ...

class SubmittedAction(_message.Message):
    __slots__ = ("name", "id")
    NAME_FIELD_NUMBER: _ClassVar[int]
    ID_FIELD_NUMBER: _ClassVar[int]
    name: str
    id: str
    def __init__(self, name: _Optional[str] = ..., id: _Optional[str] = ...) -> None: ...

class ActionFilter(_message.Message):
    __slots__ = ("states", "instance_name", "filter_instance_name", "worker", "mnemonic", "target_id", "invocation_id", "graph_id", "submitted_since", "submitted_before")
    STATES_FIELD_NUMBER: _ClassVar[int]
    INSTANCE_NAME_FIELD_NUMBER: _ClassVar[int]
    FILTER_INSTANCE_NAME_FIELD_NUMBER: _ClassVar[int]
    WORKER_FIELD_NUMBER: _ClassVar[int]
    MNEMONIC_FIELD_NUMBER: _ClassVar[int]
    TARGET_ID_FIELD_NUMBER: _ClassVar[int]
    INVOCATION_ID_FIELD_NUMBER: _ClassVar[int]
    GRAPH_ID_FIELD_NUMBER: _ClassVar[int]
    SUBMITTED_SINCE_FIELD_NUMBER: _ClassVar[int]
    SUBMITTED_BEFORE_FIELD_NUMBER: _ClassVar[int]
    states: _containers.RepeatedScalarFieldContainer[ActionState]
    instance_name: str
    filter_instance_name: bool
    worker: str
    mnemonic: str
    target_id: str
    invocation_id: str
    graph_id: str
    submitted_since: _timestamp_pb2.Timestamp
    submitted_before: _timestamp_pb2.Timestamp
    def __init__(self, states: _Optional[_Iterable[_Union[ActionState, str]]] = ..., instance_name: _Optional[str] = ..., filter_instance_name: _Optional[bool] = ..., worker: _Optional[str] = ..., mnemonic: _Optional[str] = ..., target_id: _Optional[str] = ..., invocation_id: _Optional[str] = ..., graph_id: _Optional[str] = ..., submitted_since: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., submitted_before: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ...) -> None: ...

class GetResultRequest(_message.Message):
    __slots__ = ("id",)
    ID_FIELD_NUMBER: _ClassVar[int]
    id: str
    def __init__(self, id: _Optional[str] = ...) -> None: ...

class ActionEvent(_message.Message):
    __slots__ = ("action", "complete")
    ACTION_FIELD_NUMBER: _ClassVar[int]
    COMPLETE_FIELD_NUMBER: _ClassVar[int]
    action: ActionSummary
    complete: bool
    def __init__(self, action: _Optional[_Union[ActionSummary, _Mapping]] = ..., complete: _Optional[bool] = ...) -> None: ...

class ListActionsRequest(_message.Message):
    __slots__ = ("page_size", "page_token", "filter")
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    FILTER_FIELD_NUMBER: _ClassVar[int]
    page_size: int
    page_token: str
    filter: ActionFilter
    def __init__(self, page_size: _Optional[int] = ..., page_token: _Optional[str] = ..., filter: _Optional[_Union[ActionFilter, _Mapping]] = ...) -> None: ...

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
    __slots__ = ("filter",)
    FILTER_FIELD_NUMBER: _ClassVar[int]
    filter: ActionFilter
    def __init__(self, filter: _Optional[_Union[ActionFilter, _Mapping]] = ...) -> None: ...

class StreamLogsRequest(_message.Message):
    __slots__ = ("id", "action_digest", "follow", "streams", "stdout_offset", "stderr_offset", "fence")
    ID_FIELD_NUMBER: _ClassVar[int]
    ACTION_DIGEST_FIELD_NUMBER: _ClassVar[int]
    FOLLOW_FIELD_NUMBER: _ClassVar[int]
    STREAMS_FIELD_NUMBER: _ClassVar[int]
    STDOUT_OFFSET_FIELD_NUMBER: _ClassVar[int]
    STDERR_OFFSET_FIELD_NUMBER: _ClassVar[int]
    FENCE_FIELD_NUMBER: _ClassVar[int]
    id: str
    action_digest: _remote_execution_pb2.Digest
    follow: bool
    streams: _containers.RepeatedScalarFieldContainer[_fleet_pb2.LogStream]
    stdout_offset: int
    stderr_offset: int
    fence: int
    def __init__(self, id: _Optional[str] = ..., action_digest: _Optional[_Union[_remote_execution_pb2.Digest, _Mapping]] = ..., follow: _Optional[bool] = ..., streams: _Optional[_Iterable[_Union[_fleet_pb2.LogStream, str]]] = ..., stdout_offset: _Optional[int] = ..., stderr_offset: _Optional[int] = ..., fence: _Optional[int] = ...) -> None: ...

class LogRecord(_message.Message):
    __slots__ = ("stream", "offset", "data", "gap", "printed_at", "fence")
    STREAM_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    GAP_FIELD_NUMBER: _ClassVar[int]
    PRINTED_AT_FIELD_NUMBER: _ClassVar[int]
    FENCE_FIELD_NUMBER: _ClassVar[int]
    stream: _fleet_pb2.LogStream
    offset: int
    data: bytes
    gap: bool
    printed_at: _timestamp_pb2.Timestamp
    fence: int
    def __init__(self, stream: _Optional[_Union[_fleet_pb2.LogStream, str]] = ..., offset: _Optional[int] = ..., data: _Optional[bytes] = ..., gap: _Optional[bool] = ..., printed_at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., fence: _Optional[int] = ...) -> None: ...

class CancelActionRequest(_message.Message):
    __slots__ = ("id", "graph_id", "invocation_id")
    ID_FIELD_NUMBER: _ClassVar[int]
    GRAPH_ID_FIELD_NUMBER: _ClassVar[int]
    INVOCATION_ID_FIELD_NUMBER: _ClassVar[int]
    id: str
    graph_id: str
    invocation_id: str
    def __init__(self, id: _Optional[str] = ..., graph_id: _Optional[str] = ..., invocation_id: _Optional[str] = ...) -> None: ...

class CancelActionResponse(_message.Message):
    __slots__ = ("cancelled_count",)
    CANCELLED_COUNT_FIELD_NUMBER: _ClassVar[int]
    cancelled_count: int
    def __init__(self, cancelled_count: _Optional[int] = ...) -> None: ...

class PastOutput(_message.Message):
    __slots__ = ("path", "kind", "text")
    PATH_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    path: str
    kind: str
    text: str
    def __init__(self, path: _Optional[str] = ..., kind: _Optional[str] = ..., text: _Optional[str] = ...) -> None: ...

class PastAction(_message.Message):
    __slots__ = ("summary", "invocation_id", "tool", "caller", "command_digest", "input_root_digest", "queued", "staged", "ran", "uploaded", "outputs", "output_count", "lookup_skipped", "kept")
    SUMMARY_FIELD_NUMBER: _ClassVar[int]
    INVOCATION_ID_FIELD_NUMBER: _ClassVar[int]
    TOOL_FIELD_NUMBER: _ClassVar[int]
    CALLER_FIELD_NUMBER: _ClassVar[int]
    COMMAND_DIGEST_FIELD_NUMBER: _ClassVar[int]
    INPUT_ROOT_DIGEST_FIELD_NUMBER: _ClassVar[int]
    QUEUED_FIELD_NUMBER: _ClassVar[int]
    STAGED_FIELD_NUMBER: _ClassVar[int]
    RAN_FIELD_NUMBER: _ClassVar[int]
    UPLOADED_FIELD_NUMBER: _ClassVar[int]
    OUTPUTS_FIELD_NUMBER: _ClassVar[int]
    OUTPUT_COUNT_FIELD_NUMBER: _ClassVar[int]
    LOOKUP_SKIPPED_FIELD_NUMBER: _ClassVar[int]
    KEPT_FIELD_NUMBER: _ClassVar[int]
    summary: ActionSummary
    invocation_id: str
    tool: str
    caller: str
    command_digest: _remote_execution_pb2.Digest
    input_root_digest: _remote_execution_pb2.Digest
    queued: _duration_pb2.Duration
    staged: _duration_pb2.Duration
    ran: _duration_pb2.Duration
    uploaded: _duration_pb2.Duration
    outputs: _containers.RepeatedCompositeFieldContainer[PastOutput]
    output_count: int
    lookup_skipped: bool
    kept: bool
    def __init__(self, summary: _Optional[_Union[ActionSummary, _Mapping]] = ..., invocation_id: _Optional[str] = ..., tool: _Optional[str] = ..., caller: _Optional[str] = ..., command_digest: _Optional[_Union[_remote_execution_pb2.Digest, _Mapping]] = ..., input_root_digest: _Optional[_Union[_remote_execution_pb2.Digest, _Mapping]] = ..., queued: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., staged: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., ran: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., uploaded: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., outputs: _Optional[_Iterable[_Union[PastOutput, _Mapping]]] = ..., output_count: _Optional[int] = ..., lookup_skipped: _Optional[bool] = ..., kept: _Optional[bool] = ...) -> None: ...

class ActionChange(_message.Message):
    __slots__ = ("part", "name", "before", "after", "note")
    PART_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    BEFORE_FIELD_NUMBER: _ClassVar[int]
    AFTER_FIELD_NUMBER: _ClassVar[int]
    NOTE_FIELD_NUMBER: _ClassVar[int]
    part: ActionPart
    name: str
    before: str
    after: str
    note: str
    def __init__(self, part: _Optional[_Union[ActionPart, str]] = ..., name: _Optional[str] = ..., before: _Optional[str] = ..., after: _Optional[str] = ..., note: _Optional[str] = ...) -> None: ...

class ExplainActionRequest(_message.Message):
    __slots__ = ("id", "instance_name")
    ID_FIELD_NUMBER: _ClassVar[int]
    INSTANCE_NAME_FIELD_NUMBER: _ClassVar[int]
    id: str
    instance_name: str
    def __init__(self, id: _Optional[str] = ..., instance_name: _Optional[str] = ...) -> None: ...

class ExplainActionResponse(_message.Message):
    __slots__ = ("action", "reason", "message", "relative", "relation", "changes", "left_out", "since")
    ACTION_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    RELATIVE_FIELD_NUMBER: _ClassVar[int]
    RELATION_FIELD_NUMBER: _ClassVar[int]
    CHANGES_FIELD_NUMBER: _ClassVar[int]
    LEFT_OUT_FIELD_NUMBER: _ClassVar[int]
    SINCE_FIELD_NUMBER: _ClassVar[int]
    action: PastAction
    reason: MissReason
    message: str
    relative: PastAction
    relation: str
    changes: _containers.RepeatedCompositeFieldContainer[ActionChange]
    left_out: int
    since: _timestamp_pb2.Timestamp
    def __init__(self, action: _Optional[_Union[PastAction, _Mapping]] = ..., reason: _Optional[_Union[MissReason, str]] = ..., message: _Optional[str] = ..., relative: _Optional[_Union[PastAction, _Mapping]] = ..., relation: _Optional[str] = ..., changes: _Optional[_Iterable[_Union[ActionChange, _Mapping]]] = ..., left_out: _Optional[int] = ..., since: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ...) -> None: ...

class GetActionHistoryRequest(_message.Message):
    __slots__ = ("name", "page_size")
    NAME_FIELD_NUMBER: _ClassVar[int]
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    name: str
    page_size: int
    def __init__(self, name: _Optional[str] = ..., page_size: _Optional[int] = ...) -> None: ...

class GetActionHistoryResponse(_message.Message):
    __slots__ = ("actions", "since")
    ACTIONS_FIELD_NUMBER: _ClassVar[int]
    SINCE_FIELD_NUMBER: _ClassVar[int]
    actions: _containers.RepeatedCompositeFieldContainer[PastAction]
    since: _timestamp_pb2.Timestamp
    def __init__(self, actions: _Optional[_Iterable[_Union[PastAction, _Mapping]]] = ..., since: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ...) -> None: ...

class DiffActionsRequest(_message.Message):
    __slots__ = ("before", "after")
    BEFORE_FIELD_NUMBER: _ClassVar[int]
    AFTER_FIELD_NUMBER: _ClassVar[int]
    before: str
    after: str
    def __init__(self, before: _Optional[str] = ..., after: _Optional[str] = ...) -> None: ...

class DiffActionsResponse(_message.Message):
    __slots__ = ("before_digest", "after_digest", "changes", "left_out")
    BEFORE_DIGEST_FIELD_NUMBER: _ClassVar[int]
    AFTER_DIGEST_FIELD_NUMBER: _ClassVar[int]
    CHANGES_FIELD_NUMBER: _ClassVar[int]
    LEFT_OUT_FIELD_NUMBER: _ClassVar[int]
    before_digest: _remote_execution_pb2.Digest
    after_digest: _remote_execution_pb2.Digest
    changes: _containers.RepeatedCompositeFieldContainer[ActionChange]
    left_out: int
    def __init__(self, before_digest: _Optional[_Union[_remote_execution_pb2.Digest, _Mapping]] = ..., after_digest: _Optional[_Union[_remote_execution_pb2.Digest, _Mapping]] = ..., changes: _Optional[_Iterable[_Union[ActionChange, _Mapping]]] = ..., left_out: _Optional[int] = ...) -> None: ...

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
    __slots__ = ("isolation", "effects", "undeclared_writes", "undeclared_write_count", "undeclared_writes_partial", "limits", "limit_hit")
    ISOLATION_FIELD_NUMBER: _ClassVar[int]
    EFFECTS_FIELD_NUMBER: _ClassVar[int]
    UNDECLARED_WRITES_FIELD_NUMBER: _ClassVar[int]
    UNDECLARED_WRITE_COUNT_FIELD_NUMBER: _ClassVar[int]
    UNDECLARED_WRITES_PARTIAL_FIELD_NUMBER: _ClassVar[int]
    LIMITS_FIELD_NUMBER: _ClassVar[int]
    LIMIT_HIT_FIELD_NUMBER: _ClassVar[int]
    isolation: str
    effects: _containers.RepeatedCompositeFieldContainer[EffectGrant]
    undeclared_writes: _containers.RepeatedScalarFieldContainer[str]
    undeclared_write_count: int
    undeclared_writes_partial: bool
    limits: _containers.RepeatedCompositeFieldContainer[LimitKept]
    limit_hit: str
    def __init__(self, isolation: _Optional[str] = ..., effects: _Optional[_Iterable[_Union[EffectGrant, _Mapping]]] = ..., undeclared_writes: _Optional[_Iterable[str]] = ..., undeclared_write_count: _Optional[int] = ..., undeclared_writes_partial: _Optional[bool] = ..., limits: _Optional[_Iterable[_Union[LimitKept, _Mapping]]] = ..., limit_hit: _Optional[str] = ...) -> None: ...

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
