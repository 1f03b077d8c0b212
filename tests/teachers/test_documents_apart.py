"""Documents that share a row do not see each other, whatever the teacher is made of."""

import json

import numpy as np
import pytest
import torch

from softlabels.builder.build import build
from softlabels.builder.config import BuildConfig, StatesConfig
from softlabels.builder.states import write_states
from softlabels.core.documents_apart import keeps_apart
from softlabels.store.reader import open_store
from softlabels.store.states import TeacherStates
from softlabels.teachers import TeacherOptions, open_teacher
from tests.families import EVERY, NOT_APART, model_of
from tests.teachers.test_tokenizer import make
from tests.teachers.tiny import rows_of, write_texts


def write(folder, family):
    model_of(family).save_pretrained(folder)
    make().save_pretrained(folder)
    return f"hf:{folder}"


def alone(teacher, row):
    """`[N, V]`: each document of a row by a forward of its own, on nothing but its ids."""
    found = []
    ends = np.cumsum(row.segment_lengths)
    for start, stop in zip(ends - row.segment_lengths, ends, strict=True):
        ids = torch.from_numpy(row.input_ids[start:stop].astype(np.int64))[None]
        with torch.no_grad():
            logits = teacher.model(input_ids=ids, use_cache=False).logits[0].float()
        found.append(logits[torch.from_numpy(row.label_mask[start:stop])])
    return torch.cat(found)


@pytest.mark.parametrize("family", EVERY)
def test_targets_of_a_packed_row_are_those_of_each_document_alone(tmp_path, family):
    notices = []
    teacher = open_teacher(
        write(tmp_path / "model", family), TeacherOptions(dtype="float32", notice=notices.append)
    )
    rows = rows_of(teacher, write_texts(tmp_path / "texts"))
    assert any(len(row.segment_lengths) > 1 for row in rows)
    expected = torch.cat([alone(teacher, row) for row in rows])
    found = torch.cat([c.clone() for c in teacher.logits(rows)])
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4 * float(expected.std()))
    told = [n for n in notices if "see each other" in n]
    apart = EVERY[family][1]
    assert len(told) == (not apart)
    assert teacher.record.engine.endswith("as sequences of their own") == (not apart)


@pytest.mark.parametrize("family", EVERY)
def test_it_is_told_in_bfloat16(tmp_path, family):
    teacher = open_teacher(write(tmp_path / "model", family), TeacherOptions(dtype="bfloat16"))
    apart = EVERY[family][1]
    assert teacher.record.engine.endswith("as sequences of their own") == (not apart)


def test_sequences_of_their_own_take_no_more_places_than_the_rows(tmp_path, monkeypatch):
    teacher = open_teacher(write(tmp_path / "model", "lfm2"), TeacherOptions(dtype="float32"))
    rows = rows_of(teacher, write_texts(tmp_path / "texts"))
    fed = []
    given = teacher._given
    monkeypatch.setattr(
        teacher, "_given", lambda f, flat: fed.append(f["input_ids"].shape) or given(f, flat)
    )
    states = teacher.states(rows)
    most = len(rows) * max(row.size for row in rows)
    assert len(states) == sum(row.n for row in rows)
    assert len(fed) > 1
    assert all(b * s <= most for b, s in fed)


def test_a_store_and_states_of_a_hybrid_teacher(tmp_path):
    """Through the builder: each target is of its document alone, and the record says how that was."""
    spec = write(tmp_path / "model", "qwen3_5")
    corpus = write_texts(tmp_path / "texts")
    config = BuildConfig(
        teacher=spec, corpus=(corpus,), estimator="topk", k=8, seq_len=48, dtype="float32"
    )
    build(config, tmp_path / "store")
    teacher = open_teacher(spec, TeacherOptions(dtype="float32"))
    store = open_store(tmp_path / "store")
    assert store.identity.teacher.engine.endswith("as sequences of their own")
    assert json.loads((tmp_path / "store" / "manifest.json").read_bytes())
    write_states(store.path, StatesConfig(teacher=spec, dtype="float32"), tmp_path / "states")
    states = TeacherStates(tmp_path / "states")
    weight = teacher.head.weight.float()
    for stored in store:
        expected = alone(teacher, stored.row).log_softmax(1)
        ids = torch.from_numpy(stored.targets.ids.astype(np.int64))
        found = torch.from_numpy(stored.targets.log_probs(1.0))
        torch.testing.assert_close(found, expected.gather(1, ids), rtol=1e-2, atol=1e-2)
        kept = states.of([stored.row.digest()], [stored.row.n], where="here")
        z = (kept.float() @ weight.T).log_softmax(1)
        torch.testing.assert_close(z, expected, rtol=1e-3, atol=1e-3)


# -- the trial itself -----------------------------------------------------------------------------


def tried(states, **changes):
    given = {"vocab_size": 50, "context": None, "device": torch.device("cpu"), **changes}
    return keeps_apart(states, **given)


def embedded(ids):
    return torch.nn.functional.one_hot(ids, 50).float()


def summed(ids, positions, *, masked):
    """Each token's states are the sum of those before it in its document, or in its row."""
    begins = (positions == 0) if masked else torch.zeros_like(positions)
    document = begins.cumsum(1)
    same = document[:, :, None] == document[:, None, :]
    return (same.tril().float() @ embedded(ids)) * (1 + positions[..., None])


def test_what_sees_over_the_border_is_found_and_nothing_else():
    assert tried(lambda i, p: summed(i, p, masked=True))
    assert not tried(lambda i, p: summed(i, p, masked=False))
    # a leak of a ten-thousandth
    leaks = lambda i, p: summed(i, p, masked=True) + 1e-4 * summed(i, p, masked=False)  # noqa: E731
    assert not tried(leaks)


def test_positions_that_are_not_taken_are_found():
    def shifted(ids, positions):
        along = torch.arange(ids.shape[1]).expand_as(ids)
        return summed(ids, positions, masked=True) * (1 + along[..., None])

    def without(ids, positions):
        raise TypeError("forward() got an unexpected keyword argument 'position_ids'")

    assert not tried(shifted)
    assert not tried(without)


def test_what_cannot_be_told_is_taken_apart():
    assert not tried(lambda i, p: embedded(i))  # tokens do nothing to others
    assert not tried(lambda i, p: torch.full((*i.shape, 3), torch.nan))


@pytest.mark.parametrize("context", [2, 3, 7, 16, 17])
def test_no_more_tokens_than_the_context(context):
    widths = []

    def states(ids, positions):
        widths.append(ids.shape[1])
        return summed(ids, positions, masked=True)

    assert tried(states, context=context) == (context > 1)
    assert max(widths) <= context


def test_there_are_families_of_both_kinds():
    assert {"qwen3_next", "qwen3_5", "lfm2", "mamba2", "openai"} <= set(NOT_APART)
