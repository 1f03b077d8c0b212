"""A dry run: what it says of a build is what the build then takes, and it writes nothing."""

from __future__ import annotations

import json
import signal

import pytest
from click.testing import CliRunner

from softlabels.builder.dry_run import SAMPLE_ROWS, dry_run
from softlabels.cli.main import main
from softlabels.errors import ConfigError, CorpusError, PlanError
from softlabels.teachers import TEACHERS
from tests.fakes import TinyTeacher, build_tiny, config_of, write_corpus
from tests.store.made_up import files_of


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> str:
    return write_corpus(tmp_path_factory.mktemp("dry") / "text", documents=12, repeat=3)


@pytest.fixture(autouse=True)
def _restore_sigterm():
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.mark.parametrize(
    "changes",
    [
        {"estimator": "topk"},
        {"estimator": "topk", "k": 40, "temperature": (1.0, 2.0), "values": "float32"},
        {"estimator": "sampled", "shard_rows": 100},
        {"estimator": "topp", "k": 20, "top_p": 0.6},
        {"estimator": "sampled", "shard_rows": 1, "limit_rows": 20},
        {"estimator": "topk", "shard_rows": 3, "seq_len": 200},
        {"estimator": "topk", "limit_rows": 1},
        {"estimator": "topk", "limit_rows": 9, "shard_rows": 64},
        {"estimator": "topk", "container": "zarr"},
        {"estimator": "topk", "container": "zarr", "profile": "packed"},
    ],
    ids=lambda c: " ".join(map(str, c.values())),
)
def test_it_counts_exactly_and_estimates_bytes_within_a_tenth(corpus, tmp_path, changes):
    estimate = dry_run(config_of(corpus, **changes), tmp_path / "out", teacher=TinyTeacher())
    assert list(tmp_path.iterdir()) == []
    manifest = build_tiny(tmp_path / "out", corpus, **changes)
    counted = manifest.identity.corpus
    assert (estimate.documents, estimate.rows, estimate.tokens, estimate.positions) == (
        counted.documents,
        counted.rows,
        counted.tokens,
        counted.positions,
    )
    assert estimate.shards == len(manifest.shards)
    assert estimate.data_bytes == pytest.approx(manifest.data_bytes, rel=0.1)
    assert estimate.bytes_per_position * estimate.positions == pytest.approx(estimate.data_bytes)
    assert estimate.sample_rows <= 2 * min(SAMPLE_ROWS, changes.get("shard_rows", 8)) + 1
    assert estimate.tokens_per_second > 0
    assert estimate.hours >= estimate.tokens / estimate.tokens_per_second / 3600


def test_it_teaches_the_beginning_and_the_middle(corpus, tmp_path):
    shown = []

    class Watching(TinyTeacher):
        def logits(self, rows):
            shown.extend(r.digest() for r in rows)
            yield from super().logits(rows)

    config = config_of(corpus, limit_rows=40)
    build_tiny(tmp_path / "all", corpus, teacher=Watching(), limit_rows=40)
    rows, shown = list(shown), []
    dry_run(config, tmp_path / "out", teacher=Watching())
    assert shown == [rows[0], *rows[:8], *rows[20:28]]


def test_a_folder_with_a_job_of_its_own(corpus, tmp_path):
    """The same job's folder is left as it is; another's is refused, as the build would."""
    out = tmp_path / "out"
    build_tiny(out, corpus, limit_rows=9)
    before = files_of(out)
    dry_run(config_of(corpus, limit_rows=9), out, teacher=TinyTeacher())
    with pytest.raises(PlanError, match="was planned with targets k = 5"):
        dry_run(config_of(corpus, limit_rows=9, k=6), out, teacher=TinyTeacher())
    assert files_of(out) == before
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "note").write_text("x")
    with pytest.raises(PlanError, match="not empty and not a store"):
        dry_run(config_of(corpus), tmp_path / "mine", teacher=TinyTeacher())


def test_it_refuses_what_the_build_would_refuse(corpus, tmp_path):
    with pytest.raises(ConfigError):
        dry_run(config_of(corpus, k=301), tmp_path / "out", teacher=TinyTeacher())
    (tmp_path / "empty.txt").write_text("")
    with pytest.raises(CorpusError, match="the text is empty"):
        dry_run(config_of(f"text:{tmp_path}/empty.txt"), tmp_path / "out", teacher=TinyTeacher())
    assert not (tmp_path / "out").exists()


