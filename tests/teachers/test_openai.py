"""`openai:`: a loopback server that computes with a real model gives the targets of `hf:` on that model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from softlabels.builder.build import build
from softlabels.builder.config import BuildConfig
from softlabels.builder.dry_run import dry_run
from softlabels.errors import ConfigError, TeacherError
from softlabels.store.reader import open_store
from softlabels.teachers import TeacherOptions, open_teacher
from softlabels.teachers import server as server_module
from softlabels.teachers.listing import FLOOR
from tests.fakes import Notices
from tests.teachers.server import serve
from tests.teachers.test_hf import PACKAGE, needs_teacher
from tests.teachers.tiny import VOCAB, rows_of, write_model, write_texts

TOLERANCE = 1e-4
"""Nats of a log-probability, and 1e-6 of the tail's mass: what float32 log-probabilities leave of both."""


@pytest.fixture(scope="module")
def ground(tmp_path_factory):
    folder = tmp_path_factory.mktemp("openai")
    write_model(folder / "model")
    write_texts(folder / "corpus")
    return folder


@pytest.fixture(scope="module")
def hf(ground):
    return open_teacher(f"hf:{ground}/model", TeacherOptions(dtype="float32"))


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch):
    monkeypatch.setattr(server_module, "PAUSES", (0.01, 0.01, 0.01))


@pytest.fixture(params=["prompt_logprobs", "token_id"])
def server(request, hf):
    with serve(hf, request.param) as (completions, url):
        yield completions, url


def spec_of(url: str, folder: Path, more: str = f"&vocab={VOCAB}") -> str:
    return f"openai:{url}?tokenizer={folder}/model{more}"


def config_of(ground: Path, teacher: str, **changes) -> BuildConfig:
    values = {
        "teacher": teacher,
        "corpus": (f"text:{ground}/corpus/*.txt",),
        "estimator": "topk",
        "k": 6,
        "seq_len": 48,
        "values": "float32",
        "shard_rows": 3,
    }
    return BuildConfig(**(values | changes))


def check_equal(a: Path, b: Path) -> None:
    for mine, theirs in zip(open_store(a), open_store(b), strict=True):
        np.testing.assert_array_equal(mine.targets.ids, theirs.targets.ids)
        x, y = mine.targets, theirs.targets
        np.testing.assert_allclose(x.log_probs(1.0), y.log_probs(1.0), atol=TOLERANCE)
        np.testing.assert_allclose(x.tail(1.0), y.tail(1.0), rtol=1e-4, atol=1.01 * FLOOR)
    nlls = [open_store(s).manifest.statistics.teacher_nll for s in (a, b)]
    assert nlls[0] == pytest.approx(nlls[1], rel=1e-5)


def test_stores_of_both_are_equal_within_rounding(ground, hf, server, tmp_path):
    completions, url = server
    build(config_of(ground, "hf:x"), tmp_path / "hf", teacher=hf)
    notices = Notices()
    manifest = build(config_of(ground, spec_of(url, ground)), tmp_path / "openai", reporter=notices)
    check_equal(tmp_path / "hf", tmp_path / "openai")
    record = manifest.identity.teacher
    assert (record.spec, record.vocab_size, record.device) == ("openai:tiny", VOCAB, "server")
    assert (
        "| tiny, size not known, server on server," in (tmp_path / "openai/README.md").read_text()
    )
    assert len(completions.bodies[0]["prompt"]) == 2, "asked once before anything is tokenised"
    asked = [tuple(b["prompt"]) for b in completions.bodies[2:]]
    assert len(set(asked)) == len(asked) > 9, "each piece once"
    assert all(("echo" in b) == (completions.style == "token_id") for b in completions.bodies[2:])
    raised = [line for line in notices.lines if "rounding hides" in line]
    tails = np.concatenate([r.targets.tail(1.0) for r in open_store(tmp_path / "openai")])
    assert bool(raised) == bool((tails <= FLOOR * 1.001).any())


