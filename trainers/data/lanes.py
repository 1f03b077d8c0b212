"""An order of rows cut into lanes, so that a rank decodes only the shards of its own.

1. The permuted shards (or slices) of an epoch lie end to end (`order.py`), and the epoch is cut there into C lanes.
2. A global batch of B rows takes B/C of each lane, lane by lane. Rank r of W makes the r-th part of each batch, which
   is lanes r*C/W to (r+1)*C/W: no other rank decodes what lies in them, but where one ends and the next begins.
3. Row v of the endless sequence, over all epochs, is of lane v mod C. So a batch is rows i*B to (i+1)*B of that
   sequence, each epoch holds each row once, and lanes never drift apart, however many rows there are.

C is declared with the order and does not depend on W: the batches are the same on any number of ranks. One lane is the
order itself. With C lanes the rows of a batch are of C places of the epoch.

Price: up to C shards more are decoded in an epoch, where lanes meet within one; and a block of each own lane is in
memory, so blocks are smaller the more lanes there are (`block_parts`).
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from softlabels.errors import ConfigError
from trainers.data.order import Int64, Piece, RowOrder

MOST = 16
"""Lanes of a run that does not say how many, at most: a process alone has a block of each in memory."""


class Span(NamedTuple):
    """Consecutive rows of a lane."""

    lane: int
    step: int
    """Rows of the lane before them, all epochs together."""
    rows: int
    """How many they are."""


class Stretch(NamedTuple):
    """Consecutive rows of a lane that lie in one block."""

    block: int
    step: int
    """Rows of the lane before them."""
    end: int
    """Rows of the lane up to their end."""
    place: int
    """Of the first of them in the uncut order."""


def check_lanes(lanes: int, batch_size: int) -> None:
    """Refuse lanes of which a batch cannot take equally many rows.

    Raises:
        ConfigError: names both flags.
    """
    if type(lanes) is not int or lanes < 1 or batch_size % lanes:
        raise ConfigError(
            f"--lanes {lanes}: a batch takes as many rows of each lane, so lanes must divide --batch-size "
            f"{batch_size}; choose {default_lanes(batch_size)}"
        )


def default_lanes(batch_size: int) -> int:
    """The most lanes, up to `MOST`, that divide a batch."""
    return next(n for n in range(min(MOST, batch_size), 0, -1) if batch_size % n == 0)


def block_parts(lanes: int, mixed: int) -> int:
    """Shards (or slices) of a block, so that the blocks of all lanes mix `mixed` of them, or one each."""
    return -(-mixed // lanes)


def spans(batch_size: int, lanes: int, offset: int, first: int, count: int) -> Iterator[Span]:
    """Where `count` rows of a batch lie, from its row `first` on.

    Args:
        batch_size: B.
        lanes: C, which divides B.
        offset: rows of the batches before, a multiple of B (with one lane, any number).
        first: row of the batch.
        count: of the rows.
    """
    each = batch_size // lanes
    while count > 0:
        lane, within = divmod(first, each)
        taken = min(each - within, count)
        yield Span(lane, offset // lanes + within, taken)
        first, count = first + taken, count - taken


class Lanes:
    """The lanes of an order. Not shared between threads.

    Args:
        order: to cut.
        lanes: C.
    """

    def __init__(self, order: RowOrder, lanes: int = 1) -> None:
        self.order, self.lanes = order, lanes
        self._held: dict[int, tuple[Stretch, Int64]] = {}
        """Of each lane, the stretch that was read last, and its row numbers."""

    def pieces(self, span: Span) -> Iterator[Piece]:
        """The row numbers of a span, cut where a block ends, or an epoch of the lane."""
        lane, step, count = span
        while count > 0:
            stretch, rows = self._rows_of(lane, step)
            piece = rows[step - stretch.step :][:count]
            yield Piece(stretch.block, piece)
            step, count = step + len(piece), count - len(piece)

    def take(self, batch_size: int, place: int, count: int) -> list[int]:
        """Row numbers of `count` places from one on, in the sequence of batches of `batch_size` rows."""
        found: list[int] = []
        while count > 0:
            first = place % batch_size
            here = min(batch_size - first, count)
            for span in spans(batch_size, self.lanes, place - first, first, here):
                for piece in self.pieces(span):
                    found += piece.rows.tolist()
            place, count = place + here, count - here
        return found

    def stretch(self, lane: int, step: int) -> Stretch:
        """What lies around a step of a lane in one block."""
        held = self._held.get(lane)
        if held is not None and held[0].step <= step < held[0].end:
            return held[0]
        rows = self.order.rows
        epoch = (self.lanes * step + lane) // rows
        begun, done = self._steps(lane, epoch), self._steps(lane, epoch + 1)
        start = epoch * rows + self._below(epoch + 1, lane) - self._below(epoch, lane)
        block, within = self.order.find(start + step - begun)
        first = step - min(within, step - begun)
        end = min(step - within + self.order.rows_of(block), done)
        return Stretch(block, first, end, start + first - begun)

    def following(self, at: Sequence[Span], count: int) -> list[int]:
        """The next `count` blocks that the lanes of these spans enter, soonest first; lanes go on side by side."""
        entered: list[tuple[int, int, int]] = []  # after how many rows, lane, step
        for lane, step, _ in at:
            end = self.stretch(lane, step).end
            heapq.heappush(entered, (end - step, lane, end))
        found: list[int] = []
        while len(found) < count:
            after, lane, step = heapq.heappop(entered)
            next_one = self.stretch(lane, step)
            found.append(next_one.block)
            heapq.heappush(entered, (after + next_one.end - step, lane, next_one.end))
        return found

    def _rows_of(self, lane: int, step: int) -> tuple[Stretch, Int64]:
        stretch = self.stretch(lane, step)
        held = self._held.get(lane)
        if held is None or held[0] is not stretch:
            self._held.pop(lane, None)  # never two blocks of one lane at a time
            (piece,) = self.order.pieces(stretch.place, stretch.end - stretch.step)
            held = self._held[lane] = stretch, piece.rows
        return held

    def _below(self, epoch: int, lane: int) -> int:
        """Rows of the lanes before one in the epochs before one."""
        whole, rest = divmod(epoch * self.order.rows, self.lanes)
        return whole * lane + min(rest, lane)

    def _steps(self, lane: int, epoch: int) -> int:
        """Rows of a lane in the epochs before one."""
        return self._below(epoch, lane + 1) - self._below(epoch, lane)
