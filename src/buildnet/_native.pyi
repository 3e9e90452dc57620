"""The native half: it moves bytes and decides nothing. Digests cross as `hash/size` text, messages as bytes.

Every function may raise NativeError; `buildnet.wire.native` turns one into the error tree.
Functions marked *blocks* do I/O with the interpreter lock released: call them in a thread.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, Literal, Never, final, overload

from typing_extensions import Buffer

__all__ = [
    "RESULT_BYTES_SAID_MAX",
    "Attempt",
    "Body",
    "Call",
    "Crew",
    "Dialler",
    "Door",
    "InputTree",
    "KeptTree",
    "Link",
    "NativeError",
    "Process",
    "Shown",
    "SigningKey",
    "StagedRoot",
    "Store",
    "Tiers",
    "Trees",
    "append_records",
    "collect",
    "extend_tree",
    "is_signed",
    "keep_log",
    "launcher_main",
    "launcher_pid",
    "log_append",
    "log_chunk",
    "log_record",
    "log_records",
    "probe_isolation",
    "public_of_pem",
    "public_pem",
    "remove_tree",
    "session_pem",
    "session_secret_of_pem",
    "stage",
    "start_launcher",
    "undeclared_writes",
]

_Rows = list[tuple[str, str, int, int]]

class NativeError(Exception):
    """An error of the native half. `code` is a slug of buildnet.errors."""

    code: str
    message: str
    fields: dict[str, Any]

@final
class Store:
    """Blobs and action results below one directory, opened by one process."""

    def __new__(
        cls,
        root: str,
        durability: str = "process",
        *,
        blob_size_bytes_max: int | None = None,
        free_bytes_min: int | None = None,
        size_bytes_max: int | None = None,
        keep_s: int | None = None,
        segment_bytes: int | None = None,
    ) -> Store: ...
    @property
    def root(self) -> str: ...
    def put_bytes(self, data: bytes) -> str: ...
    def put_file(self, path: str) -> str: ...
    def get_bytes(self, digest: str, size_bytes_max: int = ...) -> bytes: ...
    def export_file(self, digest: str, dest: str, executable: bool = False) -> None: ...
    def find_missing(self, digests: Sequence[str]) -> list[str]: ...
    def missing_of_action(self, action: str) -> list[str]: ...
    def missing_of_result(self, result: bytes) -> list[str]: ...
    def missing_of_flat_result(self, result: bytes) -> list[str] | None: ...
    def get_action_result(self, instance: str, action: str) -> bytes | None: ...
    def put_action_result(self, instance: str, action: str, result: bytes, entry_index: int | None) -> None: ...
    def entry_index(self, instance: str, action: str) -> int | None: ...
    def hold(self, name: str, digests: Sequence[str]) -> None: ...
    def hold_action(self, name: str, action: str) -> None: ...
    def hold_flat_action(self, name: str, action: str) -> bool: ...
    def hold_result(self, name: str, result: bytes) -> list[str]: ...
    def hold_flat_result(self, name: str, result: bytes) -> list[str] | None: ...
    def release(self, name: str) -> None: ...
    def evict(self, size_bytes: int) -> dict[str, int]: ...
    def scrub(self, progress: Callable[[int, int, int], object] | None = None) -> dict[str, Any]: ...
    def page(
        self, segment: int, offset: int, kind: str | None, prefix: str, count_max: int
    ) -> tuple[_Rows, tuple[int, int] | None]: ...
    def taken(self, progress: Callable[[int], object] | None = None) -> dict[str, Any]: ...
    def referrers(
        self, digest: str, looked_max: int, progress: Callable[[int], object] | None = None
    ) -> tuple[Sequence[str], int, bool]: ...
    def rehearse(self, size_bytes: int) -> dict[str, int]: ...
    def list(self, count_max: int = ...) -> list[tuple[str, str, int, int]]: ...
    def facts(self, digest: str) -> dict[str, Any] | None: ...
    def statistics(self) -> dict[str, int]: ...
    def close(self) -> None: ...

@final
class Tiers:
    """What stands behind one store. `configs` are tables of buildnet.app.tiers; the queues are below `directory`."""

    def __new__(cls, store: Store, configs: Sequence[Mapping[str, Any]], directory: str) -> Tiers: ...
    def pull_result(self, result: bytes) -> None: ...
    def blob_written(self, digest: str) -> None: ...
    def result_written(self, instance: str, action: str) -> None: ...
    def next_report(self) -> str | None: ...
    def statistics(self) -> list[dict[str, Any]]: ...
    def close(self) -> None: ...

@final
class Door:
    """One listening port: byte services end here, everything else becomes batched events for Python.

    `access`: keys (raw Ed25519 public keys), revoked (a file, or None), anonymous (scopes), certificates (each with
    name, scopes, instances and namespace, the last two may be None); None lets everybody do everything. `tls`:
    certificate, key, client_ca (or None), files of PEM. `local` listens on a loopback port too, in plaintext and for
    tokens only: at `local_address` from `start` on. `sessions`: node_seed, session_secret (raw keys), organisation and
    term; None takes no sessions. `application`: HTTP requests for no cache become events too.
    """

    def __new__(
        cls,
        store: Store,
        methods: Sequence[tuple[str, str]],
        *,
        threads: int = 0,
        message_size_bytes_max: int = ...,
        execution: bool = True,
        access: Mapping[str, Any] | None = None,
        tls: Mapping[str, Any] | None = None,
        local: bool = False,
        sessions: Mapping[str, Any] | None = None,
        application: bool = False,
        tiers: Tiers | None = None,
        durability: str = "process",
        access_log: str | None = None,
        slow_ms: int = 500,
        access_log_sample: float = 0.01,
        traces: bool = False,
    ) -> Door: ...
    @property
    def fd(self) -> int: ...
    @property
    def local_address(self) -> str | None: ...
    def start(self, listen: str) -> str: ...
    def drain(self) -> list[tuple[Any, ...]]: ...
    def submit(self, ops: Sequence[tuple[Any, ...]]) -> None: ...
    def report(self, values: Mapping[str, int]) -> None: ...
    def take_usage(self) -> list[dict[str, Any]]: ...
    def reopen_log(self) -> None: ...
    def end_sessions(self, node_key: str, code: int, text: str) -> int: ...
    def stop(self) -> None: ...
    def close(self) -> None: ...
    def statistics(self) -> dict[str, int]: ...

@final
class InputTree:
    """A Merkle tree of local files and bytes in memory, hashed and ready to push."""

    def __new__(cls, entries: Sequence[tuple[str, str | bytes]]) -> InputTree: ...
    @property
    def root(self) -> str: ...
    @property
    def file_count(self) -> int: ...
    @property
    def size_bytes(self) -> int: ...

@final
class Link:
    """An outbound connection that moves blobs to and from a REAPI server. All methods *block*, but `call`: a call of a
    path on the same connection. Whoever calls first while there is none dials; the others wait for that.
    """

    def __new__(
        cls,
        url: str,
        *,
        instance: str = "",
        connect_timeout_s: float = 5.0,
        ca_pem: bytes | None = None,
        certificate_pem: bytes | None = None,
        key_pem: bytes | None = None,
        token: str = "",
    ) -> Link: ...
    @staticmethod
    def by_session(dialler: Dialler, *, instance: str = "") -> Link: ...
    def call(self, path: str) -> Call: ...
    def set_token(self, token: str) -> None: ...
    def find_missing(self, digests: Sequence[str]) -> list[str]: ...
    def put_bytes(self, data: bytes) -> str: ...
    def put_file(self, path: str) -> str: ...
    def get_bytes(self, digest: str, size_bytes_max: int = ...) -> bytes: ...
    def get_file(self, digest: str, dest: str, executable: bool = False, follow: bool = False) -> None: ...
    def push_tree(self, tree: InputTree) -> dict[str, int]: ...
    def pull_directory(self, root: str, dest: str) -> dict[str, int]: ...
    def pull_tree(self, tree: str, dest: str) -> dict[str, int]: ...
    def close(self) -> None: ...

@final
class Dialler:
    """Whom to dial by sessions: who must answer, and what is known of them. It dials nothing by itself.

    `met`: the controller's session key and term, once there was a session. `failure`: why the last dial failed, as a
    code of the error tree and a text; None when it did not. After `rekey_frames` this end changes its key: 2^20.
    `carrier`: `http` or `https` where a call by HTTP/2 carries the sessions, within TLS that is verified and shown as
    the PEMs say; None where nothing does.
    """

    def __new__(
        cls,
        address: str,
        *,
        organisation: str,
        node_key: str,
        node_seed: bytes,
        session_secret: bytes,
        session_key: str | None = None,
        term: int = 0,
        token: bytes = ...,
        rekey_frames: int | None = None,
        carrier: str | None = None,
        ca_pem: bytes | None = None,
        certificate_pem: bytes | None = None,
        key_pem: bytes | None = None,
    ) -> Dialler: ...
    @property
    def met(self) -> tuple[str, int] | None: ...
    @property
    def failure(self) -> tuple[str, str] | None: ...

@final
class Body(Buffer):
    """Bytes that stay native: Python looks at them by the buffer protocol. A slice shares them."""

    def __new__(cls, data: bytes) -> Body: ...
    def __len__(self) -> int: ...
    def __getitem__(self, part: slice, /) -> Body: ...

@final
class SigningKey:
    """An Ed25519 key that signs (RFC 8032). It shows its secret to who asks for it by name, and in no text."""

    seed: bytes
    public: bytes

    def __new__(cls, seed: bytes) -> SigningKey:
        """The key of 32 random bytes.

        Raises:
            ValueError: there are more or fewer.
        """

    @staticmethod
    def generate() -> SigningKey:
        """A new key, of random bytes that are fit for secrets."""

    @staticmethod
    def of_pem(pem: str) -> SigningKey:
        """The key in PKCS 8 PEM (RFC 8410).

        Raises:
            ValueError: it holds none of this kind.
        """

    def pem(self) -> str:
        """PKCS 8 PEM, unencrypted."""

    def sign(self, message: bytes) -> bytes:
        """The signature of a message, 64 bytes."""

def is_signed(public: bytes, signature: bytes, message: bytes) -> bool:
    """Whether an Ed25519 key made this signature of a message; never where one of them has not its length."""

def public_pem(public: bytes) -> str:
    """An Ed25519 public key as PEM (RFC 8410).

    Raises:
        ValueError: it is none.
    """

def public_of_pem(pem: str) -> bytes:
    """The Ed25519 public key in PEM, 32 bytes.

    Raises:
        ValueError: it holds none.
    """

def session_pem(secret: bytes) -> str:
    """An X25519 secret, 32 random bytes, as PKCS 8 PEM (RFC 8410).

    Raises:
        ValueError: there are more or fewer.
    """

def session_secret_of_pem(pem: str) -> bytes:
    """The X25519 secret in PKCS 8 PEM, 32 bytes.

    Raises:
        ValueError: it holds none.
    """

def append_records(file: int, first: int, bodies: Sequence[bytes]) -> int:
    """Append records of the ledger's tail, numbered from `first` on, by one call; how many bytes they are.

    Raises:
        OSError: the file took none, or a part that the caller is to cut off.
    """

def extend_tree(size: int, edge: bytes, bodies: Sequence[bytes]) -> tuple[bytes, bytes]:
    """Add leaves by their bodies to a Merkle tree (RFC 6962, section 2.1) of `size`; *blocks*.

    `edge` has the hashes of the complete subtrees that make it up, largest first, one behind the other. Returned are
    the edge then, and the hashes that are complete with each leaf, the leaf's first, one behind the other.

    Raises:
        ValueError: `edge` is not of a tree of that size.
    """

def log_append(path: str, position: int, rows: list[tuple[int, int, int, bytes | Body]]) -> int:
    """Write records (stream, offset, Unix milliseconds or 0, data) to a segment behind its first `position` bytes;
    returns where they end. *Blocks*.

    Raises:
        OSError: they could not be written; the segment ends at `position`.
    """

def log_chunk(message: Body) -> tuple[int, int, int, int | None, bytes | Body] | None:
    """Fence, stream, offset, time in Unix milliseconds and data of the piece of a log that a JoinRequest is; None where
    it is anything else.
    """

def keep_log(store: Store, digest: str, stream: int, segments: list[tuple[str, int, int]]) -> bool:
    """Store one stream of a spooled log as the blob `digest`, which the bytes are checked against. Each segment is its
    path, and where its records begin and end; False where they do not have all of the stream. *Blocks*.

    Raises:
        DigestMismatch: they have other bytes.
        StorageFull, TooLarge: as for any blob.
    """

def log_record(message: bytes | Body) -> tuple[int, int, bytes, bool, float | None, int]:
    """Stream, offset, data, whether bytes before it are not kept, time in Unix seconds and fence of a LogRecord.

    Raises:
        ValueError: it is none.
    """

def log_records(
    file: int, position: int, end: int, waits: bool
) -> tuple[list[tuple[int, int, int, bytes | Body]], int] | None:
    """Stream, offset, time in Unix milliseconds (0: not known) and data of the whole records of a spooled segment
    between `position` and `end`, as many as one read gives, and how many bytes of the file they are. *Blocks* where it
    `waits`; where it does not, None says that the disk would have to be waited for.

    Raises:
        OSError: the file cannot be read.
    """

@final
class Call:
    """One bidirectional gRPC call of `path` for an event loop: nothing here blocks. It is on a connection of its own,
    which it dials when it is first turned, or on a link's. `fd` is readable when a turn is worth it.

    `turn` sends what is queued as far as the peer takes it, and gives what came (256 messages, or 1 MiB and one more),
    how many queued bytes the transport has not taken, and once the call is over its gRPC status code and text. After
    `send` and `finish` a turn is due. A message that is larger than 4 MiB ends the call. With `bodies` large messages
    are not copied.

    `send_from` queues `head` and behind it `size_bytes` of a file from `offset` on; it returns how many the file has
    there, and where those are fewer queues nothing. `look` is a turn that leaves what came with the transport.
    `details`: the server's google.rpc.Status, encoded, once it has failed the call.
    """

    def __new__(
        cls,
        url: str,
        path: str,
        *,
        ca_pem: bytes | None = None,
        certificate_pem: bytes | None = None,
        key_pem: bytes | None = None,
        token: str = "",
    ) -> Call: ...
    @property
    def fd(self) -> int: ...
    def send(self, message: bytes) -> None: ...
    def send_from(self, head: bytes, file: int, offset: int, size_bytes: int) -> int: ...
    def finish(self) -> None: ...
    def look(self) -> None: ...
    @property
    def details(self) -> bytes: ...
    @overload
    def turn(self, *, bodies: Literal[False] = False) -> tuple[list[bytes], int, tuple[int, str] | None]: ...
    @overload
    def turn(self, *, bodies: Literal[True]) -> tuple[list[bytes | Body], int, tuple[int, str] | None]: ...
    def close(self) -> None: ...

@final
class Shown:
    """Paths of the machine that commands may read, for many orders."""

    def __new__(cls, paths: Sequence[str]) -> Shown: ...

RESULT_BYTES_SAID_MAX: Final[int]
"""A longer result of an attempt is a blob at the controller too."""

@final
class Crew:
    """Whoever makes a worker's attempts: threads that stay, each with one attempt at a time.

    `open` *blocks*: it empties the scratch. `room`: store, link, trees (or None), scratch and cleared (directories on
    the store's file system), node, away_timeout_s, threads_max, hidden (paths that commands find empty), files (small
    texts by path).

    `run` makes an attempt of an `order`: the entries of a `Process`' plan that depend on no place, and fence, command
    (its exact bytes, checked by the caller), working_directory, search_path, input_root, has_outputs,
    writes_are_strict, effects (name, level, enforced), gpus (numbers, for the result), shown, unseen_hint, elsewhere
    (whether another sandbox runs it).

    `fd` is readable while `take` has something: (fence, what, about). `printed`: nothing more is said of it before
    `Attempt.quiet`. `staged`: the mount to show, or -1; `Attempt.finish` is due. At the end, once its scratch is gone,
    `failed`: a NativeError; or `reported`: a dict of result (an encoded ActionResult whose blobs are all at the
    controller), exit_code, reason (as `Process.poll`), failure (a NativeError, why there are no outputs, or None), and
    of undeclared writes paths, count and whole.

    `fetch` *blocks*. `close` *blocks* until nothing of any attempt is left, for at most some seconds.
    """

    @staticmethod
    def open(room: Mapping[str, Any]) -> Crew: ...
    @property
    def fd(self) -> int: ...
    def take(self) -> list[tuple[int, str, Any]]: ...
    def run(self, order: Mapping[str, Any]) -> Attempt: ...
    def fetch(self, blobs: Sequence[str], tree: str | None = None) -> None: ...
    def close(self) -> None: ...

@final
class Attempt:
    """A hold on one attempt; dropping it stops nothing. `logs` gives descriptors that are the caller's, or -1.

    `ending`: exit_code, reason, wall_s, user_s, system_s, max_rss_bytes, isolation, limits (pairs), begun_unix_ns,
    printed_bytes; None where the sandbox did not run it.
    """

    def stop(self, reason: str) -> None: ...
    def quiet(self) -> None: ...
    def mute(self) -> None: ...
    def logs(self) -> tuple[int, int]: ...
    def finish(self, ending: Mapping[str, Any] | None = None) -> None: ...

def start_launcher() -> None:
    """*Blocks.* Start this process's launcher, from which all actions are forked; once it runs this does nothing."""

