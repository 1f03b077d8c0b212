from __future__ import annotations

import json
from pathlib import Path

import pytest

from softlabels.corpora import CORPORA, Document, documents_of, open_corpora
from softlabels.errors import ConfigError, CorpusError


def texts(spec: str) -> list[str | None]:
    return [d.text for c in open_corpora([spec]) for d in c.documents()]


@pytest.fixture
def jsonl(tmp_path):
    """Write lines to a file and give its documents."""

    def documents(*lines: str | bytes) -> list[Document]:
        data = b"".join((x if isinstance(x, bytes) else x.encode()) + b"\n" for x in lines)
        (tmp_path / "c.jsonl").write_bytes(data)
        (corpus,) = open_corpora([f"jsonl:{tmp_path}/c.jsonl"])
        return list(corpus.documents())

    return documents


GOOD = '{"text": "fine"}'


# -- which files, in which order ------------------------------------------------------------------


def test_files_are_documents_in_order_of_path(tmp_path):
    for name in ("b.txt", "a.txt", "sub/a.txt", "c.md"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name, encoding="utf-8")
    assert texts(f"text:{tmp_path}/*.txt") == ["a.txt", "b.txt"]
    assert texts(f"text:{tmp_path}/**/*.txt") == ["a.txt", "b.txt", "sub/a.txt"]
    assert texts(f"text:{tmp_path}/[bc].*") == ["b.txt", "c.md"]
    assert texts(f"text:{tmp_path}/c.md") == ["c.md"]
    assert texts(f"text:{tmp_path}/*") == ["a.txt", "b.txt", "c.md"], "folders are not documents"


def test_corpora_follow_one_another_in_the_order_given(tmp_path):
    for name in "ab":
        (tmp_path / name).write_text(name, encoding="utf-8")
    corpora = open_corpora([f"text:{tmp_path}/b", f"text:{tmp_path}/a"])
    assert [c.spec for c in corpora] == [f"text:{tmp_path}/b", f"text:{tmp_path}/a"]
    numbered = list(documents_of(corpora, skip_empty=False))
    assert [(n, d.text if d else None) for n, d in numbered] == [(0, "b"), (1, "a")]


def test_a_corpus_can_be_read_again(tmp_path):
    (tmp_path / "a.txt").write_text("a", encoding="utf-8")
    (corpus,) = open_corpora([f"text:{tmp_path}/a.txt"])
    assert list(corpus.documents()) == list(corpus.documents())


@pytest.mark.parametrize("kind", ["text", "jsonl"])
def test_a_pattern_without_files_is_refused(tmp_path, kind):
    with pytest.raises(CorpusError, match=rf"--corpus {kind}:.*/\*\.none: no file matches"):
        open_corpora([f"{kind}:{tmp_path}/*.none"])


def test_an_unknown_kind_is_refused_with_the_known_ones():
    with pytest.raises(
        ConfigError, match=r"nothing is called 'csv'; known: .*jsonl, parquet, text"
    ):
        open_corpora(["csv:x"])
    assert {"jsonl", "text"} <= set(CORPORA.names())


@pytest.mark.parametrize("spec", ["text:", ":x", ""])
def test_a_spec_needs_kind_and_pattern(spec):
    with pytest.raises(ConfigError, match=r"^--corpus '.*': expected NAME:ARGUMENT"):
        open_corpora([spec])


# -- text -----------------------------------------------------------------------------------------


