from __future__ import annotations

import json
import logging
import re
from types import SimpleNamespace

import numpy as np
import pytest

transformers = pytest.importorskip("transformers")

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers  # noqa: E402

from softlabels.corpora import Document  # noqa: E402
from softlabels.corpora.packing import pack  # noqa: E402
from softlabels.errors import CorpusError, TeacherError  # noqa: E402
from softlabels.teachers.tokenizer import HFTokenizer, repair_pre_tokenizer  # noqa: E402
from tests.fakes import TEXT  # noqa: E402

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LAST_ONLY = (  # like templates that drop the reasoning of all turns but the last
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
    "{% if m['role'] == 'assistant' and not loop.last %}{{ m['content'] | upper }}"
    "{% else %}{{ m['content'] }}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
REFUSING = "{{ raise_exception('roles must alternate') }}"
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]


def make(template: str | None = CHATML, *, eos: str | None = "<|endoftext|>"):
    """A byte-level BPE tokenizer of a few hundred ids, as transformers holds one."""
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    inner.train_from_iterator([TEXT, "user assistant system 1234567890"], trainer)
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=inner, eos_token=eos)
    fast.chat_template = template
    return fast


@pytest.fixture(scope="module")
def tokenizer() -> HFTokenizer:
    return HFTokenizer(make())


def learnt(tokenizer: HFTokenizer, *messages: tuple[str, str]) -> list[str]:
    """Text of each run of learnt tokens."""
    found = tokenizer.encode_chat(
        [{"role": role, "content": content} for role, content in messages], where="c:1"
    )
    assert len(found.input_ids) == len(found.learn)
    edges = np.flatnonzero(np.diff(np.concatenate([[0], found.learn.astype(np.int8), [0]])))
    inner = tokenizer._tokenizer.backend_tokenizer
    return [
        inner.decode(found.input_ids[a:b].tolist(), skip_special_tokens=False)
        for a, b in edges.reshape(-1, 2)
    ]


# -- chats ----------------------------------------------------------------------------------------

CONVERSATIONS = {
    "one turn": [("user", "Is it a truth?"), ("assistant", "It is.")],
    "several": [
        ("system", "Be brief."),
        ("user", "One?"),
        ("assistant", "A single man."),
        ("user", "Two?"),
        ("assistant", "A good fortune,\nand a wife."),
    ],
    "the last turn is the user's": [("user", "a"), ("assistant", "b"), ("user", "c")],
    "the assistant speaks first": [("assistant", "Hello."), ("user", "Hi."), ("assistant", "So.")],
    "twice in a row": [("user", "a"), ("assistant", "b"), ("assistant", "c")],
    "beyond ASCII": [("user", "café 😀"), ("assistant", "naïve 😀 é"), ("user", "ü")],
    "looks like a mark": [("user", "x"), ("assistant", "say assistant\nuser")],
    "spaces at the edges": [("user", "x"), ("assistant", "  two, and one ")],
}


@pytest.mark.parametrize("messages", CONVERSATIONS.values(), ids=CONVERSATIONS.keys())
def test_exactly_the_assistants_content_and_end_mark_are_learnt(tokenizer, messages):
    expected = [f"{content}<|im_end|>" for role, content in messages if role == "assistant"]
    if messages[0][0] == "assistant":
        expected[0] = "<|im_start|>assistant\n" + expected[0]  # nothing lies before it
    assert learnt(tokenizer, *messages) == expected


def test_the_whole_conversation_is_read(tokenizer):
    messages = CONVERSATIONS["several"]
    found = tokenizer.encode_chat([{"role": r, "content": c} for r, c in messages], where="c:1")
    text = "".join(f"<|im_start|>{r}\n{c}<|im_end|>\n" for r, c in messages)
    assert tokenizer._tokenizer.decode(found.input_ids, skip_special_tokens=False) == text
    assert found.input_ids.dtype == np.int32
    assert found.learn.dtype == np.bool_


