"""Conversations with tools: the template reads them, and exactly the assistant's turns, calls included, are learnt."""

from __future__ import annotations

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

pytest.importorskip("transformers")

from softlabels.corpora import open_corpora
from softlabels.corpora.packing import pack
from softlabels.errors import CorpusError
from softlabels.teachers.tokenizer import HFTokenizer
from tests.teachers.test_tokenizer import CHATML, learnt, make

TOOLS = (  # as Qwen's and Hermes' write them: what tools say is a user's turn, several of them one
    "{% if tools %}<|im_start|>system\n{% if messages[0]['role'] == 'system' %}{{ messages[0]['content'] }}\n"
    "{% endif %}<tools>{% for t in tools %}{{ '\n' }}{{ t | tojson }}{% endfor %}{{ '\n' }}</tools><|im_end|>\n"
    "{% elif messages[0]['role'] == 'system' %}<|im_start|>system\n{{ messages[0]['content'] }}<|im_end|>\n{% endif %}"
    "{% for m in messages %}"
    "{% if m['role'] == 'tool' %}"
    "{% if loop.first or messages[loop.index0 - 1]['role'] != 'tool' %}<|im_start|>user{% endif %}"
    "{{ '\n<tool_response>\n' + m['content'] + '\n</tool_response>' }}"
    "{% if loop.last or messages[loop.index0 + 1]['role'] != 'tool' %}<|im_end|>\n{% endif %}"
    "{% elif m['role'] != 'system' %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}"
    "{% for c in m['tool_calls'] or [] %}<tool_call>\n"
    "{{ {'name': c['function']['name'], 'arguments': c['function']['arguments']} | tojson }}\n</tool_call>"
    "{% endfor %}<|im_end|>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
WARMTH = {
    "type": "function",
    "function": {
        "name": "warmth",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    },
}


def call(city: str = "Bath", **changes):
    return {
        "type": "function",
        "function": {"name": "warmth", "arguments": {"city": city}} | changes,
    }


SAID = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "How warm is it?"},
    {"role": "assistant", "content": None, "tool_calls": [call("Bath"), call("Kent")]},
    {"role": "tool", "content": '{"celsius": 21}'},
    {"role": "tool", "content": '{"celsius": 19}'},
    {"role": "assistant", "content": "21 and 19."},
]
CALLED = [
    '<tool_call>\n{"name": "warmth", "arguments": {"city": "Bath"}}\n</tool_call>'
    '<tool_call>\n{"name": "warmth", "arguments": {"city": "Kent"}}\n</tool_call><|im_end|>',
    "21 and 19.<|im_end|>",
]


def rows_of(corpus: str, template: str = TOOLS):
    """Text of what is read, and of what is learnt, of a corpus of one conversation."""
    tokenizer = HFTokenizer(make(template))
    found = pack(open_corpora([corpus]), tokenizer, seq_len=2000, vocab_size=tokenizer.vocab_size)
    ((_, row),) = found
    inner = tokenizer._tokenizer.backend_tokenizer
    labels = [int(i) for i in row.labels]
    return (
        inner.decode(row.input_ids.tolist(), skip_special_tokens=False),
        inner.decode(labels, skip_special_tokens=False),
    )


def jsonl(folder, **record) -> str:
    path = folder / "chats.jsonl"
    path.write_text(json.dumps(record) + "\n", encoding="utf-8")
    return f"jsonl:{path}"


def test_calls_and_answers_are_learnt_and_what_tools_say_is_read(tmp_path):
    read, taught = rows_of(jsonl(tmp_path, messages=SAID, tools=[WARMTH]))
    assert taught == "".join(CALLED)
    assert "<tools>\n" + json.dumps(WARMTH) + "\n</tools>" in read
    responses = [f"\n<tool_response>\n{m['content']}\n</tool_response>" for m in SAID[3:5]]
    assert f"<|im_start|>user{''.join(responses)}<|im_end|>\n<|im_start|>assistant\n21" in read


def test_every_kind_of_file_gives_the_same(tmp_path):
    expected = rows_of(jsonl(tmp_path, messages=SAID, tools=[WARMTH]))
    assert rows_of(jsonl(tmp_path, messages=SAID, tools=json.dumps([WARMTH]))) == expected
    other = {"type": "function", "function": {"name": "n", "arguments": {"hour": 3}}}
    table = pa.Table.from_pylist(  # the struct of a column has every row's fields
        [
            {"messages": SAID, "tools": [WARMTH]},
            {"messages": [SAID[1], {**SAID[2], "tool_calls": [other]}], "tools": [WARMTH]},
        ]
    )
    pq.write_table(table.slice(0, 1), tmp_path / "one.parquet")
    assert rows_of(f"parquet:{tmp_path}/one.parquet") == expected
    pq.write_table(
        pa.Table.from_pylist([{"talk": SAID, "tools": json.dumps([WARMTH])}]),
        tmp_path / "text.parquet",
    )
    assert rows_of(f"parquet:{tmp_path}/text.parquet#talk") == expected


@pytest.mark.parametrize("tools", [None, [], "", "[]"])
def test_without_tools_nothing_else_changes(tmp_path, tools):
    talk = [SAID[1], SAID[5]]
    assert rows_of(jsonl(tmp_path, messages=talk, tools=tools)) == rows_of(
        jsonl(tmp_path, messages=talk)
    )
    assert rows_of(jsonl(tmp_path, messages=talk))[1] == CALLED[1]


@pytest.mark.parametrize(
    ("record", "template", "message"),
    [
        ({"messages": SAID[:2] + SAID[5:], "tools": [WARMTH]}, CHATML, 'leaves "tools" out'),
        ({"messages": SAID}, CHATML, 'leaves the "tool_calls" of message 2 out'),
        (
            {
                "messages": [
                    SAID[1],
                    {**SAID[2], "tool_calls": [call(arguments='{"city": "Bath"}')]},
                ]
            },
            TOOLS,
            'message 1 calls a tool with "arguments" that are a string',
        ),
        ({"messages": SAID, "tools": "{"}, TOOLS, '"tools" is text and no JSON'),
        ({"messages": SAID, "tools": [3]}, TOOLS, '"tools" is no list of objects'),
        ({"messages": SAID, "tools": {"a": 1}}, TOOLS, '"tools" is no list of objects'),
        ({"messages": [SAID[1], {"role": "assistant", "content": None}]}, TOOLS, 'no "content"'),
        ({"messages": [SAID[1], {**SAID[2], "tool_calls": []}]}, TOOLS, 'no "content"'),
    ],
)
def test_what_would_be_lost_or_misread_is_refused(tmp_path, record, template, message):
    with pytest.raises(CorpusError, match=rf"chats\.jsonl:1: .*{message}"):
        rows_of(jsonl(tmp_path, **record), template)


def test_arguments_that_a_template_takes_as_text_are_taken_as_text(tmp_path):
    raw = TOOLS.replace(
        "{{ {'name': c['function']['name'], 'arguments': c['function']['arguments']} | tojson }}",
        "{{ c['function']['name'] }}{{ c['function']['arguments'] }}",
    )
    talk = [SAID[1], {**SAID[2], "tool_calls": [call(arguments='{"city": "Bath"}')]}]
    taught = rows_of(jsonl(tmp_path, messages=talk), raw)[1]
    assert taught == '<tool_call>\nwarmth{"city": "Bath"}\n</tool_call><|im_end|>'


def test_a_conversation_without_tools_is_tokenised_as_before():
    assert learnt(HFTokenizer(make(TOOLS)), ("user", "x"), ("assistant", "y")) == ["y<|im_end|>"]