def test_a_server_that_fails_for_a_while_is_asked_again(ground, hf, server, tmp_path):
    completions, url = server
    completions.failures = [503, 429, 0]
    notices = Notices()
    build(config_of(ground, spec_of(url, ground)), tmp_path / "s", reporter=notices)
    again = [line for line in notices.lines if "trying again" in line]
    assert len(again) == 3
    assert "answered 503 (busy)" in again[0]


def test_a_server_that_stays_away_ends_the_build_and_shards_are_kept(ground, hf, tmp_path):
    with serve(hf) as (completions, url):
        config = config_of(ground, spec_of(url, ground), shard_rows=1)
        teacher = open_teacher(config.teacher, TeacherOptions())
        answer, left = completions.answer, [9]

        def tiring(body):
            left[0] -= 1
            return answer(body) if left[0] > 0 else (503, {})

        completions.answer = tiring
        with pytest.raises(
            TeacherError, match=r"answered 503.*4 times in a row; finished shards are"
        ):
            build(config, tmp_path / "s", teacher=teacher)
        done = len(list((tmp_path / "s" / "commits").iterdir()))
        completions.answer = answer
        before = len(completions.bodies)
        manifest = build(config, tmp_path / "s")
        assert 0 < done < len(manifest.shards)
        assert len(completions.bodies) - before < before
    build(config_of(ground, "hf:x", shard_rows=1), tmp_path / "hf", teacher=hf)
    check_equal(tmp_path / "hf", tmp_path / "s")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"estimator": "sampled"},
            "--estimator sampled: openai:tiny lists .* use --estimator topk",
        ),
        ({"estimator": "topp", "top_p": 0.9}, "--estimator topp: openai:tiny lists"),
        ({"temperature": (1.0, 2.0)}, "--temperature 1, 2: .* so the tail at another is unknown"),
        ({"positions": "entropy:0.5"}, "--positions entropy:0.5: .* use random:SHARE"),
        ({"k": 21}, "--k 21: .*answered 400 .*greater than max allowed: 20"),
    ],
)
def test_what_a_list_does_not_determine_is_refused(ground, server, tmp_path, changes, words):
    config = config_of(ground, spec_of(server[1], ground), **changes)
    for run in (build, dry_run):
        with pytest.raises(ConfigError, match=words):
            run(config, tmp_path / "s")
    assert not (tmp_path / "s").exists()


def test_random_positions_are_taught(ground, server, tmp_path):
    config = config_of(ground, spec_of(server[1], ground), positions="random:0.5")
    manifest = build(config, tmp_path / "s")
    assert 0 < manifest.statistics.soft_positions < manifest.identity.corpus.positions


@pytest.mark.parametrize("style", ["text", "none"])
def test_a_server_without_ids_is_refused(ground, hf, tmp_path, style):
    with serve(hf, style) as (_, url):
        config = config_of(ground, spec_of(url, ground))
        with pytest.raises(ConfigError, match="no log-probabilities of the prompt by token id"):
            build(config, tmp_path / "s")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda p: p + 1.0, "sum to .* not those at T=1"),
        (lambda p: np.where(p > -9, np.nan, p), "NaN or infinite"),
    ],
)
def test_lists_that_are_no_log_probabilities_are_refused(ground, hf, change, words):
    with serve(hf) as (completions, url):
        completions.change = change
        teacher = open_teacher(spec_of(url, ground), TeacherOptions())
        rows = rows_of(teacher, f"text:{ground}/corpus/*.txt")
        with pytest.raises(TeacherError, match=words):
            list(teacher.listed(rows, 12))


def test_ids_beyond_the_vocabulary_are_refused(ground, hf):
    with serve(hf) as (_, url):
        teacher = open_teacher(spec_of(url, ground, ""), TeacherOptions())
        rows = rows_of(teacher, f"text:{ground}/corpus/*.txt")
        with pytest.raises(TeacherError, match=r"beyond the vocabulary of \d+ ids; .* \?vocab=N"):
            list(teacher.listed(rows, 20))


def test_it_has_no_logits(ground, hf):
    with serve(hf) as (_, url):
        teacher = open_teacher(spec_of(url, ground), TeacherOptions())
        with pytest.raises(TeacherError, match="has no logits to give"):
            teacher.logits([])