def test_an_empty_answer_teaches_its_end_mark(tokenizer):
    assert learnt(tokenizer, ("user", "x"), ("assistant", "")) == ["<|im_end|>"]


def test_without_an_assistant_nothing_is_learnt(tokenizer):
    assert learnt(tokenizer, ("user", "x"), ("system", "y")) == []


def test_labels_of_a_packed_chat(tokenizer):
    """The tokens that are learnt are the ones that rows ask for."""
    messages = tuple({"role": r, "content": c} for r, c in CONVERSATIONS["several"])

    class Corpus:
        spec = "memory:"

        def documents(self):
            yield Document(where="c:1", messages=messages)

    rows = [r for _, r in pack([Corpus()], tokenizer, seq_len=16, vocab_size=tokenizer.vocab_size)]
    assert len(rows) > 2
    labels = [int(i) for r in rows for i in r.labels]
    text = tokenizer._tokenizer.decode(labels, skip_special_tokens=False)
    assert text == "A single man.<|im_end|>A good fortune,\nand a wife.<|im_end|>"


def test_a_template_that_rewrites_earlier_turns_is_refused():
    tokenizer = HFTokenizer(make(LAST_ONLY))
    assert learnt(tokenizer, ("user", "x"), ("assistant", "y")) == ["y<|im_end|>"]
    with pytest.raises(CorpusError, match=r"^c:1: the chat template renders message 1 differently"):
        learnt(tokenizer, ("user", "x"), ("assistant", "y"), ("user", "z"))


def test_no_template_is_refused():
    with pytest.raises(
        CorpusError, match=r'^c:1: holds messages, but .* no chat template; use "te'
    ):
        learnt(HFTokenizer(make(None)), ("user", "x"), ("assistant", "y"))


def test_a_template_that_raises_is_refused_with_its_reason():
    with pytest.raises(
        CorpusError, match=r"^c:1: the chat template refuses .*roles must alternate"
    ):
        learnt(HFTokenizer(make(REFUSING)), ("user", "x"), ("assistant", "y"))


# -- texts ----------------------------------------------------------------------------------------


def test_a_text_ends_with_the_end_mark_once(tokenizer):
    eos = tokenizer._tokenizer.eos_token_id
    ids = tokenizer.encode("a truth").input_ids.tolist()
    assert ids[-1] == eos
    assert ids.count(eos) == 1
    assert tokenizer.encode("a truth<|endoftext|>").input_ids.tolist() == ids
    assert tokenizer.encode("a truth").learn.all()
    assert tokenizer._tokenizer.decode(ids[:-1]) == "a truth"


def test_without_an_end_mark_none_is_added():
    ids = HFTokenizer(make(eos=None)).encode("a truth").input_ids
    assert (
        HFTokenizer(make(eos=None))._tokenizer.decode(ids, skip_special_tokens=False) == "a truth"
    )


