"""What both command lines share: errors without tracebacks, kinds of arguments, results, progress."""

from __future__ import annotations

import errno
import json
import os
import signal
import sys
import threading
import types
from pathlib import Path
from typing import Any, NoReturn

import click

from softlabels.console.options import ALIASES_LINE, SETTINGS
from softlabels.core.allocator import keep_memory
from softlabels.core.durable import error_number, sentence
from softlabels.core.printable import for_terminal, printable
from softlabels.core.progress import Lines, rate_of
from softlabels.core.settings import LOCAL_ONLY, OUT, in_store
from softlabels.errors import SoftLabelsError

INTERRUPTED = 130
SPINS = "2000"
"""Some tens of microseconds, the time between two operations."""


def wait_briefly() -> None:
    """Let torch's threads wait for each other awake, but not for long; must be said before torch is imported.

    Left to libgomp they spin for milliseconds, and a build takes 1.3 to 1.6 times as long as soon as anything else
    uses a core; asleep at once (`OMP_WAIT_POLICY=PASSIVE`), 1.1 times as long on a quiet machine. With so few turns it
    is as fast as the better of both, whether the machine is quiet or not. Other runtimes know only the policy.
    """
    if os.environ.keys().isdisjoint({"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"}):
        os.environ |= {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": SPINS}


class Commands(click.Group):
    """A group whose commands end in a sentence and an exit code, never in a traceback.

    2: bad usage; 1: bad data; 130: interrupted.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        kwargs.setdefault("context_settings", SETTINGS)
        super().__init__(*args, **kwargs, epilog=ALIASES_LINE)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command, turning our errors into messages."""
        signal.signal(signal.SIGTERM, _interrupt)
        threading.excepthook = _thread_failed
        wait_briefly()
        keep_memory()  # before torch and its threads are there
        if not sys.stderr.isatty():
            os.environ.setdefault("TQDM_DISABLE", "1")  # the bars of model libraries, in a log file
        try:
            return super().invoke(ctx)
        except SoftLabelsError as e:
            say(f"error: {e}")
            ctx.exit(e.exit_code)
        except Exception as e:
            if (said := _in_words(e, ctx)) is None:
                raise  # ours to mend: with its traceback
            say(f"error: {said}")
            ctx.exit(1)
        except KeyboardInterrupt:
            say(
                "stopped: what was finished is kept; run the same command again to go on (a training run: add "
                "--resume)"
            )
            ctx.exit(INTERRUPTED)


def _in_words(error: Exception, ctx: click.Context) -> str | None:
    """The sentence of an error that the machine is to blame for, wherever it was raised; None: of any other.

    What writes and reads says more (`durable.explained`); this is for what a library does on its own, and for what
    nobody thought of.
    """
    number = error_number(error)
    if number is None or number == errno.EPIPE:  # a reader that went away is click's to deal with
        return None
    named = getattr(error, "filename", None) or f"{ctx.command_path} {ctx.invoked_subcommand}"
    return sentence(str(named), number, error)


def _thread_failed(arguments: threading.ExceptHookArgs) -> None:
    """A library's own thread, such as TensorBoard's, met a full disk: the command meets it, too, and ends."""
    error = arguments.exc_value
    if error is None or (number := error_number(error)) is None:
        threading.__excepthook__(arguments)
    else:
        named = (
            getattr(error, "filename", None) or f"thread {getattr(arguments.thread, 'name', '')}"
        )
        say(f"error: {sentence(str(named), number, error)}")


def _interrupt(signum: int, frame: types.FrameType | None) -> NoReturn:
    raise KeyboardInterrupt


class LocalPath(click.Path):
    """A path on this machine; an address is refused, not taken for a folder named `s3:`.

    A path that is written to (`--out`, or as said) is refused inside a store.
    """

    def __init__(self, *, file_okay: bool = True, written: bool = False) -> None:
        super().__init__(file_okay=file_okay, path_type=Path)
        self._written = written

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Check and make a `Path`."""
        if "://" in str(value):
            self.fail(f"{value!r}: {LOCAL_ONLY}", param, ctx)
        path: Any = super().convert(value, param, ctx)
        written = self._written or (param is not None and param.name == OUT)
        if written and (trouble := in_store(path)):
            self.fail(trouble, param, ctx)
        return path


class BuildPlace(LocalPath):
    """Where a store is made: a folder (a `Path`), or an address in a bucket (a `str`)."""

    name = "path|url"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Tell one from the other; an address that cannot be written to is refused when it is opened."""
        return str(value) if "://" in str(value) else super().convert(value, param, ctx)


class StorePlace(click.ParamType):  # type: ignore[type-arg,unused-ignore]
    """Where a store is that is only read: a folder (a `Path`), or an address (a `str`)."""

    name = "path|url"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> Path | str:
        """Tell one from the other."""
        return str(value) if "://" in str(value) else Path(value)


def _remember(ctx: click.Context, param: click.Parameter, value: bool) -> None:
    ctx.meta["json"] = value


json_option = click.option(
    "--json",
    "as_json",
    is_flag=True,
    expose_value=False,
    callback=_remember,
    help="Print one JSON object for machines.",
)


def wants_json() -> bool:
    """Whether the command that runs was given --json."""
    return bool(click.get_current_context().meta.get("json"))


def emit(value: dict[str, Any], text: str) -> None:
    """Print a result on stdout: JSON for machines, text for people, in which nothing of others does anything."""
    click.echo(json.dumps(value, sort_keys=True) if wants_json() else for_terminal(text))


def say(message: str) -> None:
    """Print a sentence on stderr, in which nothing of others does anything."""
    click.echo(printable(message), err=True)


class Bar:
    """Progress on stderr: a bar with rate and time left in a terminal; in a log, lines (`softlabels.core.progress`).

    Args:
        quiet: notices only, for what is left out, cut or found on the way is told whoever reads the result.
    """

    def __init__(self, *, quiet: bool = False) -> None:
        self._quiet = quiet
        self._live: Any = None
        self._task: Any = None
        self._unit = ""
        self._lines = None if quiet or sys.stderr.isatty() else Lines(self.notice)

    def notice(self, message: str) -> None:
        """A line for people."""
        if self._live is not None:
            self._live.console.print(printable(message), highlight=False, markup=False)
        else:
            say(message)

    def stage(self, name: str, total: int | None, unit: str, done: int = 0) -> None:
        """Begin a new stage, of which `done` was done before."""
        self.close()
        name = printable(name)
        if self._quiet:
            return
        if self._lines is not None:
            self._lines.stage(name, total, unit, done)
            return
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            DownloadColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )

        of_bytes = unit == "bytes"
        self._unit = unit
        self._live = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            DownloadColumn() if of_bytes else MofNCompleteColumn(),
            TextColumn(("" if of_bytes else unit + "  ") + "{task.fields[rate]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}", markup=False),
            console=Console(stderr=True),
        )
        self._live.start()
        self._task = self._live.add_task(name, total=total, completed=done, rate="", note="")

    def advance(self, amount: int, note: str | None = None) -> None:
        """Progress in the present stage."""
        if self._lines is not None:
            self._lines.advance(amount, note)
        if self._live is None:
            return
        speed = self._live.tasks[0].speed
        fields: dict[str, Any] = {"rate": rate_of(speed, self._unit) if speed else ""}
        if note is not None:
            fields["note"] = printable(note)
        self._live.update(self._task, advance=amount, **fields)

    def close(self, *, stopped: bool = False) -> None:
        """End the present stage."""
        if self._lines is not None:
            self._lines.close(stopped=stopped)
        if self._live is not None:
            self._live.stop()
            self._live = None

    def __enter__(self) -> Bar:
        return self

    def __exit__(self, kind: type[BaseException] | None, *exc: object) -> None:
        self.close(stopped=kind is not None)