def test_the_key_is_sent_to_the_server_and_nowhere_else(ground, hf, monkeypatch):
    monkeypatch.setenv("SOFTLABELS_API_KEY", "secret")
    with serve(hf) as (completions, url):
        teacher = open_teacher(spec_of(url, ground), TeacherOptions())
        completions.failures = [302, 302]
        with pytest.raises(ConfigError, match="answered 302") as found:
            teacher.check_k(3)
        assert "secret" not in str(found.value)
        assert completions.keys == ["Bearer secret"] * 2


def test_the_record_says_what_can_be_known(ground, hf):
    digest = "ab" * 32
    notices: list[str] = []
    options = TeacherOptions(notice=notices.append)
    with serve(hf) as (_, url):
        plain = open_teacher(spec_of(url, ground), options).record
        assert len(notices) == 1
        assert "records the model's name only" in notices[0]
        vouched = open_teacher(
            spec_of(url, ground, f"&vocab={VOCAB}&weights_sha256={digest}"), options
        )
        assert len(notices) == 1
        assert plain == replace_digest(vouched.record, plain.weights_sha256) != vouched.record
        resumed = open_teacher(spec_of(url, ground), replace(options, dtype="server"))
        assert resumed.record == plain


def replace_digest(record, digest):
    import msgspec

    return msgspec.structs.replace(record, weights_sha256=digest)


def test_other_mistakes_are_refused(ground, hf):
    for spec, words in (
        ("openai:localhost:8000", r"expected openai:http://HOST"),
        (f"openai:http://h/v1?tokenizer={ground}/model&key=x", "expected openai:http"),
        (f"openai:http://h/v1?tokenizer={ground}/model&vocab=x", "expected openai:http"),
        ("openai:http://h/v1", r"give \?tokenizer=PATH"),
    ):
        with pytest.raises(ConfigError, match=words):
            open_teacher(spec, TeacherOptions())
    with serve(hf) as (completions, url):
        with pytest.raises(ConfigError, match="--dtype float16: is the server's affair"):
            open_teacher(spec_of(url, ground), TeacherOptions(dtype="float16"))
        with pytest.raises(ConfigError, match="has no fewer"):
            open_teacher(spec_of(url, ground, "&vocab=7"), TeacherOptions())
        completions.models = ["a", "b"]
        with pytest.raises(TeacherError, match=r"serves 2 models \(a, b\)"):
            open_teacher(spec_of(url, ground), TeacherOptions())
        assert open_teacher(spec_of(url, ground, f"&model=b&vocab={VOCAB}"), TeacherOptions())
    with pytest.raises(TeacherError, match=r"cannot be read .*4 times in a row"):
        open_teacher(spec_of(url, ground), TeacherOptions())


class TestRealTeacher:
    pytestmark = needs_teacher

    def test_a_server_around_the_real_teacher_gives_its_targets(self, tmp_path):
        hf = open_teacher(f"hf:{Path(PACKAGE.origin).parent}", TeacherOptions(dtype="float32"))
        (tmp_path / "model").mkdir()
        for name, data in hf.tokenizer.files().items():
            (tmp_path / "model" / name).write_bytes(data)
        (tmp_path / "corpus").mkdir()
        for i, text in enumerate(["Emma was handsome.", "It rained at Highbury, again."]):
            (tmp_path / "corpus" / f"{i}.txt").write_text(text)
        build(config_of(tmp_path, "hf:x", k=20), tmp_path / "hf", teacher=hf)
        with serve(hf) as (_, url):
            config = config_of(tmp_path, spec_of(url, tmp_path, ""), k=20)
            build(config, tmp_path / "openai")
        for mine, theirs in zip(
            open_store(tmp_path / "hf"), open_store(tmp_path / "openai"), strict=True
        ):
            x, y = mine.targets, theirs.targets
            np.testing.assert_allclose(x.log_probs(1.0), y.log_probs(1.0), atol=2e-3)
            np.testing.assert_allclose(x.tail(1.0), y.tail(1.0), rtol=2e-3, atol=1e-6)
