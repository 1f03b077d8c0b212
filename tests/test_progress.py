"""Progress as a log file shows it: a line when a stage begins, one every so many seconds, one at its end."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal

import pytest
from click.testing import CliRunner

from softlabels.cli.main import main
from softlabels.core.progress import INTERVAL, Lines, Silent, amount_of, duration, interval, rate_of
from softlabels.corpora import open_corpora
from softlabels.corpora.packing import CorpusCounts, pack
from softlabels.corpora.survey import SurveyProgress
from softlabels.errors import ConfigError
from softlabels.format.manifest import load_manifest
from softlabels.teachers import TEACHERS
from tests.fakes import ByteTokenizer, write_corpus


class Clock:
    """Seconds that the test sets."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def log(clock):
    written: list[str] = []
    return written, Lines(written.append, seconds=30, clock=clock)


@pytest.fixture(autouse=True)
def _restore_sigterm():
    """The commands install a handler of their own."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


def test_a_stage_of_which_the_whole_is_known(log, clock):
    written, lines = log
    lines.stage("teach", 10_000, "positions")
    for second in range(1, 101):
        clock.now = second
        lines.advance(50)
    lines.close()
    assert written == [
        "teach: 10,000 positions to do",
        "teach: 1,500 of 10,000 positions (15%), 50/s, 2 min 50 s left",
        "teach: 3,000 of 10,000 positions (30%), 50/s, 2 min 20 s left",
        "teach: 4,500 of 10,000 positions (45%), 50/s, 1 min 50 s left",
        "teach: done, 5,000 positions in 1 min 40 s, 50/s",
    ]


def test_what_was_done_before_does_not_count_in_the_rate(log, clock):
    """A resumed run of 2,000 steps does not look as if it had taken 1,000 steps in its first second."""
    written, lines = log
    lines.stage("train", 2_000, "steps", 1_000)
    clock.now = 40.0
    lines.advance(20, "loss 3.2")
    assert written[0] == "train: 2,000 steps to do, 1,000 steps done before"
    assert written[1] == "train: 1,020 of 2,000 steps (51%), 0.50/s, 32 min 40 s left, loss 3.2"


def test_the_last_note_stays(log, clock):
    written, lines = log
    lines.stage("train", 100, "steps")
    lines.advance(1, "loss 3.2")
    clock.now = 31.0
    lines.advance(1)
    assert written[-1].endswith(", loss 3.2")


def test_bytes_and_an_unknown_whole(log, clock):
    written, lines = log
    lines.stage("tokenise", 4_000_000, "bytes")
    clock.now = 30.0
    lines.advance(1_000_000, "300 rows")
    lines.stage("verify", None, "shards")  # ends the one before
    clock.now = 60.0
    lines.advance(7)
    lines.close(stopped=True)
    assert written == [
        "tokenise: 4.0 MB to do",
        "tokenise: 1.0 of 4.0 MB (25%), 0.03 MB/s, 1 min 30 s left, 300 rows",
        "tokenise: done, 1.0 MB in 30 s, 0.03 MB/s, 300 rows",
        "verify: begins",
        "verify: 7 shards so far, 0.23/s",
        "verify: stopped, 7 shards in 30 s, 0.23/s",
    ]


def test_nothing_to_do_and_nothing_begun(log):
    written, lines = log
    lines.advance(1)
    lines.close()
    assert written == []
    lines.stage("teach", 0, "positions")
    lines.advance(0)
    lines.close()
    assert written == ["teach: 0 positions to do", "teach: done, 0 positions in 0 s"]


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (0.25, "0.2 s"),
        (0, "0 s"),
        (9.96, "10 s"),
        (59.4, "59 s"),
        (59.6, "1 min"),
        (3_599.7, "1 h"),
        (7_500, "2 h 5 min"),
        (90_000, "1 d 1 h"),
    ],
)
def test_durations(seconds, said):
    assert duration(seconds) == said


def test_amounts_and_rates():
    assert amount_of(1234, "rows", of=56789) == "1,234 of 56,789 rows"
    assert amount_of(1234, "bytes") == "1.2 kB"
    assert amount_of(1234, "bytes", of=2_000_000) == "0.0 of 2.0 MB"
    assert rate_of(1234.5, "rows") == "1,234/s"
    assert rate_of(0.123, "rows") == "0.12/s"
    assert rate_of(2_500_000, "bytes") == "2.50 MB/s"


def test_the_interval_is_the_environment_s(monkeypatch):
    monkeypatch.delenv(INTERVAL, raising=False)
    assert interval() == 30
    monkeypatch.setenv(INTERVAL, "0.5")
    assert interval() == 0.5
    for wrong in ("soon", "-1", "inf", "nan"):
        monkeypatch.setenv(INTERVAL, wrong)
        with pytest.raises(ConfigError, match=f"{INTERVAL}={wrong}: expected seconds"):
            interval()


# -- a pass over a corpus -------------------------------------------------------------------------


class Reporter(Silent):
    """Remembers the present stage."""

    def stage(self, name: str, total: int | None, unit: str) -> None:
        self.total, self.unit, self.done, self.note = total, unit, 0, ""

    def advance(self, amount: int, note: str | None = None) -> None:
        self.done, self.note = self.done + amount, note


def survey(spec: str, *, rows: int | None = None, passes: int = 1) -> Reporter:
    corpora, counts, report = open_corpora([spec]), CorpusCounts(), Reporter()
    progress = SurveyProgress(report, corpora, counts, rows=rows, passes=passes)
    for _ in range(passes):
        for _, row in pack(corpora, ByteTokenizer(), seq_len=64, vocab_size=300, counts=counts):
            progress.row(row.size)
    progress.end()
    return report


def write_kinds(folder) -> dict[str, str]:
    """One corpus in each kind of file, as specs."""
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    texts = [f"Text {i} has words. " * 9 for i in range(40)]
    (folder / "lines.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in texts))
    table = pa.table({"text": texts})
    parquet.write_table(table, folder / "x.parquet")
    saved = folder / "saved"
    saved.mkdir()
    with pa.ipc.new_stream(saved / "data.arrow", table.schema) as stream:
        stream.write_table(table)
    (saved / "state.json").write_text(json.dumps({"_data_files": [{"filename": "data.arrow"}]}))
    return {
        "text": write_corpus(folder / "texts"),
        "jsonl": f"jsonl:{folder}/lines.jsonl",
        "parquet": f"parquet:{folder}/x.parquet",
        "dataset": f"dataset:{saved}",
    }


@pytest.mark.parametrize("kind", ["text", "jsonl", "parquet", "dataset"])
@pytest.mark.parametrize("passes", [1, 2])
def test_a_pass_counts_bytes_to_the_end(tmp_path, kind, passes):
    found = survey(write_kinds(tmp_path)[kind], passes=passes)
    assert found.unit == "bytes"
    assert found.done == pytest.approx(found.total, abs=40)
    assert found.total > 1000 * passes
    assert " rows, " in found.note
    assert found.note.endswith(" tokens")


def test_a_pass_with_a_limit_counts_rows(tmp_path):
    found = survey(write_corpus(tmp_path), rows=1000)
    assert (found.unit, found.total) == ("rows", 1000)
    assert found.note.startswith("3 documents, ")


# -- the command ----------------------------------------------------------------------------------


@pytest.mark.parametrize("as_json", [False, True])
def test_a_build_without_a_terminal(tmp_path, monkeypatch, as_json):
    """Progress on stderr, whatever is printed on stdout; there, with --json, one object."""
    monkeypatch.setitem(TEACHERS.builtin, "fake", "tests.fakes:load_tiny")
    monkeypatch.setenv(INTERVAL, "0")
    job = ["--corpus", write_corpus(tmp_path / "corpus"), "--teacher", "fake:0", "--k", "5"]
    job += ["--seq-len", "64", "--shard-rows", "8", "--out", str(tmp_path / "store")]
    result = CliRunner().invoke(main, ["build", *job, *(["--json"] if as_json else [])])
    assert result.exit_code == 0, result.output
    lines = result.stderr.splitlines()
    assert lines[0] == "loading the teacher fake:0"
    assert sum(re.match(r"tokenise: \d\.\d kB to do", line) is not None for line in lines) == 1
    taught = [line for line in lines if line.startswith("teach: ")]
    assert taught[0].endswith(" positions to do")
    assert any(" left" in line and "%" in line for line in taught)
    assert taught[-1].startswith("teach: done, ")
    if as_json:
        assert json.loads(result.stdout)["rows"] > 0
        return
    summary = dict(line.split(maxsplit=1) for line in result.stdout.splitlines())
    assert list(summary) == ["store", "rows", "targets", "teacher", "look", "train"]
    manifest = load_manifest(tmp_path / "store")
    loss = manifest.statistics.teacher_nll / manifest.identity.corpus.positions
    assert f"loss {loss:.3f} nats per token" in summary["teacher"]
    assert " bytes each (sampled, k=5)" in summary["targets"]
    looked = CliRunner().invoke(main, shlex.split(summary["look"])[1:])
    assert looked.exit_code == 0, "the next command works as printed"
    assert summary["train"] == f"softtrain run --store {tmp_path}/store --student new:10M --out run"


def test_model_libraries_draw_no_bars_in_a_log(monkeypatch, tmp_path):
    monkeypatch.delenv("TQDM_DISABLE", raising=False)
    CliRunner().invoke(main, ["inspect", str(tmp_path)])
    assert os.environ["TQDM_DISABLE"] == "1"
