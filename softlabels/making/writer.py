"""Writing one shard while the teacher is at the next: a thread of its own, with at most one shard in it.

So a build holds at most two shards, however many there are: the one that is being written and the one
that is being taught. If the next is taught first, it waits until the thread is free. The claim of the
shard that is being written stays in force, and is renewed, until its record is published.

Whatever ends the build, an error or Ctrl-C, the shard that is being written is finished first: that
takes a moment, and it holds the teacher's finished work.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from types import TracebackType
from typing import Any, Generic, Protocol, TypeVar

R = TypeVar("R")

LOOK = 1.0
"""Seconds between two renewals of claims while there is nothing to do but wait."""


class Held(Protocol):
    """A shard in this builder's hands: a claim, or a part of a lease; a context manager that lets go of it."""

    @property
    def index(self) -> int:
        """Of the shard."""

    def renew(self) -> None:
        """Say that the holder lives."""

    def __enter__(self) -> Any: ...

    def __exit__(self, *error: Any) -> None: ...


class Writer(Generic[R]):
    """The thread that writes; a context manager that waits for it. `R` is what comes of writing a shard."""

    def __init__(self, notice: Callable[[str], None]) -> None:
        """`notice` is told of an error that another error hides."""
        self._notice = notice
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="softlabels-writer")
        self._claim: Held | None = None
        self._task: Future[R] | None = None

    @property
    def index(self) -> int | None:
        """Of the shard that it has in hand, until `finish`; None: it is free."""
        return None if self._claim is None else self._claim.index

    @property
    def has_written(self) -> bool:
        """Whether what it was given is written, so that `finish` does not wait."""
        return self._task is not None and self._task.done()

    def start(self, claim: Held, write: Callable[[], R]) -> None:
        """Run `write` on the thread, then release the claim, whatever came of it."""
        assert self._claim is None, "one shard at a time: call finish first"

        def task() -> R:
            with claim:
                return write()

        self._task = self._thread.submit(task)
        self._claim = claim

    def renew(self) -> None:
        """Say that its claim's holder lives; cheap enough for every chunk of logits.

        Raises:
            Exception: what ended the writing, if something did.
        """
        if self._claim is None or self._task is None:
            return
        if self._task.done():
            if self._task.exception() is not None:
                self.finish()
        else:
            self._claim.renew()

    def finish(self, waiting: Held | None = None) -> tuple[int, R] | None:
        """Wait for the shard in hand: its index and record; None if there is no shard.

        Args:
            waiting: a claim to be renewed meanwhile.

        Raises:
            Exception: what ended the writing, if something did.
        """
        if self._claim is None or self._task is None:
            return None
        while not wait([self._task], timeout=LOOK).done:
            self._claim.renew()
            if waiting is not None:
                waiting.renew()
        claim, task = self._claim, self._task
        self._claim = self._task = None
        return claim.index, task.result()

    def __enter__(self) -> Writer[R]:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        try:
            self.finish()
        except Exception as e:
            if error is None:
                raise
            self._notice(f"while this build was ending, another error: {e}")
        finally:
            self._thread.shutdown()
