"""A pretrained student's tokenizer is compared with the store's, whatever form it lies there in."""

from __future__ import annotations

import json
import re
import shutil

import pytest
from click.testing import CliRunner

from softlabels.builder.build import build
from softlabels.builder.config import BuildConfig
from softlabels.errors import PairingError, TokenizerError
from softlabels.store.reader import open_store
from tests.families import model_of
from tests.teachers.test_tokenizer import make
from tests.teachers.tiny import VOCAB, write_model, write_texts
from trainers import DistillLoss
from trainers.cli import main
from trainers.integrations import check_fit
from trainers.run.config import RunConfig
from trainers.run.setup import train
from trainers.students import make_student
from trainers.students.tokenizers import why_not_compared

transformers = pytest.importorskip("transformers", reason="needs the extra hf")


@pytest.fixture(scope="module")
def ground(tmp_path_factory):
    """A store of a byte-level BPE, and one of a WordPiece."""
    folder = tmp_path_factory.mktemp("pairing")
    write_model(folder / "teacher")
    corpus = write_texts(folder / "texts")
    config = BuildConfig(
        teacher=f"hf:{folder}/teacher", corpus=(corpus,), estimator="topk", k=8, seq_len=48
    )
    build(config, folder / "store")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefghijklmnopqrstuvwxyz."]
    words += [f"##{w}" for w in "abcdefghijklmnopqrstuvwxyz"]
    wordpiece(folder / "bert", words)
    model_of("gpt2").save_pretrained(folder / "bert")
    build(
        BuildConfig(
            teacher=f"hf:{folder}/bert", corpus=(corpus,), estimator="topk", k=8, seq_len=48
        ),
        folder / "words",
    )
    return folder


def wordpiece(folder, words):
    folder.mkdir()
    (folder / "vocab.txt").write_text("\n".join(words) + "\n")
    transformers.BertTokenizerFast(vocab=str(folder / "vocab.txt")).save_pretrained(folder)


def student(folder, *, tokenizer=None):
    """A folder of weights, and of a tokenizer."""
    write_model(folder, seed=1)
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer_config.json").unlink()
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)
    return folder


def asked(folder, store):
    return why_not_compared(folder, open_store(store), where="--student hf:x")


def with_added(tokens):
    tokenizer = make()
    tokenizer.add_tokens([transformers.AddedToken(t, special=True) for t in tokens])
    return tokenizer


# -- tokenizer.json on both sides -----------------------------------------------------------------


def test_the_same_and_a_few_more_at_the_end(ground, tmp_path):
    assert asked(student(tmp_path / "same", tokenizer=make()), ground / "store") is None
    more = student(tmp_path / "more", tokenizer=with_added(["<|tool|>", "<|end|>"]))
    assert asked(more, ground / "store") is None


def test_an_added_token_that_means_another_is_refused(ground, tmp_path):
    """Vocabulary and merges are the same."""
    store = tmp_path / "store"
    shutil.copytree(ground / "teacher", tmp_path / "teacher")
    with_added(["<|user|>", "<|end|>"]).save_pretrained(tmp_path / "teacher")
    config = BuildConfig(
        teacher=f"hf:{tmp_path}/teacher",
        corpus=(f"text:{ground}/texts/*.txt",),
        estimator="topk",
        k=8,
        seq_len=48,
    )
    build(config, store)
    size = len(make())
    swapped = student(tmp_path / "swapped", tokenizer=with_added(["<|end|>", "<|user|>"]))
    with pytest.raises(TokenizerError, match=rf"id {size} is '<\|end\|>', the store's is '<\|user"):
        asked(swapped, store)
    moved = student(tmp_path / "moved", tokenizer=with_added(["<|user|>", "<|x|>", "<|end|>"]))
    with pytest.raises(
        TokenizerError, match=rf"id {size + 1} is '<\|x\|>', the store's is '<\|end"
    ):
        asked(moved, store)
    assert asked(student(tmp_path / "same", tokenizer=make()), store) is None
    named = student(tmp_path / "named", tokenizer=with_added(["<|reserved|>", "<|end|>"]))
    said = rf"calls added tokens otherwise \(id {size} is '<\|reserved\|>', the store's is '<\|user"
    assert re.search(said, asked(named, store))
    changes = {"store": (str(store),), "vocab": None}
    with pytest.raises(PairingError, match=said):
        train(config_of(ground, named, **changes), tmp_path / "run")
    train(config_of(ground, named, **changes, same_tokenizer=True), tmp_path / "run")


