"""Stopping between steps: Ctrl-C and `kill` let the step in hand finish, so that it can be saved."""

from __future__ import annotations

import signal
import threading
import types
from collections.abc import Callable
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopRequest:
    """While entered, the first SIGINT or SIGTERM sets `asked`; a second one interrupts at once.

    A patient one is not interrupted by a second: torchrun repeats what the terminal has sent to all already, and the
    step in hand needs every process. Torchrun itself ends, after its grace time, those that do not answer.

    Whoever waits for something is woken by `wake`, at the first signal.

    Outside the main thread signals are left alone, and `asked` stays False.
    """

    def __init__(self, *, patient: bool = False, wake: Callable[[], None] = lambda: None) -> None:
        self._patient, self._wake = patient, wake
        self.asked = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            self._before = {s: signal.signal(s, self._ask) for s in SIGNALS}
        return self

    def __exit__(self, *exc: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _ask(self, number: int, frame: types.FrameType | None) -> None:
        if self.asked and not self._patient:
            raise KeyboardInterrupt
        self.asked = True
        self._wake()