def test_a_byte_order_mark_is_not_text(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfhello")
    assert texts(f"text:{tmp_path}/a.txt") == ["hello"]


def test_where_names_the_file(tmp_path):
    (tmp_path / "a.txt").write_text("a", encoding="utf-8")
    (corpus,) = open_corpora([f"text:{tmp_path}/a.txt"])
    assert [d.where for d in corpus.documents()] == [str(tmp_path / "a.txt")]


@pytest.mark.parametrize("data", [b"caf\xe9", b"ok\xff", "é".encode("utf-16")])
def test_text_that_is_not_utf8_is_refused(tmp_path, data):
    (tmp_path / "a.txt").write_bytes(data)
    with pytest.raises(CorpusError, match=r"/a\.txt: byte \d+ is not UTF-8; convert the file"):
        texts(f"text:{tmp_path}/a.txt")


def test_the_byte_that_is_not_utf8_is_counted_from_the_start_of_the_file(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfabc\xff")
    with pytest.raises(CorpusError, match=r": byte 6 is not UTF-8"):
        texts(f"text:{tmp_path}/a.txt")


def test_line_endings_are_kept_as_they_are(tmp_path):
    """Else the same corpus has other tokens after a checkout on another system, and nobody is told."""
    (tmp_path / "a.txt").write_bytes(b"a\r\nb\rc\n")
    assert texts(f"text:{tmp_path}/a.txt") == ["a\r\nb\rc\n"]


def test_a_file_that_vanished_is_named(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("a", encoding="utf-8")
    for kind in ("text", "jsonl"):
        (corpus,) = open_corpora([f"{kind}:{path}"])
        path.rename(tmp_path / "b.txt")
        with pytest.raises(CorpusError, match=r"a\.txt: cannot be read"):
            list(corpus.documents())
        (tmp_path / "b.txt").rename(path)


# -- jsonl ----------------------------------------------------------------------------------------


def test_lines_are_documents(jsonl):
    messages = [{"role": "user", "content": "hi", "extra": 1}, {"role": "assistant", "content": ""}]
    found = jsonl('{"text": "é\\n", "id": 7}', json.dumps({"messages": messages}))
    assert [d.text for d in found] == ["é\n", None]
    assert [d.messages for d in found] == [None, tuple(messages)]
    assert [Path(d.where).name for d in found] == ["c.jsonl:1", "c.jsonl:2"]


def test_escapes_that_are_text_are_read(jsonl):
    assert [d.text for d in jsonl(r'{"text": "\ud83d\ude00 \u00e9"}')] == ["😀 é"]


def test_a_byte_order_mark_is_not_json(jsonl):
    assert [d.text for d in jsonl(b"\xef\xbb\xbf" + GOOD.encode())] == ["fine"]


def test_a_last_line_without_a_line_feed_counts(tmp_path):
    (tmp_path / "c.jsonl").write_text(f"{GOOD}\n{GOOD}", encoding="utf-8")
    assert texts(f"jsonl:{tmp_path}/c.jsonl") == ["fine", "fine"]


BAD = {
    "not JSON": ("{'text': 1}", r"not a JSON object"),
    "torn": ('{"text": "a', r"not a JSON object"),
    "blank": ("", r"not a JSON object"),
    "two on a line": (GOOD + GOOD, r"not a JSON object"),
    "not UTF-8": (b'{"text": "caf\xe9"}', r"not a JSON object"),
    "too deep": ('{"text":' + "[" * 100_000, r"not a JSON object"),
    "NaN": ('{"text": NaN}', r'"text" is float, expected a string'),
    "list": ('["text"]', r"found list"),
    "number": ("3", r"found int"),
    "null": ("null", r"found NoneType"),
    "both": ('{"text": "a", "messages": []}', r"found \['messages', 'text'\]"),
    "neither": ('{"body": "a"}', r"found \['body'\]"),
    "text is null": ('{"text": null}', r'"text" is NoneType, expected a string'),
    "text is a list": ('{"text": ["a"]}', r'"text" is list, expected a string'),
    "messages is a dict": ('{"messages": {}}', r'"messages" is dict, expected a list'),
    "message is a string": ('{"messages": ["hi"]}', r'message 0 has no "role"'),
    "no role": ('{"messages": [{"content": "a"}]}', r'message 0 has no "role"'),
    "role is a number": ('{"messages": [{"role": 1, "content": "a"}]}', r'message 0 has no "role"'),
    "no content": (
        '{"messages": [{"role": "user", "content": "a"}, {"role": "user"}]}',
        r'message 1 has no "content" string',
    ),
    "content is parts": (
        '{"messages": [{"role": "user", "content": [{"type": "text"}]}]}',
        r'message 0 has no "content" string',
    ),
    "half a surrogate pair": (
        '{"text": "\\ud800"}',
        r"not a JSON object.*surrogates not allowed",
    ),
    "half a surrogate pair in a message": (
        '{"messages": [{"role": "user", "content": "\\udc00"}]}',
        r"not a JSON object.*surrogates not allowed",
    ),
}


@pytest.mark.parametrize(("line", "message"), BAD.values(), ids=BAD.keys())
def test_a_bad_line_is_refused_by_file_and_line(jsonl, line, message):
    with pytest.raises(CorpusError, match=rf"/c\.jsonl:3: .*({message})"):
        jsonl(GOOD, GOOD, line, GOOD)


@pytest.mark.parametrize("line", ['{"text": ""}', '{"text": " \\n"}', '{"messages": []}'])
def test_an_empty_document_is_refused_by_file_and_line(tmp_path, line):
    (tmp_path / "c.jsonl").write_text(f"{GOOD}\n{line}\n{GOOD}\n", encoding="utf-8")
    corpora = open_corpora([f"jsonl:{tmp_path}/c.jsonl"])
    with pytest.raises(CorpusError, match=r"/c\.jsonl:2: the text is empty.*--skip-empty"):
        list(documents_of(corpora, skip_empty=False))
    numbers = [(n, d is None) for n, d in documents_of(corpora, skip_empty=True)]
    assert numbers == [(0, False), (1, True), (2, False)], "a skipped document keeps its number"