def write_large(folder, kind: str, megabytes: int) -> str:
    """A corpus of so many hundred kB: one file, many files, or lines."""
    folder.mkdir()
    text = "".join(f"Sentence {i} of a long text, with words of its own. " for i in range(2000))
    text = (text * 2)[:100_000] * megabytes
    if kind == "one file":
        (folder / "a.txt").write_text(text, encoding="utf-8")
        return f"text:{folder}/a.txt"
    if kind == "files":
        for i in range(10 * megabytes):
            (folder / f"{i:04}.txt").write_text(text[i * 10_000 :][:10_000], encoding="utf-8")
        return f"text:{folder}/*.txt"
    lines = [json.dumps({"text": text[i : i + 400]}) for i in range(0, len(text), 400)]
    (folder / "a.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return f"jsonl:{folder}/a.jsonl"


@pytest.mark.parametrize("kind", ["one file", "files", "lines"])
def test_its_cost_does_not_grow_with_the_corpus(tmp_path, monkeypatch, kind):
    """What is tokenised is the same of 0.2 MB and of 0.8 MB, and what is said of them is within a twentieth."""
    monkeypatch.setattr("softlabels.builder.dry_run.BEGINNING_BYTES", 60_000)
    counted = []
    for megabytes in (2, 8):
        teacher, corpus = TinyTeacher(), write_large(tmp_path / str(megabytes), kind, megabytes)
        letters = 0
        encode = teacher.tokenizer.encode

        def watched(text, encode=encode):
            nonlocal letters
            letters += len(text)
            return encode(text)

        monkeypatch.setattr(teacher.tokenizer, "encode", watched)
        found = dry_run(config_of(corpus, seq_len=256), tmp_path / "out", teacher=teacher)
        counted.append(letters)
        assert 0.05 < found.share < 0.5
        assert found.tokens == pytest.approx(megabytes * 100_000, rel=0.05)
        assert found.shards == pytest.approx(found.rows / 8, abs=1)
    assert max(counted) < 3 * 80_000
    assert counted[1] == pytest.approx(counted[0], rel=0.1)


def test_a_limit_of_rows_bounds_the_estimate(tmp_path, monkeypatch):
    monkeypatch.setattr("softlabels.builder.dry_run.BEGINNING_BYTES", 60_000)
    corpus = write_large(tmp_path / "c", "files", 8)
    for limit, rows, exact in ((50, 50, True), (1000, 1000, False), (10**6, 3200, False)):
        found = dry_run(
            config_of(corpus, seq_len=256, limit_rows=limit),
            tmp_path / "out",
            teacher=TinyTeacher(),
        )
        assert found.rows == pytest.approx(rows, rel=0.05)
        assert (found.share == 1) is exact


# -- the command ----------------------------------------------------------------------------------


@pytest.fixture
def command(corpus, tmp_path, monkeypatch):
    monkeypatch.setattr(TEACHERS, "load", lambda _: lambda argument, options: TinyTeacher())

    def run(*flags: str, exit_code: int = 0):
        job = ["--teacher", "fake:0", "--corpus", corpus, "--seq-len", "64", "--shard-rows", "8"]
        result = CliRunner().invoke(main, ["build", *job, "--out", str(tmp_path / "out"), *flags])
        assert result.exit_code == exit_code, result.output
        assert not (tmp_path / "out").exists()
        return result

    return run


def test_the_command_says_what_a_build_takes(command, tmp_path):
    text = command("--dry-run", "--price-per-hour", "2.5").stdout
    names = [line.split()[0] for line in text.splitlines()]
    assert names == ["corpus", "targets", "size", "speed", "time", "cost", "nothing"]
    assert "at 2.5 USD an hour" in text
    assert ", counted" in text
    assert " EUR, at 0.5 EUR an hour" in command("--dry-run", "--price-per-hour", ".5 eur").stdout
    assert f"nothing was written to {tmp_path / 'out'}" in text
    assert "cost" not in command("--dry-run").stdout


def test_json(command, tmp_path):
    values = json.loads(command("--dry-run", "--json", "--price-per-hour", "3600").stdout)
    assert values["cost"] == pytest.approx(values["hours"] * 3600)
    assert (values["currency"], values["share"]) == ("USD", 1)
    assert values["store"] == str(tmp_path / "out")
    assert values["bytes_per_position"] > 0
    assert json.loads(command("--dry-run", "--json").stdout)["cost"] is None


@pytest.mark.parametrize("price", ["-1", "nan", "inf", "two", "2 dollars"])
def test_an_impossible_price(command, price):
    said = command("--dry-run", "--price-per-hour", price, exit_code=2).stderr
    assert "expected a number of 0 or more" in said


def test_a_price_needs_a_dry_run(command):
    assert (
        "--price-per-hour needs --dry-run" in command("--price-per-hour", "1", exit_code=2).stderr
    )
