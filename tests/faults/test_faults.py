"""Writers against faults: a sample here; `python -m tests.faults` for all (docs/durability.md)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.faults import trace
from tests.faults.bench import Bench, Case, cases_of, open_bench, sample
from tests.faults.disk import Disk, Loss
from tests.faults.power import outages_of
from tests.faults.table import WRITERS, Writer
from tests.faults.trace import Call, Kind, Order, Series

pytestmark = pytest.mark.skipif(
    bool(trace.missing()), reason=f"the fault injector {trace.missing()}"
)
CASES, OUTAGES, SEED = 1, 1, 0
"""Of each writer."""


@pytest.fixture(scope="module")
def bench() -> Iterator[Bench]:
    with ExitStack() as stack:
        yield open_bench(remote=True, watched=True, stack=stack)


@pytest.mark.slow
@pytest.mark.parametrize("name", WRITERS)
def test_a_writer_recovers_from_a_sample_of_faults(bench, name):
    writer = WRITERS[name]
    cases = sample(cases_of(writer, bench.undisturbed(writer).calls), CASES, SEED)
    wrong = [
        f"{case}: {found}"
        for case in cases
        if (found := bench.check(writer, case)) not in (None, "not met")
    ]
    outages = sample(outages_of(bench, writer), OUTAGES, SEED)
    wrong += [f"{o}: {found}" for o in outages if (found := bench.survive(writer, o)) is not None]
    assert wrong == []


# -- the table is complete ---------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_every_command_writes_in_the_table_or_nowhere(bench):
    from softlabels.cli.main import main as softlabels
    from tests.faults.jobs import COMMANDS
    from tests.faults.sites import COMPOSED, READ_ONLY
    from trainers.cli import main as softtrain

    commands = {
        f"{g} {name}"
        for g, main in (("softlabels", softlabels), ("softtrain", softtrain))
        for name in main.commands
    }
    written = {COMMANDS[w.job] for w in WRITERS.values() if w.job in COMMANDS}
    assert commands - written == READ_ONLY.keys() | COMPOSED.keys()
    for job in READ_ONLY.values():
        root = bench.ground(Writer(name="", ground="ground_stores", job=job))
        (ended,) = bench.warm.run((job, root, Order()), environment={})
        assert ended.calls, job
        assert [c for c in ended.calls if c.series is Series.CHANGING] == [], job


PAGED = ", in pages"
"""What a writer of plan or manifest is called where these are in pages."""


def test_what_writes_a_plan_or_a_manifest_is_run_in_pages_too():
    """In a folder, in a bucket, and on the way: where one was not, a build of 16,385 shards ended in a traceback."""
    makers = ("build", "repair", "build, in a bucket", "repair, in a bucket", "push", "pull")
    assert {f"{name}{PAGED}" for name in makers} == {n for n in WRITERS if n.endswith(PAGED)}
    assert all(WRITERS[f"{name}{PAGED}"].remote == WRITERS[name].remote for name in makers)


@pytest.mark.slow
def test_every_place_that_writes_is_run_by_a_writer_of_the_table(bench):
    from tests.faults.sites import EXEMPT, sites

    for writer in WRITERS.values():
        bench.undisturbed(writer)
    run = frozenset[str]().union(*bench.functions.values())
    assert sites().keys() - run == EXEMPT.keys(), (
        "a new writer needs a line in tests/faults/table.py"
    )


# -- the injector finds what it is for ---------------------------------------------------------------------------------


def failures(bench: Bench, job: str, fault: str) -> list[str]:
    writer = Writer(name=job, ground="ground_text", job=job)
    cases = cases_of(writer, bench.undisturbed(writer).calls, [fault])
    return [found for case in cases if (found := bench.check(writer, case)) is not None]


@pytest.mark.slow
def test_a_writer_that_tears_its_file_is_found(bench):
    assert "out.txt is torn or of something else" in failures(bench, "careless", "half")
    assert "out.txt is torn or of something else" in failures(bench, "careless", "kill")


@pytest.mark.slow
def test_an_error_that_ends_in_a_traceback_or_in_silence_is_found(bench):
    assert any("a traceback" in found for found in failures(bench, "careless", "ENOSPC"))
    assert any(
        "exit 0, but" in found or "torn" in found for found in failures(bench, "silent", "ENOSPC")
    )


@pytest.mark.slow
def test_a_writer_that_removes_what_it_cannot_read_is_found(bench):
    assert "text/0.txt is gone" in failures(bench, "grasping", "read ESTALE")


@pytest.mark.slow
def test_a_writer_that_syncs_nothing_is_found_by_the_power_failure(bench):
    writer = Writer(name="forgetful", ground="ground_text", job="forgetful")
    lost = [
        found for o in outages_of(bench, writer) if (found := bench.survive(writer, o)) is not None
    ]
    assert "out.txt was said to be safe, and is torn" in lost
    assert "out.txt was said to be safe, and is lost" in lost


@pytest.mark.slow
def test_a_case_that_is_never_met_is_not_a_success(bench):
    writer = WRITERS["card"]
    assert bench.check(writer, Case("card", "kill", 10**6, "none")) == "not met"


# -- the disk ----------------------------------------------------------------------------------------------------------


def call(kind: Kind, path: str, second: str = "", data: bytes = b"", inode: int = 0) -> Call:
    return Call(Series.CHANGING, kind, False, 0, 0, 0, inode, 0, path, second, data)


ALL, NONE = Loss("", 1.0, "lost"), Loss("", 0.0, "kept")


def test_a_disk_loses_what_was_not_synced_and_nothing_else():
    disk = Disk({"old": b"1"})
    for c in (
        call(Kind.CREATE, "new", inode=1),
        call(Kind.WRITE, "new", data=b"22"),
        call(Kind.SYNC, "new"),
        call(Kind.WRITE, "new", data=b"33"),
        call(Kind.UNLINK, "old"),
    ):
        disk.play(c)
    assert disk.tree() == {"new": b"33"}
    assert disk.after(ALL) == {"new": b"22"}
    assert disk.after(NONE) == {"old": b"1"}
    disk.play(call(Kind.SYNC, "."))
    assert disk.after(NONE) == {"new": b"33"}
    assert disk.after(Loss("", 0.0, "zero")) == {"new": b"22"}


def test_a_synced_file_in_a_folder_that_is_not_is_lost():
    disk = Disk({})
    for c in (
        call(Kind.MKDIR, "a"),
        call(Kind.CREATE, "a/f", inode=1),
        call(Kind.SYNC, "a/f"),
        call(Kind.SYNC, "a"),
    ):
        disk.play(c)
    assert disk.after(NONE) == {}
    disk.play(call(Kind.SYNC, "."))
    assert disk.after(NONE) == {"a/f": b""}


def test_a_rename_is_one_step_and_is_seen_behind_the_traces_back():
    disk = Disk({})
    disk.play(call(Kind.CREATE, "t", inode=7))
    disk.play(call(Kind.SYNC, "."))
    disk.play(call(Kind.SYNC, "f", inode=7))
    assert disk.tree() == {"f": b""}
    assert {tuple(disk.after(Loss("", 0.5, "kept", seed))) for seed in range(20)} == {
        ("t",),
        ("f",),
    }


def test_the_shim_is_compiled_without_a_warning():
    assert isinstance(trace.shim(), Path)