def launcher_pid() -> int | None:
    """The launcher's process id, for those who account for processor time."""

def launcher_main(homes: Sequence[str]) -> Never:
    """Be a launcher on the socket at standard input; at the end it removes its worker's control groups below `homes`.
    Only for a process that was made for it.
    """

def probe_isolation() -> dict[str, bool]: ...
def stage(store: Store, root: str, dest: str, command: bytes) -> dict[str, int]: ...

@final
class Trees:
    """Input trees that are kept below one directory, which `open` empties; None where no layer can be laid over them.

    `stage` makes `scratch`/root: a copy, or, for a tree that is worth keeping, an empty directory and a mount for it.
    """

    @staticmethod
    def open(directory: str, size_bytes_max: int) -> Trees | None: ...
    def find(self, root: str) -> KeptTree | None: ...
    def stage(self, store: Store, root: str, scratch: str, command: bytes) -> StagedRoot: ...
    def counts(self) -> tuple[int, int]: ...

@final
class KeptTree:
    """A kept tree in use; dropping it releases it."""

    def release(self) -> None: ...

@final
class StagedRoot:
    """One action's execution root; dropping it closes it. `mount_fd` is -1 for a copy."""

    @property
    def path(self) -> str: ...
    @property
    def mount_fd(self) -> int: ...
    def close(self) -> None: ...

