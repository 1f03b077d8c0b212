"""`hidden:` and `pooling:`: states that were made elsewhere, and the model's own norm and head, give what `hf:` gives.

Faults of states are planted in what a folder or a server says; each is told by name before anything is stored.
"""

from __future__ import annotations

import base64
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import save_file

from softlabels.builder.build import build
from softlabels.builder.config import MeasureConfig, StatesConfig
from softlabels.builder.measure import measure
from softlabels.builder.states import write_states
from softlabels.errors import (
    ConfigError,
    FormatError,
    IntegrityError,
    NonFiniteError,
    PairingError,
    TeacherError,
    TokenizerError,
)
from softlabels.store.reader import open_store
from softlabels.teachers import TeacherOptions, open_teacher
from softlabels.teachers import server as server_module
from softlabels.teachers.segments import segments_of
from softlabels.testing import check_teacher
from tests.fakes import Notices
from tests.output_families import FAMILIES, family
from tests.teachers.server import serving
from tests.teachers.test_openai import config_of
from tests.teachers.test_tokenizer import make
from tests.teachers.tiny import VOCAB, log_probs, rows_of, write_model, write_texts

FLOAT32 = TeacherOptions(dtype="float32")


@pytest.fixture(scope="module")
def ground(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bodiless")
    model = transformers.LlamaForCausalLM.from_pretrained(write_model(folder / "model"))
    with torch.no_grad():  # one of ones is the same twice as once
        model.model.norm.weight.copy_(torch.linspace(0.3, 2.0, 32))
    model.save_pretrained(folder / "model")
    write_model(folder / "other", seed=1)
    write_texts(folder / "corpus")
    build(config_of(folder, f"hf:{folder}/model", dtype="float32"), folder / "store")
    return folder


@pytest.fixture(scope="module")
def hf(ground):
    return open_teacher(f"hf:{ground}/model", FLOAT32)


@pytest.fixture(scope="module")
def rows(ground, hf):
    return rows_of(hf, f"text:{ground}/corpus/*.txt")


def last(body, ids):
    return body(input_ids=ids).last_hidden_state[0]


def unnormed(body, ids):
    caught = []
    with body.norm.register_forward_pre_hook(lambda _, args: caught.append(args[0])):
        body(input_ids=ids)
    return caught[0][0]


@torch.no_grad()
def write_files(folder: Path, hf, rows, states=last) -> Path:
    """As vLLM's connector writes them, each document's piece once."""
    folder.mkdir(exist_ok=True)
    for i, segment in enumerate(segments_of(rows)):
        ids = torch.from_numpy(segment.input_ids)
        said = states(hf.model.base_model, ids[None]).contiguous()
        save_file({"token_ids": ids, "hidden_states": said}, folder / f"{i}.safetensors")
    return folder


def check_same(a: Path, b: Path) -> None:
    for mine, theirs in zip(open_store(a), open_store(b), strict=True):
        x, y = mine.targets, theirs.targets
        np.testing.assert_array_equal(x.ids, y.ids)
        np.testing.assert_allclose(x.log_probs(1.0), y.log_probs(1.0), atol=1e-4)
        np.testing.assert_allclose(x.log_odds, y.log_odds, atol=1e-3)


@pytest.mark.parametrize(
    ("states", "query"),
    [
        (last, ""),
        (unnormed, "&norm=yes"),
        (lambda body, ids: torch.stack([last(body, ids) * 0, unnormed(body, ids)], 1), "&norm=yes"),
    ],
)
def test_files_of_states_give_the_targets_of_hf(ground, hf, rows, tmp_path, states, query):
    files = write_files(tmp_path / "files", hf, rows, states)
    spec = f"hidden:{files}?head={ground}/model{query}"
    notices = Notices()
    manifest = build(config_of(ground, spec), tmp_path / "store", reporter=notices)
    check_same(ground / "store", tmp_path / "store")
    assert any("comparing" in line and "with transformers" in line for line in notices.lines)
    record = manifest.identity.teacher
    assert (record.spec, record.name, record.engine) == (
        "hidden:files",
        "model",
        "states of an engine",
    )
    assert (record.dtype, record.weights_sha256) == ("float32", hf.record.weights_sha256)
    check_teacher(spec, rows=rows)
    found = measure(tmp_path / "store", MeasureConfig(teacher=spec), write=False)
    assert found.temperatures[0].log_prob_error.largest < 1e-4


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_what_softlabels_states_wrote_gives_the_targets_of_hf(ground, tmp_path, dtype):
    config = config_of(ground, f"hf:{ground}/model", dtype=dtype, temperature=(1.0, 3.0))
    build(config, tmp_path / "hf")
    write_states(tmp_path / "hf", StatesConfig(teacher=config.teacher), tmp_path / "states")
    spec = f"hidden:{tmp_path}/states?head={ground}/model"
    build(replace(config, teacher=spec, dtype="auto"), tmp_path / "hidden")
    check_same(tmp_path / "hf", tmp_path / "hidden")
    record = open_store(tmp_path / "hidden").manifest.identity.teacher
    assert (record.dtype, record.engine.split()[:3]) == (dtype, ["states", "of", "transformers"])


WITHOUT_LAYERS = ("llama", "gemma2", "cohere", "granite", "hyperclovax", "phi")
"""Kinds that transformers makes without layers, and that keep documents apart which share a row."""


@pytest.mark.parametrize("name", [n for n, (kind, _) in FAMILIES.items() if kind in WITHOUT_LAYERS])
def test_families_that_cap_scale_or_shift_their_logits(tmp_path, name):
    """By the model's own code, of states from before its norm."""
    model = family(name, vocab_size=VOCAB)
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter_name, weight in model.named_parameters():
            if "norm" in parameter_name:
                weight.normal_(1.0, 0.3)
    model.save_pretrained(tmp_path / "model")
    make().save_pretrained(tmp_path / "model")
    hf = open_teacher(f"hf:{tmp_path}/model", FLOAT32)
    rows = rows_of(hf, write_texts(tmp_path / "texts"))[:4]
    files = write_files(tmp_path / "files", hf, rows)
    hidden = open_teacher(f"hidden:{files}?head={tmp_path}/model", TeacherOptions())
    assert hidden.model.num_parameters() < hf.model.num_parameters()
    assert hidden.head._replace(weight=None, bias=None) == hf.head._replace(weight=None, bias=None)
    expected = log_probs(hf.logits(rows))
    np.testing.assert_allclose(log_probs(hidden.logits(rows)), expected, atol=1e-4)
    torch.testing.assert_close(hidden.states(rows), hf.states(rows), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("states", "query", "fault"),
    [
        (lambda body, ids: last(body, ids) * 0, "", "states that are all zero"),
        (
            lambda body, ids: last(body, torch.tensor([[5]])).expand(ids.shape[1], -1),
            "",
            "states that are the same at every position",
        ),
        (unnormed, "", "a missing final norm"),
        (last, "&norm=yes", "a final norm that is applied twice"),
        (lambda body, ids: last(body, ids).roll(1, dims=0), "", "states of the token before"),
        (lambda body, ids: last(body, ids).roll(-1, dims=0), "", "states of the token after"),
    ],
)
def test_faults_of_states_are_told_by_name(ground, hf, rows, tmp_path, states, query, fault):
    files = write_files(tmp_path / "files", hf, rows, states)
    with pytest.raises(TeacherError, match=fault):
        build(config_of(ground, f"hidden:{files}?head={ground}/model{query}"), tmp_path / "s")
    assert not (tmp_path / "s").exists() or not list((tmp_path / "s").iterdir())


def test_another_models_head_is_told(ground, hf, rows, tmp_path):
    files = write_files(tmp_path / "files", hf, rows)
    with pytest.raises(TeacherError, match="another model's head"):
        build(config_of(ground, f"hidden:{files}?head={ground}/other"), tmp_path / "s")
    config = StatesConfig(teacher=f"hf:{ground}/model")
    write_states(ground / "store", config, tmp_path / "states")
    with pytest.raises(TeacherError, match=r"its states are of model, weights sha256 .* give the"):
        open_teacher(f"hidden:{tmp_path}/states?head={ground}/other", TeacherOptions())
    (tmp_path / "twin").mkdir()
    for path in (ground / "model").iterdir():
        (tmp_path / "twin" / path.name).write_bytes(path.read_bytes())
    words = json.loads((tmp_path / "twin" / "tokenizer.json").read_text())
    words["added_tokens"] = words["added_tokens"][:-1] or words["added_tokens"]
    words["version"], words["truncation"] = (
        "1.0",
        {
            "direction": "Right",
            "max_length": 9,
            "strategy": "LongestFirst",
            "stride": 0,
        },
    )
    (tmp_path / "twin" / "tokenizer.json").write_text(json.dumps(words))
    with pytest.raises(TokenizerError, match="give the folder with the same tokenizer"):
        open_teacher(f"hidden:{tmp_path}/states?head={tmp_path}/twin", TeacherOptions())


def test_what_has_no_states_is_refused(ground, hf, rows, tmp_path):
    files = write_files(tmp_path / "files", hf, rows)
    spec = f"hidden:{files}?head={ground}/model"
    (files / "1.safetensors").unlink()
    with pytest.raises(PairingError, match=r"has no states of a sequence of \d+ tokens"):
        build(config_of(ground, spec), tmp_path / "s")
    write_states(ground / "store", StatesConfig(teacher=f"hf:{ground}/model"), tmp_path / "states")
    config = config_of(ground, f"hidden:{tmp_path}/states?head={ground}/model", seq_len=40)
    with pytest.raises(PairingError, match="have no states in"):
        build(config, tmp_path / "s")
    (tmp_path / "none").mkdir()
    with pytest.raises(FormatError, match="holds no states: neither"):
        open_teacher(f"hidden:{tmp_path}/none?head={ground}/model", TeacherOptions())


def test_a_state_that_is_no_number_names_row_and_token(ground, hf, rows, tmp_path):
    def states(body, ids):
        said = last(body, ids).clone()
        said[len(said) // 2] = torch.nan
        return said

    files = write_files(tmp_path / "files", hf, rows, states)
    with pytest.raises(NonFiniteError, match=r"hidden:files: logit nan at row 0, token \d+"):
        build(config_of(ground, f"hidden:{files}?head={ground}/model"), tmp_path / "s")


@pytest.mark.parametrize(
    ("tensors", "error", "message"),
    [
        ({"hidden_states": torch.zeros(3, 32)}, IntegrityError, r"expected token_ids \[T\]"),
        (
            {"token_ids": torch.arange(2), "hidden_states": torch.zeros(3, 32)},
            IntegrityError,
            "of the same T",
        ),
        (
            {"token_ids": torch.arange(3), "hidden_states": torch.zeros(3, 32).int()},
            IntegrityError,
            "in floating point",
        ),
        (
            {"token_ids": torch.arange(3.0), "hidden_states": torch.zeros(3, 32)},
            IntegrityError,
            "expected token_ids",
        ),
        (
            {"token_ids": torch.arange(3), "hidden_states": torch.zeros(3, 32).half()},
            FormatError,
            "states in float16 and float32",
        ),
        (None, IntegrityError, "cannot be read"),
    ],
)
def test_a_file_that_is_none_of_states_is_refused(ground, tmp_path, tensors, error, message):
    good = {"token_ids": torch.arange(4), "hidden_states": torch.zeros(4, 32)}
    save_file(good, tmp_path / "a.safetensors")
    if tensors is None:
        (tmp_path / "b.safetensors").write_bytes(b"\x09\0\0\0\0\0\0\0{")
    else:
        save_file(tensors, tmp_path / "b.safetensors")
    with pytest.raises(error, match=message):
        open_teacher(f"hidden:{tmp_path}?head={ground}/model", TeacherOptions())


def test_states_of_another_width_are_refused(ground, rows, tmp_path):
    for i, segment in enumerate(segments_of(rows)):
        ids = torch.from_numpy(segment.input_ids)
        states = {"token_ids": ids, "hidden_states": torch.zeros(len(ids), 16)}
        save_file(states, tmp_path / f"{i}.safetensors")
    teacher = open_teacher(f"hidden:{tmp_path}?head={ground}/model", TeacherOptions())
    with pytest.raises(TeacherError, match="expected width 32, that of the head"):
        list(teacher.logits(rows))


def test_mistakes_are_refused(ground, hf, rows, tmp_path):
    files = write_files(tmp_path / "files", hf, rows)
    for query in ("", "?head=", "?norm=yes", f"?head={ground}/model&norm=2", "?head=a&x=1"):
        with pytest.raises(ConfigError, match=r"expected hidden:FOLDER\?head=MODEL"):
            open_teacher(f"hidden:{files}{query}", TeacherOptions())
    with pytest.raises(ConfigError, match=r"the states of .* are in float32; leave it out"):
        open_teacher(f"hidden:{files}?head={ground}/model", TeacherOptions(dtype="bfloat16"))
    with pytest.raises(TeacherError, match="no such folder"):
        open_teacher(f"hidden:{files}?head={tmp_path}/none", TeacherOptions())
    for spec in ("hidden:a?head=b", "pooling:http://h?head=b"):
        with pytest.raises(ConfigError, match="serves causal-lm only; use hf:PATH"):
            open_teacher(spec, TeacherOptions(domain="sequence-classification"))
    for argument in ("http://h", "h?head=b", "http://h?head=b&x=1"):
        with pytest.raises(ConfigError, match=r"expected pooling:http://HOST:PORT\?head=MODEL"):
            open_teacher(f"pooling:{argument}", TeacherOptions())
    with pytest.raises(ConfigError, match="--dtype bfloat16: is the server's affair"):
        open_teacher("pooling:http://h?head=b", TeacherOptions(dtype="bfloat16"))


class Pooling:
    """Answers as vLLM 0.32's pooling endpoint does; tests change it."""

    def __init__(self, hf) -> None:
        self.hf = hf
        self.bodies: list[dict] = []
        self.change = lambda answer: answer

    @torch.no_grad()
    def answer(self, path, body, key):
        if path == "/v1/models":
            return 200, {"object": "list", "data": [{"id": "served"}]}
        assert path == "/pooling"
        self.bodies.append(body)
        ids = body["input"]
        states = last(self.hf.model.base_model, torch.tensor([ids])).float().numpy()
        data = base64.b64encode(states.astype("<f4").tobytes()).decode()
        answer = {
            "id": "pool-1",
            "object": "list",
            "created": 1,
            "model": "served",
            "data": [{"index": 0, "object": "pooling", "data": data}],
            "usage": {"prompt_tokens": len(ids), "total_tokens": len(ids)},
        }
        return 200, self.change(answer)


@pytest.fixture
def pooling(hf, monkeypatch):
    monkeypatch.setattr(server_module, "PAUSES", (0.01, 0.01))
    answers = Pooling(hf)
    with serving(answers.answer) as url:
        yield answers, url


def test_a_pooling_server_gives_the_targets_of_hf(ground, hf, pooling, tmp_path):
    answers, url = pooling
    spec = f"pooling:{url}?head={ground}/model"
    manifest = build(config_of(ground, spec), tmp_path / "store")
    check_same(ground / "store", tmp_path / "store")
    record = manifest.identity.teacher
    assert (record.spec, record.dtype, record.device) == ("pooling:served", "server", "server")
    assert record.weights_sha256 == hf.record.weights_sha256
    asked = answers.bodies[0]
    assert asked["use_activation"] is False
    assert asked["add_special_tokens"] is False
    assert (asked["task"], asked["model"]) == ("token_embed", "served")
    write_states(tmp_path / "store", StatesConfig(teacher=spec), tmp_path / "states")
    assert (tmp_path / "states" / "states.json").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a: {**a, "data": [{**a["data"][0], "data": [[1.0]]}]}, "holds no states"),
        (lambda a: {**a, "data": []}, "holds no states"),
        (lambda a: {"error": "x"}, "holds no states"),
        (lambda a: {**a, "data": [{**a["data"][0], "data": "AAAA"}]}, "holds no states"),
        (lambda a: {**a, "usage": {"prompt_tokens": 1}}, r"answered for 1 tokens"),
        (lambda a: {**a, "data": [{**a["data"][0], "data": ""}]}, "with 0 numbers"),
        (lambda a: {**a, "data": [{**a["data"][0], "data": "AAAAAA=="}]}, "with 1 numbers"),
    ],
)
def test_an_answer_without_states_is_refused(ground, pooling, tmp_path, change, message):
    answers, url = pooling
    answers.change = change
    with pytest.raises(TeacherError, match=message):
        build(config_of(ground, f"pooling:{url}?head={ground}/model"), tmp_path / "s")
