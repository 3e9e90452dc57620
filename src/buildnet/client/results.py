"""Results as objects. They know where their bytes are and fetch them when asked."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from buildnet._native import Link
from buildnet.errors import InvalidRequest, OutputInvalid
from buildnet.model.action_spec import checked_path
from buildnet.model.digest import Digest
from buildnet.wire import times
from buildnet.wire._gen.build.bazel.remote.execution.v2 import remote_execution_pb2 as re
from buildnet.wire.actions import digest_of, directory_digest_of
from buildnet.wire.native import translated
from buildnet.wire.usage import effects_of

_LOG_BYTES_MAX = 64 << 20


@dataclass(frozen=True, slots=True)
class Output:
    """One output. `digest` is of the file's bytes, or of the directory's Tree, or of its Directory where there is no
    Tree (`is_root`); a symlink has a `target`.
    """

    path: str
    kind: Literal["file", "directory", "symlink"]
    digest: Digest | None = None
    executable: bool = False
    target: str = ""
    is_root: bool = False
    _link: Link | None = field(default=None, repr=False, compare=False)

    def download(self, dest: Path | str) -> None:
        """Write it to `dest`. *Blocks*. A link there is replaced: an earlier result may have left it.

        Raises:
            BlobsMissing: the server lacks it.
        """
        assert self._link is not None
        dest = Path(dest)
        dest.parent.mkdir(parents=True, exist_ok=True)
        if self.kind == "symlink":
            dest.unlink(missing_ok=True)
            dest.symlink_to(self.target)
            return
        assert self.digest is not None
        with translated():
            if self.kind == "directory":
                pull = self._link.pull_directory if self.is_root else self._link.pull_tree
                pull(self.digest.text, str(dest))
            else:
                self._link.get_file(self.digest.text, str(dest), self.executable)


@dataclass(frozen=True, slots=True)
class EffectsTold:
    """What a worker told of a command: what kept it apart, what it could do, and what it wrote beside its outputs.

    `isolation` is namespaces or process; `effects` are levels by name, of which those in `trusted` nothing enforced.
    `undeclared_writes` are paths below the execution root, at most 100 of `undeclared_write_count`; directories end in
    a slash. `undeclared_writes_partial`: not everything was looked at. `limits` are what bounded each resource,
    `limit_hit` is the one that ended it: memory, pids, cpu, disk, log or wall, "" for none. `gpus` are the numbers of
    those that it was given.
    """

    isolation: str
    effects: Mapping[str, str]
    trusted: tuple[str, ...]
    undeclared_writes: tuple[str, ...]
    undeclared_write_count: int
    undeclared_writes_partial: bool
    limits: Mapping[str, str]
    limit_hit: str = ""
    gpus: tuple[int, ...] = ()

    @property
    def assurance(self) -> Literal["enforced", "advisory"]:
        """`enforced` when nothing was left to trust."""
        return "advisory" if self.trusted else "enforced"


@dataclass(frozen=True, slots=True)
class RunResult:
    """How a command ended. `cached` when it did not run now; times are in seconds, None when the worker told none.
    `effects` is None when the worker told nothing of them.
    """

    exit_code: int
    outputs: Mapping[str, Output]
    action: Digest
    operation: str
    cached: bool
    worker: str
    entry_index: int | None
    queued_s: float | None
    execution_s: float | None
    stdout_digest: Digest | None
    stderr_digest: Digest | None
    _read: Callable[[Digest], bytes] = field(repr=False, compare=False)
    effects: EffectsTold | None = None

    def stdout(self) -> bytes:
        """What it printed, at most 64 MiB. *Blocks*."""
        return self._read(self.stdout_digest) if self.stdout_digest else b""

    def stderr(self) -> bytes:
        """What it printed as errors, at most 64 MiB. *Blocks*."""
        return self._read(self.stderr_digest) if self.stderr_digest else b""

    def download(self, dest: Path | str = ".") -> None:
        """Write every output below `dest`, each at its own path. *Blocks*.

        Raises:
            OutputInvalid: one would be elsewhere; then nothing is written. A result may be another client's word.
        """
        for output in list(_outermost(self.outputs)):
            output.download(Path(dest) / output.path)

    def check_outputs(self, declared: Collection[str]) -> None:
        """See that it names no output but those that were asked for.

        Raises:
            OutputInvalid: it does.
        """
        for path in self.outputs.keys() - set(declared):
            raise OutputInvalid(f"the result names the output {path[:200]!r}, which was not asked for", field="outputs")


@dataclass(frozen=True, slots=True)
class LogPiece:
    """A piece of what an action prints: `stream` is 1 for stdout, 2 for stderr. `gap`: those before it are not kept.

    `printed_at_unix_s` is by the worker's clock, None when it is not known. `fence` names the attempt: with another one
    the action runs again, and offsets begin anew.
    """

    stream: int
    offset: int
    data: bytes
    gap: bool = False
    printed_at_unix_s: float | None = None
    fence: int = 0


@dataclass(frozen=True, slots=True)
class ActionInfo:
    """One operation as the server lists it; times are Unix seconds.

    `state` is waiting, queued, executing, completed, failed or cancelled; `action` is None while it waits for others of
    its `graph`. `target`, `mnemonic` and `invocation` are what a build tool said.
    """

    id: str
    action: Digest | None
    instance: str
    state: str
    worker: str
    exit_code: int
    error_code: str
    message: str
    cached: bool
    entry_index: int | None
    arguments: tuple[str, ...]
    submitted_at_unix_s: float
    completed_at_unix_s: float | None
    graph: str = ""
    graph_name: str = ""
    target: str = ""
    mnemonic: str = ""
    invocation: str = ""


def result_of(
    response: re.ExecuteResponse, action: Digest, operation: str, entry_index: int | None, link: Link
) -> RunResult:
    """Make a result of a completed, successful execution."""
    result = response.result
    metadata = result.execution_metadata

    def read(digest: Digest) -> bytes:
        with translated():
            return link.get_bytes(digest.text, _LOG_BYTES_MAX)

    def span(start: str, end: str) -> float | None:
        if not (metadata.HasField(start) and metadata.HasField(end)):
            return None
        # By a worker's clock: any number, and no reason to have no result.
        return (times.nanoseconds(getattr(metadata, end)) - times.nanoseconds(getattr(metadata, start))) / 1e9

    return RunResult(
        exit_code=result.exit_code,
        outputs=_outputs(result, link),
        action=action,
        operation=operation,
        cached=response.cached_result,
        worker=metadata.worker,
        entry_index=entry_index,
        queued_s=span("queued_timestamp", "worker_start_timestamp"),
        execution_s=span("execution_start_timestamp", "execution_completed_timestamp"),
        stdout_digest=digest_of(result.stdout_digest) if result.HasField("stdout_digest") else None,
        stderr_digest=digest_of(result.stderr_digest) if result.HasField("stderr_digest") else None,
        _read=read,
        effects=effects_told(result),
    )


def effects_told(result: re.ActionResult) -> EffectsTold | None:
    """What a worker told of a command's effects, None for nothing."""
    report = effects_of(result)
    if report is None:
        return None
    return EffectsTold(
        isolation=report.isolation,
        effects={grant.name: grant.level for grant in report.effects},
        trusted=tuple(grant.name for grant in report.effects if not grant.enforced),
        undeclared_writes=tuple(report.undeclared_writes),
        undeclared_write_count=report.undeclared_write_count,
        undeclared_writes_partial=report.undeclared_writes_partial,
        limits={limit.name: limit.by for limit in report.limits},
        limit_hit=report.limit_hit,
        gpus=tuple(report.gpus),
    )