def collect(
    store: Store, work: str, command: bytes, *, file_count_max: int = ..., size_bytes_max: int = ...
) -> tuple[bytes, list[str]]: ...
def remove_tree(path: str) -> None: ...
def undeclared_writes(
    store: Store, root: str, work: str, command: bytes, begun_unix_ns: int, *, upper: bool = ...
) -> tuple[list[str], int, bool]: ...

@final
class Process:
    """One running command and everything it starts; dropping it kills them.

    `plan`: argv, env, cwd, root (the execution root, writable; with namespaces it appears as /buildnet/root),
    root_mount (optional: a descriptor of a mount that is shown in its place), shown
    (optional: paths of the host that appear read-only, "/" for all), hidden (optional: directories that appear empty),
    files (optional: small texts by path, made where nothing is shown), devices (optional: device files of the host and
    where below /dev each appears), tmp, stdout_path, stderr_path,
    log_size_bytes_max (both streams together), masked (optional: texts that neither stream may show, as bytes),
    timeout_s, memory_bytes, pids_max, cpu_s, cpu_milli (optional), cpu_is_capped (optional: no more than that, ever),
    disk_bytes (optional) (None: unbounded), counted (optional: the directories that disk_bytes is about; else root and
    tmp), network, isolation ("namespaces" or "process"), cgroup_name. Paths are
    absolute paths of the host.

    `poll` gives exit_code, signal, reason ("", timeout, memory, pids, cpu, disk, log_limit, storage_full,
    sandbox_failed, or what `kill` was told), wall_s, user_s, system_s, max_rss_bytes, isolation and network ("none" or
    "host") as really used, limits (memory, pids, cpu, share, disk: cgroup1, cgroup2, rlimit, watched, none or unset),
    begun_unix_ns, stdout_bytes, stderr_bytes. `fd` stays readable once it has ended.
    """

    @staticmethod
    def start(plan: Mapping[str, Any]) -> Process: ...
    @property
    def fd(self) -> int: ...
    def read_logs(self, bytes_max: int = ...) -> list[tuple[int, int, bytes]]: ...
    def poll(self) -> dict[str, Any] | None: ...
    def kill(self, reason: str) -> None: ...
