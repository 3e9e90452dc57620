import datetime

from buildnet.wire._gen.google.protobuf import timestamp_pb2 as _timestamp_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class ListRecordsRequest(_message.Message):
    __slots__ = ("kind", "prefix", "limit")
    KIND_FIELD_NUMBER: _ClassVar[int]
    PREFIX_FIELD_NUMBER: _ClassVar[int]
    LIMIT_FIELD_NUMBER: _ClassVar[int]
    kind: str
    prefix: str
    limit: int
    def __init__(self, kind: _Optional[str] = ..., prefix: _Optional[str] = ..., limit: _Optional[int] = ...) -> None: ...

class ListRecordsResponse(_message.Message):
    __slots__ = ("records",)
    RECORDS_FIELD_NUMBER: _ClassVar[int]
    records: _containers.RepeatedCompositeFieldContainer[CacheRecord]
    def __init__(self, records: _Optional[_Iterable[_Union[CacheRecord, _Mapping]]] = ...) -> None: ...

class CacheRecord(_message.Message):
    __slots__ = ("kind", "name", "size_bytes", "stored_bytes")
    KIND_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    SIZE_BYTES_FIELD_NUMBER: _ClassVar[int]
    STORED_BYTES_FIELD_NUMBER: _ClassVar[int]
    kind: str
    name: str
    size_bytes: int
    stored_bytes: int
    def __init__(self, kind: _Optional[str] = ..., name: _Optional[str] = ..., size_bytes: _Optional[int] = ..., stored_bytes: _Optional[int] = ...) -> None: ...

class StatBlobRequest(_message.Message):
    __slots__ = ("digest",)
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    digest: str
    def __init__(self, digest: _Optional[str] = ...) -> None: ...

class BlobFacts(_message.Message):
    __slots__ = ("digest", "stored_bytes", "stored_as", "segment", "segments_before", "usage", "used_at", "kept_until", "held_by")
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    STORED_BYTES_FIELD_NUMBER: _ClassVar[int]
    STORED_AS_FIELD_NUMBER: _ClassVar[int]
    SEGMENT_FIELD_NUMBER: _ClassVar[int]
    SEGMENTS_BEFORE_FIELD_NUMBER: _ClassVar[int]
    USAGE_FIELD_NUMBER: _ClassVar[int]
    USED_AT_FIELD_NUMBER: _ClassVar[int]
    KEPT_UNTIL_FIELD_NUMBER: _ClassVar[int]
    HELD_BY_FIELD_NUMBER: _ClassVar[int]
    digest: str
    stored_bytes: int
    stored_as: str
    segment: int
    segments_before: int
    usage: str
    used_at: _timestamp_pb2.Timestamp
    kept_until: _timestamp_pb2.Timestamp
    held_by: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, digest: _Optional[str] = ..., stored_bytes: _Optional[int] = ..., stored_as: _Optional[str] = ..., segment: _Optional[int] = ..., segments_before: _Optional[int] = ..., usage: _Optional[str] = ..., used_at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., kept_until: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., held_by: _Optional[_Iterable[str]] = ...) -> None: ...

class WhyRequest(_message.Message):
    __slots__ = ("digest", "looked_max")
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    LOOKED_MAX_FIELD_NUMBER: _ClassVar[int]
    digest: str
    looked_max: int
    def __init__(self, digest: _Optional[str] = ..., looked_max: _Optional[int] = ...) -> None: ...

class WhyResponse(_message.Message):
    __slots__ = ("facts", "referrers", "looked", "looked_at_all", "kept")
    FACTS_FIELD_NUMBER: _ClassVar[int]
    REFERRERS_FIELD_NUMBER: _ClassVar[int]
    LOOKED_FIELD_NUMBER: _ClassVar[int]
    LOOKED_AT_ALL_FIELD_NUMBER: _ClassVar[int]
    KEPT_FIELD_NUMBER: _ClassVar[int]
    facts: BlobFacts
    referrers: _containers.RepeatedScalarFieldContainer[str]
    looked: int
    looked_at_all: bool
    kept: bool
    def __init__(self, facts: _Optional[_Union[BlobFacts, _Mapping]] = ..., referrers: _Optional[_Iterable[str]] = ..., looked: _Optional[int] = ..., looked_at_all: _Optional[bool] = ..., kept: _Optional[bool] = ...) -> None: ...

class UsageRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class UsageResponse(_message.Message):
    __slots__ = ("records", "done", "groups", "segments", "segment_bytes", "live_bytes", "large_files", "large_bytes", "used_bytes", "free_bytes", "records_total")
    RECORDS_FIELD_NUMBER: _ClassVar[int]
    DONE_FIELD_NUMBER: _ClassVar[int]
    GROUPS_FIELD_NUMBER: _ClassVar[int]
    SEGMENTS_FIELD_NUMBER: _ClassVar[int]
    SEGMENT_BYTES_FIELD_NUMBER: _ClassVar[int]
    LIVE_BYTES_FIELD_NUMBER: _ClassVar[int]
    LARGE_FILES_FIELD_NUMBER: _ClassVar[int]
    LARGE_BYTES_FIELD_NUMBER: _ClassVar[int]
    USED_BYTES_FIELD_NUMBER: _ClassVar[int]
    FREE_BYTES_FIELD_NUMBER: _ClassVar[int]
    RECORDS_TOTAL_FIELD_NUMBER: _ClassVar[int]
    records: int
    done: bool
    groups: _containers.RepeatedCompositeFieldContainer[UsageGroup]
    segments: int
    segment_bytes: int
    live_bytes: int
    large_files: int
    large_bytes: int
    used_bytes: int
    free_bytes: int
    records_total: int
    def __init__(self, records: _Optional[int] = ..., done: _Optional[bool] = ..., groups: _Optional[_Iterable[_Union[UsageGroup, _Mapping]]] = ..., segments: _Optional[int] = ..., segment_bytes: _Optional[int] = ..., live_bytes: _Optional[int] = ..., large_files: _Optional[int] = ..., large_bytes: _Optional[int] = ..., used_bytes: _Optional[int] = ..., free_bytes: _Optional[int] = ..., records_total: _Optional[int] = ...) -> None: ...

class UsageGroup(_message.Message):
    __slots__ = ("kind", "of", "count", "size_bytes", "stored_bytes")
    KIND_FIELD_NUMBER: _ClassVar[int]
    OF_FIELD_NUMBER: _ClassVar[int]
    COUNT_FIELD_NUMBER: _ClassVar[int]
    SIZE_BYTES_FIELD_NUMBER: _ClassVar[int]
    STORED_BYTES_FIELD_NUMBER: _ClassVar[int]
    kind: str
    of: str
    count: int
    size_bytes: int
    stored_bytes: int
    def __init__(self, kind: _Optional[str] = ..., of: _Optional[str] = ..., count: _Optional[int] = ..., size_bytes: _Optional[int] = ..., stored_bytes: _Optional[int] = ...) -> None: ...

class CollectRequest(_message.Message):
    __slots__ = ("size_bytes", "dry_run")
    SIZE_BYTES_FIELD_NUMBER: _ClassVar[int]
    DRY_RUN_FIELD_NUMBER: _ClassVar[int]
    size_bytes: int
    dry_run: bool
    def __init__(self, size_bytes: _Optional[int] = ..., dry_run: _Optional[bool] = ...) -> None: ...

class CollectResponse(_message.Message):
    __slots__ = ("done", "used_bytes", "records", "bytes", "moved", "compacted_bytes")
    DONE_FIELD_NUMBER: _ClassVar[int]
    USED_BYTES_FIELD_NUMBER: _ClassVar[int]
    RECORDS_FIELD_NUMBER: _ClassVar[int]
    BYTES_FIELD_NUMBER: _ClassVar[int]
    MOVED_FIELD_NUMBER: _ClassVar[int]
    COMPACTED_BYTES_FIELD_NUMBER: _ClassVar[int]
    done: bool
    used_bytes: int
    records: int
    bytes: int
    moved: int
    compacted_bytes: int
    def __init__(self, done: _Optional[bool] = ..., used_bytes: _Optional[int] = ..., records: _Optional[int] = ..., bytes: _Optional[int] = ..., moved: _Optional[int] = ..., compacted_bytes: _Optional[int] = ...) -> None: ...

class ScrubRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ScrubResponse(_message.Message):
    __slots__ = ("done", "records", "bytes", "damaged_count", "damaged", "orphans", "records_total")
    DONE_FIELD_NUMBER: _ClassVar[int]
    RECORDS_FIELD_NUMBER: _ClassVar[int]
    BYTES_FIELD_NUMBER: _ClassVar[int]
    DAMAGED_COUNT_FIELD_NUMBER: _ClassVar[int]
    DAMAGED_FIELD_NUMBER: _ClassVar[int]
    ORPHANS_FIELD_NUMBER: _ClassVar[int]
    RECORDS_TOTAL_FIELD_NUMBER: _ClassVar[int]
    done: bool
    records: int
    bytes: int
    damaged_count: int
    damaged: _containers.RepeatedScalarFieldContainer[str]
    orphans: int
    records_total: int
    def __init__(self, done: _Optional[bool] = ..., records: _Optional[int] = ..., bytes: _Optional[int] = ..., damaged_count: _Optional[int] = ..., damaged: _Optional[_Iterable[str]] = ..., orphans: _Optional[int] = ..., records_total: _Optional[int] = ...) -> None: ...
