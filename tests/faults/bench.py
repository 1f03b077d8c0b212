"""One writer at a time: its undisturbed run, its cases, and whether each is recovered from."""

from __future__ import annotations

import errno
import random
import shutil
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from fnmatch import fnmatch
from functools import cached_property
from pathlib import Path
from tempfile import mkdtemp
from typing import TypeVar

from tests.faults.disk import Disk, Tree, read_tree, write_tree
from tests.faults.essence import (
    File,
    essence,
    is_moved_away,
    is_temporary,
    lines_of,
    look,
    plain,
)
from tests.faults.power import Outage
from tests.faults.table import Writer
from tests.faults.trace import ROOMY, Action, Call, Kind, Order, Series
from tests.faults.warm import Ended, Warm

__all__ = ["FAULTS", "Bench", "Case", "Failure", "cases_of"]

FAULTS: dict[str, tuple[Series, Action, int]] = {
    "kill": (Series.CHANGING, Action.KILL, 0),
    "half": (Series.CHANGING, Action.HALF, 0),
    "short": (Series.CHANGING, Action.SHORT, 0),
    "ENOSPC": (Series.CHANGING, Action.FROM_NOW_ON, errno.ENOSPC),
    "EDQUOT": (Series.CHANGING, Action.FROM_NOW_ON, errno.EDQUOT),
    "EROFS": (Series.CHANGING, Action.FROM_NOW_ON, errno.EROFS),
    "EIO": (Series.CHANGING, Action.ONCE, errno.EIO),
    "read ESTALE": (Series.LOOKING, Action.ONCE, errno.ESTALE),
    "read EIO": (Series.LOOKING, Action.ONCE, errno.EIO),
    "read EACCES": (Series.LOOKING, Action.ONCE, errno.EACCES),
    "read EMFILE": (Series.LOOKING, Action.ONCE, errno.EMFILE),
}
"""By the name under which the table counts them."""
_ONLY_WRITES = {"half", "short"}
_ONLY_ROOMY = {"ENOSPC", "EDQUOT"}
_NOT_OF_READ = {"read EACCES", "read EMFILE"}
"""What only opening a file, a folder or a name can meet."""


State = tuple[tuple[str, str], ...]
"""What a folder holds, in order of names."""


@dataclass(frozen=True)
class Case:
    """One fault in one writer."""

    writer: str
    fault: str
    at: int
    what: str
    """The call, of the undisturbed run."""

    def __str__(self) -> str:
        return f"{self.writer} · {self.fault} at {self.at} ({self.what})"


@dataclass(frozen=True)
class Failure:
    """A case that was not recovered from."""

    case: str
    why: str

    def __str__(self) -> str:
        return f"{self.case}: {self.why}"


@dataclass(frozen=True)
class Undisturbed:
    """What a writer does when nothing goes wrong."""

    tree: Tree
    before: dict[str, str]
    final: dict[str, str]
    legal: dict[str, set[str]]
    """Essences that a name may have: those with which it was published, the first and the last."""
    calls: list[Call]

    @cached_property
    def names(self) -> set[str]:
        """Of the last moment."""
        return set(self.final)