def test_other_merges_are_refused(ground, tmp_path):
    folder = student(tmp_path / "student", tokenizer=make())
    content = json.loads((folder / "tokenizer.json").read_text())
    content["model"]["merges"].reverse()
    (folder / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(TokenizerError, match="the vocabularies or merges differ"):
        asked(folder, ground / "store")


@pytest.mark.parametrize(
    "content",
    ["[]", "{", '{"model": {"vocab": 3}}', '{"model": {}}', '{"model": {"vocab": [1]}}'],
)
def test_what_is_no_tokenizer_is_refused(ground, tmp_path, content):
    folder = student(tmp_path / "student")
    (folder / "tokenizer.json").write_text(content)
    with pytest.raises(TokenizerError, match=r"not a tokenizer\.json"):
        asked(folder, ground / "store")


# -- other forms ----------------------------------------------------------------------------------


def bert(folder, words):
    """As BERTs lay on the hub for years: vocab.txt and a configuration."""
    folder.mkdir()
    (folder / "vocab.txt").write_text("\n".join(words) + "\n")
    (folder / "config.json").write_text(json.dumps({"model_type": "bert"}))
    return folder


def test_a_vocab_txt_is_loaded_and_compared(ground, tmp_path):
    words = (ground / "bert" / "vocab.txt").read_text().split()
    assert asked(bert(tmp_path / "same", words), ground / "words") is None
    other = [*words[:5], *reversed(words[5:])]
    with pytest.raises(TokenizerError, match="id 5 is '##z', the store's is 'a'"):
        asked(bert(tmp_path / "other", other), ground / "words")


def test_a_vocab_json_is_loaded_and_compared(ground, tmp_path):
    def gpt2(folder, tokenizer):
        folder.mkdir()
        model = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
        merges = [m if isinstance(m, str) else " ".join(m) for m in model["merges"]]
        (folder / "vocab.json").write_text(json.dumps(model["vocab"]))
        (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]))
        (folder / "config.json").write_text(json.dumps({"model_type": "gpt2"}))
        return folder

    tokenizer = make()
    store = ground / "store"
    assert asked(gpt2(tmp_path / "same", tokenizer), store) is None
    folder = gpt2(tmp_path / "other", tokenizer)
    vocab = json.loads((folder / "vocab.json").read_text())
    first, second = list(vocab)[40:42]
    vocab[first], vocab[second] = vocab[second], vocab[first]
    (folder / "vocab.json").write_text(json.dumps(vocab))
    with pytest.raises(TokenizerError, match="so the same id means another token"):
        asked(folder, store)


# -- nothing to compare ---------------------------------------------------------------------------


def config_of(ground, folder, **changes):
    values = {
        "store": (str(ground / "store"),),
        "student": f"hf:{folder}",
        "steps": 1,
        "batch_size": 2,
        "device": "cpu",
        **changes,
    }
    return RunConfig(**values)


def test_without_a_tokenizer_a_run_asks_for_your_word_and_records_it(ground, tmp_path):
    folder = student(tmp_path / "student")
    with pytest.raises(PairingError, match="holds no tokenizer, so nothing says that its ids mean"):
        train(config_of(ground, folder), tmp_path / "run")
    train(config_of(ground, folder, same_tokenizer=True), tmp_path / "run")
    recorded = json.loads((tmp_path / "run" / "run.json").read_text())
    assert recorded["config"]["same_tokenizer"] is True
    train(config_of(ground, tmp_path / "run" / "student"), tmp_path / "again")  # it has the store's


def test_the_word_does_not_help_where_they_differ(ground, tmp_path):
    folder = student(tmp_path / "student", tokenizer=make())
    content = json.loads((folder / "tokenizer.json").read_text())
    content["model"]["merges"].reverse()
    (folder / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(TokenizerError, match="is not the tokenizer that"):
        train(config_of(ground, folder, same_tokenizer=True), tmp_path / "run")


def test_a_tokenizer_that_cannot_be_loaded_is_none(ground, tmp_path):
    folder = student(tmp_path / "student")
    (folder / "tokenizer.model").write_bytes(b"no sentencepiece")
    said = asked(folder, ground / "store")
    assert said.startswith(f"the tokenizer of {folder}: transformers cannot load it")


def test_integrations_warn(ground, tmp_path):
    made = make_student(f"hf:{student(tmp_path / 'student')}", seed=0)
    with pytest.warns(UserWarning, match="holds no tokenizer, so nothing says that its ids mean"):
        check_fit(made, DistillLoss(), open_store(ground / "store"))


@pytest.mark.parametrize("like", [True, False])
def test_a_student_is_saved_with_a_tokenizer(ground, tmp_path, like):
    """The store's, or that of the model it is of; a run knows it again."""
    command = ["student", f"layers-of:{ground}/teacher?keep=1", "--out", str(tmp_path / "made")]
    command += ["--like", str(ground / "store")] * like
    result = CliRunner().invoke(main, command)
    assert result.exit_code == 0, result.output
    assert (tmp_path / "made" / "tokenizer.json").is_file()
    train(config_of(ground, tmp_path / "made"), tmp_path / "run")


def test_there_are_ids_that_no_tokenizer_has(ground):
    assert open_store(ground / "store").vocab_size == VOCAB > len(make())
