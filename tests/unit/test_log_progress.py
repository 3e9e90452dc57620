"""Whatever is printed, sent, lost and taken: every byte is sent until it is taken, in the order of printing."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from buildnet.worker.log_progress import PIECE_BYTES_MAX, PIECE_COST_BYTES, PIECES_MAX, WINDOW_BYTES, LogProgress, Piece


def drained(progress: LogProgress) -> list[Piece]:
    pieces = []
    while (piece := progress.take()) is not None:
        pieces.append(piece)
    return pieces


def test_pieces_are_sent_in_the_order_and_with_the_times_of_printing() -> None:
    progress = LogProgress()
    assert progress.printed((3, 0), 10) == 3
    assert progress.printed((3, 2), 11) == 2
    assert progress.printed((5, 2), 12) == 2
    assert drained(progress) == [Piece(1, 0, 3, 10), Piece(2, 0, 2, 11), Piece(1, 3, 2, 12)]
    assert progress.printed((5, 2), 13) == 0


def test_what_came_in_one_moment_is_one_piece_and_large_ones_are_cut() -> None:
    progress = LogProgress()
    progress.printed((1, 0), 10)
    progress.printed((PIECE_BYTES_MAX + 2, 0), 19)
    progress.printed((PIECE_BYTES_MAX + 3, 0), 20)
    end = PIECE_BYTES_MAX
    assert drained(progress) == [Piece(1, 0, end, 10), Piece(1, end, 2, 10), Piece(1, end + 2, 1, 20)]


def test_in_a_flood_a_small_piece_waits_for_more_or_for_word() -> None:
    progress = LogProgress()
    progress.printed((1 << 20, 0), 1)
    sent = drained(progress)
    progress.printed((1025 << 10, 0), 50)
    assert progress.take() is None
    assert progress.waits
    progress.taken((sent[0].end, 0))
    assert progress.take() == Piece(1, 1 << 20, 1 << 10, 50)


def test_no_more_is_on_its_way_than_the_window() -> None:
    progress = LogProgress()
    progress.printed((100 << 20, 0), 1)
    sent = drained(progress)
    assert sum(piece.size_bytes for piece in sent) <= WINDOW_BYTES + PIECE_BYTES_MAX
    progress.taken((sent[0].end, 0))
    assert drained(progress) == [Piece(1, sent[-1].end, PIECE_BYTES_MAX, 1)]


def test_single_letters_fill_the_window_by_their_cost() -> None:
    progress = LogProgress()
    for number in range(PIECES_MAX):
        progress.printed((number + 1, 0), 10 * number)
    assert PIECES_MAX // 4 < len(drained(progress)) <= WINDOW_BYTES // PIECE_COST_BYTES + 1


def test_a_flood_of_moments_keeps_its_order_within_each_stream_and_its_bound() -> None:
    progress = LogProgress()
    for number in range(2 * PIECES_MAX):
        progress.printed((number // 2 + number % 2, number // 2), 10 * number)
    assert len(progress._waiting) <= PIECES_MAX + 1
    ends = {1: 0, 2: 0}
    for piece in drained(progress):
        assert piece.offset == ends[piece.stream]
        ends[piece.stream] = piece.end


def test_what_a_controller_lost_is_sent_again_without_times() -> None:
    progress = LogProgress()
    progress.printed((10, 4), 1)
    drained(progress)
    progress.taken((10, 4))
    progress.taken((2, 0), resend=True)
    assert sorted(drained(progress), key=lambda piece: piece.stream) == [Piece(1, 2, 8, None), Piece(2, 0, 4, None)]


class Controller:
    """Takes what comes in order, as the edge does, and forgets what is on its way when a session breaks."""

    def __init__(self) -> None:
        self.text = {1: b"", 2: b""}
        self.way: list[Piece] = []

    def take(self, printed: dict[int, bytes], count: int) -> bool:
        """Take some; returns whether something was missing before it."""
        missing = False
        for piece in self.way[:count]:
            have = len(self.text[piece.stream])
            if piece.offset > have:
                missing = True
            elif piece.end > have:
                self.text[piece.stream] += printed[piece.stream][have : piece.end]
        del self.way[:count]
        return missing


STEPS = st.one_of(
    st.tuples(st.just("print"), st.integers(1, 2), st.integers(1, 40_000)),
    st.tuples(st.just("send"), st.integers(1, 5), st.just(0)),
    st.tuples(st.just("take"), st.integers(1, 5), st.just(0)),
    st.tuples(st.just("tell"), st.just(0), st.just(0)),
    st.tuples(st.just("break"), st.just(0), st.just(0)),
    st.tuples(st.just("forget"), st.integers(1, 2), st.integers(0, 30_000)),
)


@given(st.lists(STEPS, max_size=30))
def test_no_byte_is_lost_whatever_breaks(steps: list[tuple[str, int, int]]) -> None:
    progress, controller = LogProgress(), Controller()
    printed = {1: b"", 2: b""}
    for now, (what, which, size) in enumerate(steps):
        match what:
            case "print":
                printed[which] += bytes([now % 251]) * size
                progress.printed((len(printed[1]), len(printed[2])), now)
            case "send":
                for _ in range(which):
                    if (piece := progress.take()) is not None:
                        controller.way.append(piece)
            case "take":
                if controller.take(printed, which):
                    progress.taken([len(controller.text[s]) for s in (1, 2)], resend=True)
            case "tell":
                progress.taken([len(controller.text[s]) for s in (1, 2)])
            case "break":
                controller.way.clear()
                progress.rewind()
            case "forget":
                controller.text[which] = controller.text[which][:size]
    # What a controller forgot is known to be missing only when more comes: a last letter shows it.
    progress.printed((len(printed[1]) + 1, len(printed[2]) + 1), 0)
    printed = {1: printed[1] + b"x", 2: printed[2] + b"y"}
    rounds = 0
    while progress.waits or controller.way or controller.text != printed:
        controller.way += drained(progress)
        resend = controller.take(printed, len(controller.way))
        progress.taken([len(controller.text[s]) for s in (1, 2)], resend=resend)
        rounds += 1
        assert rounds < 100
