"""Tokenizers that came with a store: what would take gigabytes, time, or the process, ends a child and is said."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from softlabels import open_store
from softlabels.cli.main import main
from softlabels.errors import TokenizerError
from softlabels.format.manifest import MANIFEST
from softlabels.store import tokenizer_process
from softlabels.store.token_text import TokenText
from softlabels.store.tokenizer_process import ChatTemplate, TokenizerProcess
from tests.fakes import build_tiny, write_corpus
from tests.store.made_up import write_sealed

pytest.importorskip("tokenizers", reason="needs the extra `hf`")

ROOT = Path(__file__).parents[1]


def tokenizer_json(**parts: Any) -> bytes:
    vocab = {chr(97 + i): i for i in range(26)}
    empty = dict.fromkeys(
        ("truncation", "padding", "normalizer", "pre_tokenizer", "post_processor", "decoder")
    )
    model = {"type": "BPE", "vocab": vocab, "merges": []}
    return json.dumps(
        {"version": "1.0", "added_tokens": [], **empty, "model": model, **parts}
    ).encode()


DOUBLING = {"type": "Replace", "pattern": {"String": "a"}, "content": "aa"}
BOMB = tokenizer_json(decoder={"type": "Sequence", "decoders": [DOUBLING] * 40})
"""Each step of its decoder doubles a text: 2^40 bytes of one letter, from 3 KB."""
DEEP = b'{"version":"1.0","normalizer":' + b'{"type":"Sequence","normalizers":[' * 10**5


@pytest.fixture(scope="module")
def plain(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("plain")
    build_tiny(folder / "store", write_corpus(folder / "c", documents=2), limit_rows=2)
    return folder / "store"


def with_tokenizer(store: Path, data: bytes) -> Path:
    return with_file(store, "tokenizer.json", data)


def with_file(store: Path, file: str, data: bytes) -> Path:
    """A store with another file of its tokenizer, which its manifest vouches for."""
    import hashlib

    name = f"tokenizer/{file}"
    (store / name).parent.mkdir(parents=True, exist_ok=True)
    (store / name).write_bytes(data)
    raw = json.loads((store / MANIFEST).read_bytes())
    raw["files"][name] = {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
    write_sealed(store / MANIFEST, raw)
    return store


@pytest.fixture
def store(plain, tmp_path) -> Path:
    import shutil

    return Path(shutil.copytree(plain, tmp_path / "store"))


def test_a_tokenizer_says_what_it_says_here():
    from tokenizers import Tokenizer

    data = tokenizer_json(decoder={"type": "Replace", "pattern": {"String": "c"}, "content": "<é>"})
    here, there = Tokenizer.from_str(data.decode()), TokenizerProcess(data, where="x")
    for ids in ([], [0], [0, 1, 2, 2, 25], [10**6], list(range(26)) * 1000):
        assert there.decode(ids) == here.decode(ids, skip_special_tokens=False)
    there.close()


@pytest.mark.parametrize("data", [b"", b"{}", b"\xff", DEEP], ids=["empty", "{}", "bytes", "deep"])
def test_what_is_no_tokenizer_is_a_sentence(data):
    with pytest.raises(TokenizerError, match=r"x: is no tokenizer that is known|ended the process"):
        TokenizerProcess(data, where="x")


@pytest.mark.slow
def test_text_that_grows_ends_the_child_only():
    """The process that asks stays as small as it was."""
    code = f"""
import resource
from softlabels.store import tokenizer_process
from softlabels.errors import TokenizerError
from softlabels.store.tokenizer_process import TokenizerProcess
found = TokenizerProcess({BOMB!r}, where="x")
tokenizer_process.PATIENCE = 1.0
assert found.decode([1]) == "b"
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    found.decode([0])
except TokenizerError as e:
    print(e)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    said, growth = done.stdout.splitlines()
    assert "x: making text of ids took more than 1 GiB or 1 s, or ended the process" in said
    assert int(growth) < 50 * 1024