def _outputs(result: re.ActionResult, link: Link) -> dict[str, Output]:
    found: dict[str, Output] = {}
    for file in result.output_files:
        found[file.path] = Output(file.path, "file", digest_of(file.digest), file.is_executable, _link=link)
    for directory in result.output_directories:
        digest, is_root = directory_digest_of(directory)
        found[directory.path] = Output(directory.path, "directory", digest, is_root=is_root, _link=link)
    for symlink in (*result.output_symlinks, *result.output_file_symlinks, *result.output_directory_symlinks):
        found[symlink.path] = Output(symlink.path, "symlink", target=symlink.target, _link=link)
    return found


def _outermost(outputs: Mapping[str, Output]) -> Iterator[Output]:
    """Those that are below no other one: what is inside a directory comes with it."""
    for path, output in outputs.items():
        try:
            checked_path(path, "outputs", may_be_root=output.kind == "directory")
        except InvalidRequest as error:
            raise OutputInvalid(
                f"the result names the output {path[:200]!r}, which leads out of where outputs go", field="outputs"
            ) from error
        parts = path.split("/")
        around = ["/".join(parts[:count]) for count in range(len(parts))] if path else []
        within = next((outer for outer in around if outer in outputs), None)
        if within is None:
            yield output
        elif outputs[within].kind != "directory":
            raise OutputInvalid(
                f"the result names the output {path[:200]!r} below another, which is no directory", field="outputs"
            )
