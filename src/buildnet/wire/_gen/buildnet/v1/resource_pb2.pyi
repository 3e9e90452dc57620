from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Packing(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    PACKING_UNSPECIFIED: _ClassVar[Packing]
    PACKING_ZLIB: _ClassVar[Packing]
PACKING_UNSPECIFIED: Packing
PACKING_ZLIB: Packing

class Resource(_message.Message):
    __slots__ = ("node_id", "kind", "name", "version", "attributes")
    NODE_ID_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    ATTRIBUTES_FIELD_NUMBER: _ClassVar[int]
    node_id: str
    kind: str
    name: str
    version: str
    attributes: _containers.RepeatedCompositeFieldContainer[ResourceAttribute]
    def __init__(self, node_id: _Optional[str] = ..., kind: _Optional[str] = ..., name: _Optional[str] = ..., version: _Optional[str] = ..., attributes: _Optional[_Iterable[_Union[ResourceAttribute, _Mapping]]] = ...) -> None: ...

class ResourceAttribute(_message.Message):
    __slots__ = ("name", "number", "text")
    NAME_FIELD_NUMBER: _ClassVar[int]
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    name: str
    number: int
    text: str
    def __init__(self, name: _Optional[str] = ..., number: _Optional[int] = ..., text: _Optional[str] = ...) -> None: ...

class ResourceName(_message.Message):
    __slots__ = ("kind", "name")
    KIND_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    kind: str
    name: str
    def __init__(self, kind: _Optional[str] = ..., name: _Optional[str] = ...) -> None: ...

class Announcement(_message.Message):
    __slots__ = ("body", "packing", "public_key", "signature")
    BODY_FIELD_NUMBER: _ClassVar[int]
    PACKING_FIELD_NUMBER: _ClassVar[int]
    PUBLIC_KEY_FIELD_NUMBER: _ClassVar[int]
    SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    body: bytes
    packing: Packing
    public_key: bytes
    signature: bytes
    def __init__(self, body: _Optional[bytes] = ..., packing: _Optional[_Union[Packing, str]] = ..., public_key: _Optional[bytes] = ..., signature: _Optional[bytes] = ...) -> None: ...

class AnnouncementBody(_message.Message):
    __slots__ = ("node_id", "boot_id", "controller_id", "sequence", "base_sequence", "made_at_unix_ms", "expires_at_unix_ms", "present", "gone", "left_out")
    NODE_ID_FIELD_NUMBER: _ClassVar[int]
    BOOT_ID_FIELD_NUMBER: _ClassVar[int]
    CONTROLLER_ID_FIELD_NUMBER: _ClassVar[int]
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    BASE_SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    MADE_AT_UNIX_MS_FIELD_NUMBER: _ClassVar[int]
    EXPIRES_AT_UNIX_MS_FIELD_NUMBER: _ClassVar[int]
    PRESENT_FIELD_NUMBER: _ClassVar[int]
    GONE_FIELD_NUMBER: _ClassVar[int]
    LEFT_OUT_FIELD_NUMBER: _ClassVar[int]
    node_id: str
    boot_id: str
    controller_id: str
    sequence: int
    base_sequence: int
    made_at_unix_ms: int
    expires_at_unix_ms: int
    present: _containers.RepeatedCompositeFieldContainer[Resource]
    gone: _containers.RepeatedCompositeFieldContainer[ResourceName]
    left_out: int
    def __init__(self, node_id: _Optional[str] = ..., boot_id: _Optional[str] = ..., controller_id: _Optional[str] = ..., sequence: _Optional[int] = ..., base_sequence: _Optional[int] = ..., made_at_unix_ms: _Optional[int] = ..., expires_at_unix_ms: _Optional[int] = ..., present: _Optional[_Iterable[_Union[Resource, _Mapping]]] = ..., gone: _Optional[_Iterable[_Union[ResourceName, _Mapping]]] = ..., left_out: _Optional[int] = ...) -> None: ...

class Announced(_message.Message):
    __slots__ = ("sequence", "error_code", "message")
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    ERROR_CODE_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    sequence: int
    error_code: str
    message: str
    def __init__(self, sequence: _Optional[int] = ..., error_code: _Optional[str] = ..., message: _Optional[str] = ...) -> None: ...

class ListResourcesRequest(_message.Message):
    __slots__ = ("kind", "node_id", "page_size", "page_token")
    KIND_FIELD_NUMBER: _ClassVar[int]
    NODE_ID_FIELD_NUMBER: _ClassVar[int]
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    kind: str
    node_id: str
    page_size: int
    page_token: str
    def __init__(self, kind: _Optional[str] = ..., node_id: _Optional[str] = ..., page_size: _Optional[int] = ..., page_token: _Optional[str] = ...) -> None: ...

class ListResourcesResponse(_message.Message):
    __slots__ = ("resources", "next_page_token")
    RESOURCES_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    resources: _containers.RepeatedCompositeFieldContainer[Resource]
    next_page_token: str
    def __init__(self, resources: _Optional[_Iterable[_Union[Resource, _Mapping]]] = ..., next_page_token: _Optional[str] = ...) -> None: ...

class WatchResourcesRequest(_message.Message):
    __slots__ = ("after_revision", "catalog")
    AFTER_REVISION_FIELD_NUMBER: _ClassVar[int]
    CATALOG_FIELD_NUMBER: _ClassVar[int]
    after_revision: int
    catalog: str
    def __init__(self, after_revision: _Optional[int] = ..., catalog: _Optional[str] = ...) -> None: ...

class ResourceEvent(_message.Message):
    __slots__ = ("revision", "catalog", "snapshot", "node_id", "replaced", "present", "gone")
    REVISION_FIELD_NUMBER: _ClassVar[int]
    CATALOG_FIELD_NUMBER: _ClassVar[int]
    SNAPSHOT_FIELD_NUMBER: _ClassVar[int]
    NODE_ID_FIELD_NUMBER: _ClassVar[int]
    REPLACED_FIELD_NUMBER: _ClassVar[int]
    PRESENT_FIELD_NUMBER: _ClassVar[int]
    GONE_FIELD_NUMBER: _ClassVar[int]
    revision: int
    catalog: str
    snapshot: bool
    node_id: str
    replaced: bool
    present: _containers.RepeatedCompositeFieldContainer[Resource]
    gone: _containers.RepeatedCompositeFieldContainer[ResourceName]
    def __init__(self, revision: _Optional[int] = ..., catalog: _Optional[str] = ..., snapshot: _Optional[bool] = ..., node_id: _Optional[str] = ..., replaced: _Optional[bool] = ..., present: _Optional[_Iterable[_Union[Resource, _Mapping]]] = ..., gone: _Optional[_Iterable[_Union[ResourceName, _Mapping]]] = ...) -> None: ...

class ExplainResourcesRequest(_message.Message):
    __slots__ = ("constraints",)
    CONSTRAINTS_FIELD_NUMBER: _ClassVar[int]
    constraints: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, constraints: _Optional[_Iterable[str]] = ...) -> None: ...

class ExplainResourcesResponse(_message.Message):
    __slots__ = ("nodes",)
    NODES_FIELD_NUMBER: _ClassVar[int]
    nodes: _containers.RepeatedCompositeFieldContainer[NodeVerdict]
    def __init__(self, nodes: _Optional[_Iterable[_Union[NodeVerdict, _Mapping]]] = ...) -> None: ...

class NodeVerdict(_message.Message):
    __slots__ = ("node_id", "meets", "reasons", "left_out")
    NODE_ID_FIELD_NUMBER: _ClassVar[int]
    MEETS_FIELD_NUMBER: _ClassVar[int]
    REASONS_FIELD_NUMBER: _ClassVar[int]
    LEFT_OUT_FIELD_NUMBER: _ClassVar[int]
    node_id: str
    meets: bool
    reasons: _containers.RepeatedScalarFieldContainer[str]
    left_out: int
    def __init__(self, node_id: _Optional[str] = ..., meets: _Optional[bool] = ..., reasons: _Optional[_Iterable[str]] = ..., left_out: _Optional[int] = ...) -> None: ...