class Bench:
    """A warm process, a folder for cases, and what they start from."""

    def __init__(
        self,
        environment: dict[str, str] | None = None,
        *,
        watched: bool = False,
        like: Bench | None = None,
    ) -> None:
        shm = Path("/dev/shm")
        base = mkdtemp(prefix="softlabels-faults-", dir=shm if shm.is_dir() else None)
        self.scratch = Path(base).resolve()
        self.warm = Warm(self.scratch / "warm")
        self.root = self.scratch / "root"
        self.environment = environment or {}
        self._watched = watched
        self.functions: dict[str, frozenset[str]] = {}
        """Of each writer, the functions of ours that it calls; if they are watched."""
        self._grounds: Path = self.scratch if like is None else like._grounds
        self._undisturbed: dict[str, Undisturbed] = {} if like is None else like._undisturbed
        self._recovered: set[tuple[str, bool, State]] = set() if like is None else like._recovered

    def __enter__(self) -> Bench:
        return self

    def __exit__(self, *_: object) -> None:
        self.warm.close()
        shutil.rmtree(self.scratch)

    def ground(self, writer: Writer) -> Path:
        """What it starts from, made once."""
        folder = self._grounds / writer.ground
        if not folder.exists():
            folder.mkdir()
            (ended,) = self.warm.run((writer.ground, folder, Order()), environment=self.environment)
            assert ended.status == 0, f"{writer.ground}: {ended.why()}"
        return folder

    def fresh(self, writer: Writer) -> None:
        """The case's folder as it is before the writer begins."""
        shutil.rmtree(self.root, ignore_errors=True)
        shutil.copytree(self.ground(writer), self.root)
        if writer.remote:
            self.run_quietly("fill_bucket")

    def run_quietly(self, job: str) -> None:
        """A job that must go well."""
        (ended,) = self.warm.run((job, self.root, Order()), environment=self.environment)
        assert ended.status == 0, f"{job}: {ended.why()}"

    def run(self, job: str, order: Order, *, beside: bool = False) -> Ended:
        """Run a job in the case's folder."""
        jobs = [(job, self.root, order)]
        if beside:
            jobs.append((job, self.root, Order()))
        ended = self.warm.run(*jobs, environment=self.environment)
        if beside:
            assert not ended[1].hung, ended[1].why()
        return ended[0]

    def undisturbed(self, writer: Writer) -> Undisturbed:
        """What it does when nothing goes wrong, once."""
        if writer.name not in self._undisturbed:
            self._undisturbed[writer.name] = self._observe(writer)
        return self._undisturbed[writer.name]

    def _observe(self, writer: Writer) -> Undisturbed:
        self.fresh(writer)
        before = look(self.root)
        tree = read_tree(self.root)
        order = Order(spared=writer.spared)
        (ended,) = self.warm.run(
            (writer.job, self.root, order), watched=self._watched, environment=self.environment
        )
        self.functions[writer.name] = ended.functions
        assert ended.status == writer.exits, f"{writer.name}: {ended.why()}"
        final = look(self.root)
        left = [n for n in final if is_temporary(n)]
        assert not left, f"{writer.name}: leaves {left}"
        legal = {n: {f.essence} for n, f in before.items()}
        for name, file in final.items():
            legal.setdefault(name, set()).add(file.essence)
        disk = Disk(writer.unspared(tree))
        for call in ended.calls:
            if call.series is Series.LOOKING:
                continue
            disk.play(call)
            if call.done and call.kind in (Kind.LINK, Kind.RENAME):
                for name in disk.below(call.second):
                    found = essence(name, disk.content(name) or b"")
                    legal.setdefault(plain(name), set()).add(found)
        for path in self.root.rglob("*"):
            name = path.relative_to(self.root).as_posix()
            if path.is_file() and not writer.spares(name):
                disk.renamed(name, path.stat().st_ino)
        for name in [n for n in legal if writer.spares(n)]:
            del legal[name]
        assert disk.tree() == writer.unspared(read_tree(self.root)), (
            f"{writer.name}: the trace has a hole"
        )
        return Undisturbed(
            tree,
            {n: f.essence for n, f in before.items()},
            {n: f.essence for n, f in final.items()},
            legal,
            ended.calls,
        )

    # -- a case ------------------------------------------------------------------------------------------------------

    def check(self, writer: Writer, case: Case) -> str | None:
        """Meet the fault and recover; returns what is wrong, None if nothing is, or `not met`."""
        normal = self.undisturbed(writer)
        series, action, error = FAULTS[case.fault]
        self.fresh(writer)
        before = look(self.root)
        ended = self.run(
            writer.job, Order(series, case.at, action, error, writer.spared), beside=writer.beside
        )
        met = ended.fired
        if met is not None and case.fault in _ONLY_WRITES and met.kind is not Kind.WRITE:
            met = None  # two processes beside each other do not always call in the same order
        if met is None and _well(ended, writer):
            return "not met"
        return next((wrong for wrong in self._judge(writer, normal, before, ended, action)), None)

    def _judge(
        self,
        writer: Writer,
        normal: Undisturbed,
        before: dict[str, File],
        ended: Ended,
        action: Action,
    ) -> Iterator[str]:
        yield from _told(ended, writer, killed=action in (Action.KILL, Action.HALF))
        after = look(self.root)
        yield from _kept(writer, normal, before, after)
        if _well(ended, writer):
            settled = {n: f for n, f in after.items() if not writer.passes(n.removesuffix("/"))}
            yield from (
                f"exit {ended.status}, but {d}" for d in _differences(writer, normal, settled)
            )
            if len(settled) == len(after):
                return  # and there is nothing to finish
        if after == before and ended.status != -9:
            return  # it was refused before it began
        complete = not list(_differences(writer, normal, _lasting(after)))
        seen = (writer.name, complete, _state(after))
        if seen in self._recovered and not writer.remote:
            return  # many faults leave one and the same folder
        wrong = list(self.recover(writer, normal, before, complete=complete))
        yield from wrong
        if not wrong:
            self._recovered.add(seen)

    def survive(self, writer: Writer, outage: Outage) -> str | None:
        """Begin with what a power failure left; returns what is wrong, None if nothing is."""
        normal = self.undisturbed(writer)
        self.fresh(writer)
        shutil.rmtree(self.root)
        self.root.mkdir()
        write_tree(self.root, outage.tree)
        for name, file in normal.tree.items():  # what the writer's trace does not cover
            if writer.spares(name):
                write_tree(self.root, {name: file})
        return next((wrong for wrong in self._judge_outage(writer, normal, outage)), None)

    def _judge_outage(self, writer: Writer, normal: Undisturbed, outage: Outage) -> Iterator[str]:
        before = look(self.root)
        for name, legal in outage.safe.items() if writer.promises else ():
            found = before[name].essence if name in before else None
            grown = (
                found is not None
                and writer.grows(name)
                and any(_begins(found, x) for x in legal if x is not None)
            )
            if found not in legal and not grown:
                yield f"{name} was said to be safe, and is {'lost' if found is None else 'torn'}"
        complete = not list(_differences(writer, normal, _lasting(before)))
        again = self.run(writer.finish, Order())
        if not _well(again, writer) and not (writer.once and complete and again.status == 2):
            yield f"it is not finished by {writer.finish!r}: {again.why()}"
        yield from (f"finished, but {d}" for d in _differences(writer, normal, look(self.root)))

    def recover(
        self, writer: Writer, normal: Undisturbed, before: dict[str, File], *, complete: bool
    ) -> Iterator[str]:
        """Finish what was begun, and compare."""
        again = self.run(writer.finish, Order())
        if not _well(again, writer) and not (writer.once and complete and again.status == 2):
            yield f"it is not finished by {writer.finish!r}: {again.why()}"
        last = look(self.root)
        yield from _kept(writer, normal, before, last)
        yield from (f"finished, but {d}" for d in _differences(writer, normal, last))


