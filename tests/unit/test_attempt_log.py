"""What an attempt prints is followed from the descriptors that come when there is something to follow."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from buildnet.testing.scheduler_fakes import ManualClock
from buildnet.wire._gen.buildnet.v1 import fleet_pb2
from buildnet.worker.attempt import AttemptLog, Handle
from buildnet.worker.stream import Excerpt


def log(news: Callable[[], None] = lambda: None) -> AttemptLog:
    return AttemptLog(7, ManualClock(), news)


def opened(path: Path, data: bytes) -> int:
    path.write_bytes(data)
    return os.open(path, os.O_RDONLY)


def whole(excerpt: Excerpt | None) -> fleet_pb2.JoinRequest:
    assert excerpt is not None
    data = os.pread(excerpt.file, excerpt.size_bytes, excerpt.offset)
    return fleet_pb2.JoinRequest.FromString(excerpt.head + data)


def is_open(file: int) -> bool:
    return os.path.exists(f"/proc/self/fd/{file}")


def test_a_stream_that_is_not_there_yet_is_followed_once_it_is(tmp_path: Path) -> None:
    told: list[None] = []
    followed = log(lambda: told.append(None))
    assert followed.look() == 0
    stderr = opened(tmp_path / "stderr", b"oops")
    followed.follow(-1, stderr)
    assert (followed.look(), len(told), followed.is_whole) == (4, 1, False)
    again = opened(tmp_path / "stderr", b"oops")
    stdout = opened(tmp_path / "stdout", b"said")
    followed.follow(stdout, again)
    assert (followed.look(), len(told), followed.is_whole) == (4, 2, True)
    assert not is_open(again), "the one that it has is enough"
    messages = [whole(followed.next_message()), whole(followed.next_message())]
    assert [(message.log.stream, message.log.data) for message in messages] == [(2, b"oops"), (1, b"said")]
    followed.close()
    assert not is_open(stderr)
    assert not is_open(stdout)


def test_what_comes_after_the_close_is_closed(tmp_path: Path) -> None:
    closed = log()
    closed.close()
    late = opened(tmp_path / "stdout", b"late")
    closed.follow(late, -1)
    assert not is_open(late)
    assert closed.look() == 0


def test_a_log_that_was_cut_is_not_sent_any_further(tmp_path: Path) -> None:
    followed = log()
    stdout = opened(tmp_path / "stdout", b"said")
    followed.follow(stdout, -1)
    followed.look()
    excerpt = followed.next_message()
    assert excerpt is not None
    excerpt.cut()
    assert not is_open(stdout)
    assert followed.next_message() is None


def test_a_wish_to_stop_reaches_all_that_listen_once_and_those_that_come_late() -> None:
    heard: list[str] = []
    handle = Handle(log())
    handle.on_stop(heard.append)
    assert heard == []
    handle.stop("")
    handle.stop("again")
    assert heard == ["cancelled"]
    handle.on_stop(heard.append)
    assert heard == ["cancelled", "cancelled"]