def test_a_long_text_gives_no_warning():
    """transformers logs one for texts beyond model_max_length, which packing cuts anyway."""

    class Records(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            seen.append(record.getMessage())

    seen: list[str] = []
    handler = Records()
    logging.getLogger("transformers").addHandler(handler)
    try:
        fast = make()
        fast.model_max_length = 8
        fast(TEXT)
        assert seen, "the library warns, and it is heard here"
        seen.clear()
        fast = make()
        fast.model_max_length = 8
        assert len(HFTokenizer(fast).encode(TEXT).input_ids) > 8
        assert seen == []
    finally:
        logging.getLogger("transformers").removeHandler(handler)


# -- what a store records -------------------------------------------------------------------------


def test_the_record(tokenizer):
    fast = tokenizer._tokenizer
    assert tokenizer.vocab_size == tokenizer.record.vocab_size == len(fast)
    assert tokenizer.record.special_ids == {"eos": fast.eos_token_id}
    assert re.fullmatch("[0-9a-f]{64}", tokenizer.record.sha256)


def test_the_digest_is_of_the_content(tokenizer):
    assert HFTokenizer(make()).record == tokenizer.record
    changed = {HFTokenizer(make(t)).record.sha256 for t in (CHATML, LAST_ONLY, None)}
    assert len(changed) == 3
    other = make()
    other.add_tokens(["zebra"])
    assert HFTokenizer(other).record.sha256 != tokenizer.record.sha256
    split = make()
    repair_pre_tokenizer(split, "smollm", lambda _: None)
    assert HFTokenizer(split).record.sha256 != tokenizer.record.sha256


def test_its_files_make_it_again(tokenizer, tmp_path):
    files = tokenizer.files()
    assert "tokenizer.json" in files
    assert json.loads(files["tokenizer.json"])["model"]["type"] == "BPE"
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    again = HFTokenizer(transformers.AutoTokenizer.from_pretrained(tmp_path))
    assert again.encode(TEXT).input_ids.tolist() == tokenizer.encode(TEXT).input_ids.tolist()
    messages = CONVERSATIONS["several"]
    assert learnt(again, *messages) == learnt(tokenizer, *messages)
    assert again.record == tokenizer.record


def test_a_slow_tokenizer_is_refused():
    with pytest.raises(TeacherError, match=r"no fast version.*tokenizer\.json"):
        HFTokenizer(SimpleNamespace(is_fast=False))
    with pytest.raises(TeacherError, match=r"no fast version"):
        HFTokenizer(object())


# -- GGUF -----------------------------------------------------------------------------------------


def _split(tokenizer, text: str) -> list[str]:
    return [p for p, _ in tokenizer.backend_tokenizer.pre_tokenizer.pre_tokenize_str(text)]


def test_smollm_splits_digits_again():
    tokenizer, notices = make(), []
    assert _split(tokenizer, "in 1813, it") == ["in", "Ġ1813", ",", "Ġit"]
    repair_pre_tokenizer(tokenizer, "smollm", notices.append)
    assert _split(tokenizer, "in 1813, it") == ["in", "Ġ", "1", "8", "1", "3", ",", "Ġit"]
    (notice,) = notices
    assert "digit splitting was restored" in notice
    assert not notice.startswith("warning")


def test_an_unknown_pre_tokenizer_is_a_warning():
    tokenizer, notices = make(), []
    before = tokenizer.backend_tokenizer.to_str()
    repair_pre_tokenizer(tokenizer, "qwen99", notices.append)
    (notice,) = notices
    assert notice.startswith("warning: the GGUF declares pre-tokenizer 'qwen99'")
    assert tokenizer.backend_tokenizer.to_str() == before


@pytest.mark.parametrize("declared", ["gpt-2", None])
def test_what_needs_no_repair_is_silent(declared):
    tokenizer, notices = make(), []
    before = tokenizer.backend_tokenizer.to_str()
    repair_pre_tokenizer(tokenizer, declared, notices.append)
    assert notices == []
    assert tokenizer.backend_tokenizer.to_str() == before


@pytest.mark.parametrize("eos", ["<|endoftext|>", None])
def test_many_texts_at_a_time_have_the_tokens_of_each(eos):
    tokenizer = HFTokenizer(make(eos=eos))
    texts = [TEXT, "a", "", "1 <|im_end|> \u00e9\U0001f600", "ends<|endoftext|>", *TEXT.split(".")]
    for one, text in zip(tokenizer.encode_texts(texts), texts, strict=True):
        alone = tokenizer.encode(text)
        assert one.input_ids.tolist() == alone.input_ids.tolist()
        assert one.input_ids.dtype == alone.input_ids.dtype
        assert one.learn.tolist() == alone.learn.tolist()
    assert tokenizer.encode_texts([]) == []


def test_a_derived_tokenizer_with_an_encode_of_its_own_is_asked_for_it():
    class Lower(HFTokenizer):
        def encode(self, text):
            return super().encode(text.lower())

    tokenizer = Lower(make())
    (one,) = tokenizer.encode_texts(["ABC"])
    assert one.input_ids.tolist() == tokenizer.encode("abc").input_ids.tolist()