def _well(ended: Ended, writer: Writer) -> bool:
    """Whether it ended as it does without a fault."""
    if writer.declined(ended.output):
        return False
    return ended.status == writer.exits and (
        writer.says in ended.output if writer.says else not ended.refused
    )


def _lasting(files: dict[str, File]) -> dict[str, File]:
    """Those that are not being written."""
    return {name: file for name, file in files.items() if not is_temporary(name)}


def _state(files: dict[str, File]) -> State:
    """What the next process finds: contents by name, of temporary files and claims without who made them."""

    def what(name: str, file: File) -> tuple[str, str]:
        parts = [".tmp" if part.startswith(".tmp-") else part for part in Path(name).parts]
        claim = "claims" in parts and not file.essence.startswith("torn")
        return "/".join(parts), "a claim" if claim else file.essence

    return tuple(sorted(what(name, file) for name, file in files.items()))


def _begins(longer: str, shorter: str) -> bool:
    """Whether a log has all whole lines of another."""
    return lines_of(longer)[: len(lines_of(shorter))] == lines_of(shorter)


def _told(ended: Ended, writer: Writer, *, killed: bool) -> Iterator[str]:
    """Whether it ended as promised: killed, well, or in a sentence."""
    if ended.hung:
        yield ended.why()
    if killed and ended.fired is not None:
        if ended.status != -9:
            yield f"was to be killed: {ended.why()}"
        return
    if _well(ended, writer) or writer.declined(ended.output):
        return
    if "Traceback" in ended.output:
        yield f"a traceback: {ended.why()}"
    elif ended.status not in (1, 2) or not ended.refused:
        yield f"no sentence: {ended.why()}"


