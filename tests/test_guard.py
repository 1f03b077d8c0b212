"""Planted faults of an engine are told by name before anything is stored; a sound one passes."""

from __future__ import annotations

import pytest
import torch
import transformers

from softlabels.algebra.append import append
from softlabels.builder.build import build
from softlabels.builder.config import AppendConfig
from softlabels.errors import TeacherError
from softlabels.teachers import SecondPath, Teacher, TeacherOptions, open_teacher
from tests.fakes import Notices
from tests.teachers.test_openai import config_of
from tests.teachers.tiny import write_model, write_texts


@pytest.fixture(scope="module")
def ground(tmp_path_factory):
    folder = tmp_path_factory.mktemp("guard")
    model = transformers.LlamaForCausalLM.from_pretrained(write_model(folder / "model"))
    with torch.no_grad():  # one of ones is the same twice as once
        model.model.norm.weight.copy_(torch.linspace(0.3, 2.0, 32))
    model.save_pretrained(folder / "model")
    write_model(folder / "other", seed=1)
    write_texts(folder / "corpus")
    return folder


@pytest.fixture(scope="module")
def hf(ground):
    return open_teacher(f"hf:{ground}/model", TeacherOptions(dtype="float32"))


class Engine(Teacher):
    """The real model, driven wrongly."""

    def __init__(self, hf, states, head=None):
        self._hf, self._states, self._head = hf, states, head or hf.to_logits
        self.tokenizer, self.record, self.context = hf.tokenizer, hf.record, hf.context
        self.second_path = SecondPath(load=lambda: hf, weights_bytes=1)

    @torch.no_grad()
    def logits(self, rows):
        for row in rows:
            ids = torch.from_numpy(row.input_ids).long()
            ends = torch.from_numpy(row.segment_lengths).long()
            parts = ids.split(ends.tolist())
            hidden = torch.cat(
                [self._states(self._hf.model.base_model, part[None])[0] for part in parts]
            )
            yield self._head(hidden[torch.from_numpy(row.positions)])


def last(body, ids):
    return body(input_ids=ids).last_hidden_state


def unnormed(body, ids):
    caught = []
    with body.norm.register_forward_pre_hook(lambda _, args: caught.append(args[0])):
        body(input_ids=ids)
    return caught[0]


def layer_before(body, ids):
    layers, body.layers = body.layers, body.layers[:-1]
    try:
        return body(input_ids=ids).last_hidden_state
    finally:
        body.layers = layers


def refused(ground, tmp_path, engine) -> str:
    with pytest.raises(TeacherError) as e:
        build(config_of(ground, "hf:x"), tmp_path / "s", teacher=engine)
    assert not (tmp_path / "s").exists() or not list((tmp_path / "s").iterdir())
    return str(e.value)


def more(ground) -> AppendConfig:
    return AppendConfig(teacher="hf:x", corpus=(f"text:{ground}/corpus/*.txt",))


def engine_lines(store) -> list[str]:
    """What the card says of a comparison."""
    lines = (store / "README.md").read_text(encoding="utf-8").splitlines()
    return [line for line in lines if line.startswith("| engine |")]


@pytest.mark.parametrize(
    ("states", "fault"),
    [
        (lambda body, ids: torch.zeros_like(last(body, ids)), "states that are all zero"),
        (
            lambda body, ids: (
                last(body, ids)[:, :1].expand(-1, ids.shape[1], -1) * 0
                + last(body, torch.tensor([[5]]))
            ),
            "states that are the same at every position",
        ),
        (unnormed, "a missing final norm"),
        (lambda body, ids: body.norm(last(body, ids)), "a final norm that is applied twice"),
        (layer_before, "a layer off by one"),
        (lambda body, ids: last(body, ids).roll(1, dims=1), "states of the token before"),
        (lambda body, ids: last(body, ids).roll(-1, dims=1), "states of the token after"),
    ],
)
def test_a_fault_of_states_is_told_by_name(ground, hf, tmp_path, states, fault):
    assert fault in refused(ground, tmp_path, Engine(hf, states))


def test_what_is_appended_is_compared_too(ground, hf, tmp_path):
    build(config_of(ground, "hf:x"), tmp_path / "s", teacher=hf)
    with pytest.raises(TeacherError, match="a missing final norm"):
        append(tmp_path / "s", more(ground), tmp_path / "t", teacher=Engine(hf, unnormed))
    assert not list((tmp_path / "t").glob("commits/*"))


def test_another_models_head_is_told_by_name(ground, hf, tmp_path):
    other = open_teacher(f"hf:{ground}/other", TeacherOptions(dtype="float32"))
    assert "another model's head" in refused(ground, tmp_path, Engine(hf, last, other.to_logits))


@pytest.mark.parametrize(("moved", "fault"), [(0, "the token itself"), (2, "the token after the")])
def test_shifted_labels_are_told_by_name(ground, hf, tmp_path, moved, fault):
    class Shifted(Engine):
        def selected(self, rows, job, uniforms):
            for kept, row in zip(super().selected(rows, job, uniforms), rows, strict=True):
                logits = torch.cat(list(self.logits([row])))
                ids = torch.from_numpy(row.input_ids).long()
                at = (torch.from_numpy(row.positions) + moved).clamp(max=len(ids) - 1)
                own = torch.log_softmax(logits, 1).gather(1, ids[at][:, None])[:, 0]
                yield kept._replace(label_logp=own)

    assert fault in refused(ground, tmp_path, Shifted(hf, last))


def test_a_sound_engine_passes_in_bfloat16_too(ground, hf, tmp_path):
    notices = Notices()
    engine = Engine(hf, lambda body, ids: last(body, ids).bfloat16().float())
    manifest = build(config_of(ground, "hf:x"), tmp_path / "s", teacher=engine, reporter=notices)
    assert manifest.identity.corpus.rows > 0
    assert any("comparing" in line and "with transformers" in line for line in notices.lines)
    assert manifest.compared_rows == manifest.identity.corpus.rows
    (said,) = engine_lines(tmp_path / "s")
    assert f"compared with transformers on {manifest.compared_rows} rows" in said
    grown = append(tmp_path / "s", more(ground), tmp_path / "t", teacher=Engine(hf, last))
    assert grown.compared_rows is not None
    assert build(config_of(ground, "hf:x"), tmp_path / "hf", teacher=hf).compared_rows is None
    assert not engine_lines(tmp_path / "hf")


def test_a_model_too_large_for_two_is_not_compared_and_that_is_said(ground, hf, tmp_path):
    notices = Notices()
    engine = Engine(hf, lambda body, ids: torch.zeros_like(last(body, ids)))
    engine.second_path = SecondPath(load=lambda: hf, weights_bytes=2**60)
    build(config_of(ground, "hf:x"), tmp_path / "s", teacher=engine, reporter=notices)
    (said,) = [line for line in notices.lines if "not compared" in line]
    assert "softlabels measure" in said
    (said,) = engine_lines(tmp_path / "s")
    assert "not compared with transformers" in said