SAID = "{% for m in messages %}{{ m.role }}: {{ m.content }}{{ eos_token }}{% endfor %}"


def test_a_chat_template_says_what_it_says_here():
    template = ChatTemplate(
        SAID + "{% if add_generation_prompt %}A:{% endif %}", {"eos_token": "</s>"}, where="x"
    )
    assert template.render([{"role": "user", "content": "hi"}]) == "user: hi</s>A:"
    template.close()


def test_a_chat_template_that_grows_or_runs_on_ends_the_child_only(monkeypatch):
    """And one that refuses is a sentence, after which it can be asked again."""
    bomb = "{% if messages[0].content == 'boom' %}{{ 'a' * 10 ** 10 }}{% endif %}" + SAID
    refusing = "{% if messages[1] is defined %}{{ raise_exception('one turn') }}{% endif %}" + bomb
    template = ChatTemplate(refusing, {}, where="x")
    said = {"role": "user", "content": "hi"}
    with pytest.raises(TokenizerError, match="x: one turn"):
        template.render([said, said])
    assert template.render([said]) == "user: hi"
    with pytest.raises(TokenizerError, match="x: asks for more memory than it may have"):
        template.render([{"role": "user", "content": "boom"}])
    template.close()
    monkeypatch.setattr(tokenizer_process, "PATIENCE", 0.5)
    loops = "{% for i in range(99999) %}" * 3 + "a" + "{% endfor %}" * 3
    slow = ChatTemplate(loops, {}, where="x")
    with pytest.raises(
        TokenizerError, match=r"rendering a conversation took more than 1 GiB or 0.5 s"
    ):
        slow.render([said])


def test_a_tokenizer_that_never_answers(monkeypatch, tmp_path):
    child = tmp_path / "child.py"
    child.write_text("import time; time.sleep(100)")
    monkeypatch.setattr(tokenizer_process, "CHILD", child)
    monkeypatch.setattr(tokenizer_process, "PATIENCE", 0.2)
    with pytest.raises(TokenizerError, match="loading it took more than"):
        TokenizerProcess(b"{}", where="x")


def test_a_child_that_says_too_much_is_not_heard(monkeypatch, tmp_path):
    child = tmp_path / "child.py"
    child.write_text("import os\nos.write(1, b'\\xff\\xff\\xff\\x7f' + b'x' * 10)\n")
    monkeypatch.setattr(tokenizer_process, "CHILD", child)
    with pytest.raises(TokenizerError, match="ended the process"):
        TokenizerProcess(b"{}", where="x")


def test_no_child_is_left():
    found = TokenizerProcess(tokenizer_json(), where="x")
    pid = found._child.pid
    del found
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_the_child_is_told_no_secrets(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "secret")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    assert "secret" not in tokenizer_process._environment().values()


def test_inspect_shows_ids_and_says_why(store, monkeypatch):
    monkeypatch.setattr(tokenizer_process, "PATIENCE", 2.0)
    with_tokenizer(store, BOMB)
    text = TokenText(open_store(store))
    assert (text.known, text.one(1), text.trouble) == (True, "b", None)
    assert text.many([1, 0]) == "<1><0>"
    assert text.trouble is not None
    assert not text.known
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with_tokenizer(store, DEEP)
    shown = CliRunner().invoke(main, ["inspect", str(store), "--row", "0"])
    assert shown.exit_code == 0, shown.output
    assert "ids are shown instead of text" in shown.stderr
    page = CliRunner().invoke(main, ["report", str(store), "--out", str(store.parent / "x.html")])
    assert page.exit_code == 0, page.output
    assert "ids are shown instead of text" in page.stderr
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200 * 1024


def test_a_students_tokenizer_is_tried_before_it_is_loaded(tmp_path):
    from trainers.generation.prompts import Words

    (tmp_path / "tokenizer.json").write_bytes(DEEP)
    with pytest.raises(TokenizerError, match=r"tokenizer\.json: "):
        Words(tmp_path)