def _kept(
    writer: Writer, normal: Undisturbed, before: dict[str, File], after: dict[str, File]
) -> Iterator[str]:
    """Whether foreign files are as they were, and every name shows what was published under it."""
    for name, file in before.items():
        now = after.get(name)
        if not writer.changes(name) and now != file and not name.endswith("/"):
            what = (
                "is gone"
                if now is None
                else "was replaced"
                if now.inode != file.inode
                else "was altered"
            )
            yield f"{name} {what}"
        if (
            now is None
            and name in normal.final
            and not is_moved_away(name, after)
            and not is_temporary(name)
            and not writer.withdraws(name)
            and not writer.is_untold(name)
            and not name.endswith("/")
        ):
            yield f"{name} is gone"
    for name, file in after.items():
        if (
            name.endswith("/")
            or is_temporary(name)
            or writer.is_untold(name)
            or writer.passes(name)
        ):
            continue
        legal = normal.legal.get(name)
        if legal is None:
            yield f"{name} is there, of which an undisturbed run knows nothing"
        elif file.essence not in legal and not (
            writer.grows(name) and any(_begins(x, file.essence) for x in legal)
        ):
            yield f"{name} is torn or of something else"


def _differences(writer: Writer, normal: Undisturbed, after: dict[str, File]) -> Iterator[str]:
    """How a finished folder is not what it should be."""
    for name in sorted(normal.names | set(after)):
        if writer.is_untold(name):
            continue
        if name not in after:
            yield f"{name} is missing"
        elif name not in normal.final:
            if name in normal.legal and any(fnmatch(name, p) for p in writer.may_stay):
                continue
            yield f"{name} is left over"
        elif after[name].essence != normal.final[name]:
            yield f"{name} differs"


# -- which cases -------------------------------------------------------------------------------------------------------


def cases_of(
    writer: Writer, calls: Sequence[Call], faults: Sequence[str] = tuple(FAULTS)
) -> list[Case]:
    """Every fault at every call that can meet it."""
    found = []
    for fault in faults:
        series = FAULTS[fault][0]
        for call in calls:
            if call.series is not series or not fnmatch(call.path, writer.only):
                continue
            if fault in _ONLY_WRITES and (call.kind is not Kind.WRITE or len(call.data) < 2):
                continue
            if fault in _ONLY_ROOMY and call.kind not in ROOMY:
                continue
            if fault in _NOT_OF_READ and call.kind is Kind.LOOK_READ:
                continue
            if fault == "read EMFILE" and call.kind is Kind.LOOK_STAT:
                continue
            found.append(
                Case(writer.name, fault, call.number, f"{call.kind.name.lower()} {call.path}")
            )
    return found


C = TypeVar("C", Case, Outage, Case | Outage)


def sample(cases: Sequence[C], count: int, seed: int) -> list[C]:
    """So many of them, the same ones for the same seed."""
    rng = random.Random(f"{seed} {cases[0].writer if cases else ''}")
    return sorted(rng.sample(list(cases), min(count, len(cases))), key=lambda c: (c.fault, c.at))


def open_bench(
    *, remote: bool, stack: ExitStack, watched: bool = False, like: Bench | None = None
) -> Bench:
    """A bench; with a service that speaks S3 beside it, if any writer asks for one.

    `like`: begin with what another has prepared, and compare with what it has observed.
    """
    environment = {}
    if remote:
        from tests.faults.service import own_service
        from tests.store.s3 import environment as s3_environment

        environment = s3_environment(stack.enter_context(own_service()), Path("unused"))
        del environment["SOFTLABELS_CACHE"]
    return stack.enter_context(Bench(environment, watched=watched, like=like))
