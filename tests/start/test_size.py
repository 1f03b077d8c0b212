"""`softlabels size`: estimates that lie near what was measured, and say what they assume."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner

from softlabels.cli.main import main
from softlabels.start.sizing import bytes_per_position, hours_of, kept_ids, speed_of
from tests.fakes import write_corpus
from tests.teachers.tiny import write_model

V = 49_152
MEASURED = [
    # docs/benchmarks.md, the demo; the store; docs/fidelity.md, two texts
    ("sampled", 12, "open", True, 33.2),
    ("topk", 50, "open", True, 155.7),
    ("sampled", 12, "packed", False, 17.1),
    ("sampled", 12, "packed", False, 18.3),
    ("sampled", 12, "open", False, 28.7),
    ("topk", 50, "packed", False, 79.9),
    ("topk", 50, "packed", False, 84.3),
    ("topk", 50, "open", False, 151),
    ("topk", 64, "open", False, 191),
    ("rs", 35, "packed", False, 16.7),
    ("rs", 35, "packed", False, 20.2),
    ("rs", 95, "packed", False, 30.76),
    ("systematic", 35, "packed", False, 17.67),
    ("systematic", 35, "packed", False, 21.3),
]


@pytest.mark.parametrize(("estimator", "k", "profile", "summary", "measured"), MEASURED)
def test_within_15_per_cent_of_what_was_measured(estimator, k, profile, summary, measured):
    found = bytes_per_position(
        estimator=estimator,
        k=k,
        vocab_size=V,
        sample=estimator != "topk",
        profile=profile,
        summary=summary,
    )
    assert found == pytest.approx(measured, rel=0.15)


def test_more_of_anything_takes_more():
    def size(**changes):
        values = {"estimator": "topk", "k": 50, "vocab_size": V, "sample": False} | changes
        return bytes_per_position(**values)

    assert size() < size(k=51)
    assert size() < size(vocab_size=4 * V)
    assert size(temperatures=3) == pytest.approx(size() + 2.6)
    assert size(summary=False) < size()
    assert size(k=10, vocab_size=5) == size(k=5, vocab_size=5)
    assert kept_ids("rs", 4) <= 4


def test_hours_and_speed():
    assert hours_of(7200, 2) == 1
    assert hours_of(7200, 2, tokenise_seconds=1800) == 2
    assert speed_of(134_515_008, "cpu") == pytest.approx(861, rel=0.01)


def run(*flags: str, exit_code: int = 0):
    result = CliRunner().invoke(main, ["size", *flags])
    assert result.exit_code == exit_code, result.output
    return result


def test_numbers_alone():
    flags = ["--tokens", "1e9", "--vocab", "152000", "--k", "12"]
    value = json.loads(
        run(*flags, "--gpu-tokens-per-second", "1e4", "--price-per-hour", "2EUR", "--json").stdout
    )
    assert value["positions"] == 10**9
    assert value["dense_fp16_bytes"] == 304_000 * 10**9
    assert value["data_bytes"] == pytest.approx(10**9 * value["bytes_per_position"])
    assert value["hours"] == pytest.approx(1e5 / 3600)
    assert (value["cost"], value["currency"]) == (pytest.approx(2e5 / 3600), "EUR")
    assert len(value["assumed"]) == 1
    text = run(*flags, "--teacher-params", "8e9").stdout
    assert "assumed: a GPU that does 1e14 operations a second" in text
    assert "6,250 tokens/s" in text
    assert "not known: give --gpu-tokens-per-second" in run(*flags).stdout
    assert "a vocabulary of 49,152 ids; give --vocab" in run("--tokens", "5").stdout


def test_a_job(tmp_path):
    teacher = write_model(tmp_path / "teacher")
    corpus = write_corpus(tmp_path / "c")
    job = tmp_path / "job.toml"
    job.write_text(f'teacher = "hf:{teacher}"\ncorpus = ["{corpus}"]\nseq_len = 64\nk = 9\n')
    value = json.loads(run(str(job), "--json").stdout)
    assert value["positions"] > 100
    assert value["hours"] > 0
    assert value["dense_fp16_bytes"] == value["positions"] * 832
    more = json.loads(run(str(job), "--estimator", "dense", "--k", "416", "--json").stdout)
    assert more["data_bytes"] > 5 * value["data_bytes"]


def test_nothing_to_size():
    assert "--tokens is missing" in run(exit_code=2).stderr
