"""Sampling from a student, and the round that it is one half of."""

from __future__ import annotations

import json
from itertools import chain

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from click.testing import CliRunner

import trainers
from softlabels.builder.build import build
from softlabels.builder.config import BuildConfig
from softlabels.errors import ConfigError, CorpusError, RunError
from softlabels.store.reader import open_store
from softlabels.teachers import TeacherOptions, open_teacher
from tests.students import llama
from tests.teachers.tiny import VOCAB, write_model, write_texts
from trainers.cli import main
from trainers.generation.config import Sampling
from trainers.generation.prompts import Words, read_prompts
from trainers.generation.sampling import draws, pick, sample
from trainers.run.config import RunConfig
from trainers.run.setup import train
from trainers.students import load_student

STUDENT = llama(
    layers=2,
    width=32,
    vocab_size=VOCAB,
    max_position_embeddings=2048,
    initializer_range=0.4,
    tie_word_embeddings=False,
    bos_token_id=None,
    eos_token_id=0,
)


@pytest.fixture(scope="module")
def ground(tmp_path_factory):
    folder = tmp_path_factory.mktemp("generate")
    write_model(folder / "teacher")
    teacher = open_teacher(f"hf:{folder}/teacher", TeacherOptions(dtype="float32"))
    config = BuildConfig(
        teacher="hf:x", corpus=(write_texts(folder / "corpus"),), estimator="topk", k=8, seq_len=48
    )
    build(config, folder / "store", teacher=teacher)
    (folder / "student.json").write_text(json.dumps(STUDENT))
    run = RunConfig(
        store=str(folder / "store"),
        student=f"hf-config:{folder / 'student.json'}",
        steps=2,
        batch_size=2,
        dtype="float32",
    )
    train(run, folder / "run")
    lines = [
        "It is a truth",
        "a",
        "universally acknowledged that a single",
        "in possession of",
        "x",
    ]
    (folder / "prompts.txt").write_text("\n".join(lines) + "\n")
    return folder


def lines_of(path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def ids_of(path) -> list[list[int]]:
    return pq.read_table(path)["input_ids"].to_pylist()


# -- draws ----------------------------------------------------------------------------------------


def test_picks_follow_the_probabilities_of_the_nucleus():
    logits = torch.log(torch.tensor([[0.1, 0.4, 0.2, 0.3]]))
    n = 20_000
    uniforms = torch.from_numpy(np.random.default_rng(0).random(n))
    for top_p, expected in (
        (1.0, [0.1, 0.4, 0.2, 0.3]),
        (0.6, [0, 4 / 7, 0, 3 / 7]),
        (0.01, [0, 1, 0, 0]),
    ):
        found = pick(logits.expand(n, -1), uniforms, temperature=1.0, top_p=top_p)
        share = np.bincount(found.numpy(), minlength=4) / n
        np.testing.assert_allclose(share, expected, atol=0.012)
    hot = pick(logits.expand(n, -1), uniforms, temperature=0.5, top_p=1.0)
    square = np.array([0.01, 0.16, 0.04, 0.09])
    np.testing.assert_allclose(
        np.bincount(hot.numpy(), minlength=4) / n, square / square.sum(), atol=0.012
    )
    assert pick(logits, uniforms[:1], temperature=0.0, top_p=1.0).tolist() == [1]


def test_extreme_draws_never_pick_what_cannot_be():
    """Ids without probability stand first, last and between."""
    logits = torch.randn(50, 999, generator=torch.Generator().manual_seed(0))
    logits[:, [0, 5, 6, 998]] = -torch.inf
    logits[:, 997] = -745.0  # its share is lost in the sum
    for u in (0.0, 0.5, 1 - 2**-53):
        chosen = pick(logits, torch.full((50,), u, dtype=torch.float64), temperature=1.0, top_p=1.0)
        assert bool(torch.isfinite(logits.gather(1, chosen[:, None])).all())
        assert bool((chosen < 997).all())


def test_extreme_draws_stay_in_the_nucleus():
    logits = torch.randn(50, 999, generator=torch.Generator().manual_seed(0))
    for u in (0.0, 1 - 2**-53):
        chosen = pick(logits, torch.full((50,), u, dtype=torch.float64), temperature=1.0, top_p=0.3)
        assert bool((torch.softmax(logits, 1).gather(1, chosen[:, None]) > 1 / 999).all())


def test_draws_are_of_the_sequence_alone():
    assert draws(1, 7, 5).tolist() == draws(1, 7, 9)[:5].tolist()
    assert draws(1, 7, 5).tolist() != draws(1, 8, 5).tolist() != draws(2, 8, 5).tolist()


def test_a_sequence_is_what_a_loop_without_cache_or_padding_samples(ground):
    """Greedily, and by its draws."""
    student = load_student(ground / "run" / "student").eval()
    prompts = [np.array(p) for p in ([5, 9, 33], [7], [40, 2, 8, 100, 61])]
    for temperature in (0.0, 0.8):
        sampling = Sampling(temperature=temperature, top_p=0.95, max_new_tokens=9, seed=3)
        found = list(sample(student, prompts, sampling, ends=frozenset({0}), first=10))
        for i, (prompt, s) in enumerate(zip(prompts, found, strict=True)):
            u = torch.from_numpy(draws(3, 10 + i, 9))
            ids = prompt.tolist()
            for t in range(len(s.new)):
                with torch.no_grad():
                    logits = student.model(input_ids=torch.tensor([ids])).logits[:, -1]
                chosen = pick(logits, u[t : t + 1], temperature=temperature, top_p=0.95)
                ids.append(int(chosen))
            assert ids[len(prompt) :] == s.new.tolist()
            assert s.finished == (s.new[-1] == 0)
            assert 0 not in s.new[:-1]


# -- corpora --------------------------------------------------------------------------------------


def run_cli(*arguments: str):
    return CliRunner().invoke(main, ["generate", *arguments, "--json"])


def test_batches_and_order_of_work_change_nothing(ground, tmp_path):
    for name, batch_size in (("a", 1), ("b", 4), ("c", 50)):
        found = trainers.generate(
            run=ground / "run",
            prompts=ground / "prompts.txt",
            out=tmp_path / f"{name}.parquet",
            max_new_tokens=12,
            seed=5,
            n=3,
            batch_size=batch_size,
        )
        assert found.sequences == 15
    a, b, c = (ids_of(tmp_path / f"{n}.parquet") for n in "abc")
    assert a == b == c
    assert len({tuple(x) for x in a[:3]}) == 3, "the sequences of one prompt differ"
    trainers.generate(
        run=ground / "run",
        prompts=ground / "prompts.txt",
        out=tmp_path / "d.parquet",
        max_new_tokens=12,
        seed=6,
        n=3,
    )
    assert ids_of(tmp_path / "d.parquet") != a


def test_a_round_teaches_the_very_ids_that_were_sampled(ground, tmp_path):
    done = run_cli(
        str(ground / "run"),
        "--prompts",
        str(ground / "store"),
        "--prompt-tokens",
        "4",
        "--max-new-tokens",
        "10",
        "--out",
        str(tmp_path / "own.parquet"),
    )
    assert done.exit_code == 0, done.output
    counts = json.loads(done.stdout)
    pieces = [r.row for r in open_store(ground / "store")]
    assert counts["sequences"] == sum(len(r.segment_lengths) for r in pieces) > 9
    table = pq.read_table(tmp_path / "own.parquet").to_pylist()
    starts = [np.split(r.input_ids, np.cumsum(r.segment_lengths)[:-1]) for r in pieces]
    begun = [(ids[:-1] if ids[-1] == 0 else ids)[:4].tolist() for ids in chain(*starts)]
    assert [t["input_ids"][: len(b)] for t, b in zip(table, begun, strict=True)] == begun
    config = BuildConfig(
        teacher=f"hf:{ground}/teacher",
        corpus=(f"ids:{tmp_path}/own.parquet",),
        estimator="topk",
        k=8,
        seq_len=48,
        dtype="float32",
    )
    manifest = build(config, tmp_path / "own")
    assert manifest.identity.corpus.positions == counts["tokens"]
    rows = list(open_store(tmp_path / "own"))
    stored = [r.row.input_ids.tolist() for r in rows]
    assert [*chain(*stored)] == [*chain(*(t["input_ids"] for t in table))]
    learnt = np.concatenate([r.row.labels for r in rows]).tolist()
    asked = list(zip(table, map(len, begun), strict=True))
    assert learnt == [*chain(*(t["input_ids"][n:] for t, n in asked))]
    assert all(sum(t["loss_mask"]) == len(t["input_ids"]) - n for t, n in asked)
    again = RunConfig(
        store=str(tmp_path / "own"), student=f"hf:{ground}/run/student", steps=1, batch_size=1
    )
    assert (train(again, tmp_path / "run2") / "model.safetensors").is_file()


def prompts_of(ground, path, **settings) -> list[list[int]]:
    words = Words(ground / "run" / "student")
    found = read_prompts(path, words, **({"prompt_tokens": 16} | settings))
    return [p.ids.tolist() for p in found]


def build_from(ground, corpus, out, *, seq_len=48):
    config = BuildConfig(
        teacher=f"hf:{ground}/teacher",
        corpus=(f"jsonl:{corpus}",),
        estimator="topk",
        k=8,
        seq_len=seq_len,
        dtype="float32",
    )
    build(config, out)
    return out


def test_a_short_document_prompts_without_the_mark_that_ends_it(ground, tmp_path):
    """As its text does; a longer one with its first tokens, and one that rows cut with those of each piece."""
    texts = ["It is", "a truth", "in", "possession of a", "universally acknowledged " * 30]
    records = "".join(json.dumps({"text": t}) + "\n" for t in texts)
    (tmp_path / "t.jsonl").write_text(records)
    store = build_from(ground, tmp_path / "t.jsonl", tmp_path / "store")
    lines = [t for t in texts if len(t) < 40]
    (tmp_path / "t.txt").write_text("\n".join(lines) + "\n")
    expected = prompts_of(ground, tmp_path / "t.txt")
    found = prompts_of(ground, store)
    assert found[: len(expected)] == expected
    assert max(map(len, expected)) < 16, "else the end mark would not have been among the first"
    long = found[len(expected) :]
    assert len(long) > 2
    assert all(len(ids) == 16 for ids in long[:-1])
    assert not any(0 in ids for ids in found)
    pieces = [r.row for r in open_store(store)]
    ends = [r.input_ids[np.cumsum(r.segment_lengths) - 1].tolist() for r in pieces]
    assert [*chain(*ends)].count(0) == len(texts), "each document of the store has the mark"


def test_a_conversation_of_a_store_prompts_up_to_where_the_assistant_speaks(ground, tmp_path):
    """As the conversation itself does without its answer: not with so many tokens, which are alike in all."""
    asked = [f"Is it a truth universally acknowledged, {'possession ' * i}{i}?" for i in range(4)]
    chats = [
        [{"role": "user", "content": a}, {"role": "assistant", "content": "It is a truth."}]
        for a in asked
    ]
    more = [{"role": "user", "content": "And?"}, {"role": "assistant", "content": "No."}]
    (tmp_path / "c.jsonl").write_text(
        "".join(json.dumps({"messages": [*c, *more]}) + "\n" for c in chats)
    )
    store = build_from(ground, tmp_path / "c.jsonl", tmp_path / "store", seq_len=256)
    (tmp_path / "p.jsonl").write_text(
        "".join(json.dumps({"messages": c[:-1]}) + "\n" for c in chats)
    )
    expected = prompts_of(ground, tmp_path / "p.jsonl")
    assert len({tuple(ids[:4]) for ids in expected}) == 1
    assert prompts_of(ground, store, prompt_tokens=4) == expected
    # What rows cut: a piece in which nobody learns to speak gives no prompt.
    cut = build_from(ground, tmp_path / "c.jsonl", tmp_path / "cut", seq_len=24)
    masks = [
        mask
        for r in open_store(cut)
        for mask in np.split(r.row.label_mask, np.cumsum(r.row.segment_lengths)[:-1])
    ]
    silent = sum(not m.any() for m in masks)
    assert 0 < silent < len(masks)
    found = prompts_of(ground, cut, prompt_tokens=4)
    assert len(found) == len(masks) - silent
    spoken = [m for m in masks if m.any()]
    assert [len(f) for f in found] == [4 if m[0] else int(m.argmax()) + 1 for m in spoken]


def test_texts_are_written_and_what_reads_otherwise_is_counted(ground, tmp_path):
    out = tmp_path / "own.jsonl"
    done = run_cli(
        str(ground / "run"), "--prompts", str(ground / "prompts.txt"), "--out", str(out),
        "--max-new-tokens", "8", "--n", "2",
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    counts = json.loads(done.stdout)
    records = lines_of(out)
    assert len(records) == counts["sequences"] == 10
    assert records[0]["text"].startswith("It is a truth")
    assert [r["sequence"] for r in records] == list(range(10))
    assert counts["unfinished"] == sum(not r["finished"] for r in records) > 0
    teacher = open_teacher(f"hf:{ground}/teacher", TeacherOptions(dtype="float32"))
    trainers.generate(
        run=ground / "run",
        prompts=ground / "prompts.txt",
        out=tmp_path / "same.parquet",
        max_new_tokens=8,
        n=2,
    )
    sampled = ids_of(tmp_path / "same.parquet")
    differs = 0
    for record, ids in zip(records, sampled, strict=True):
        ids = ids[:-1] if record["finished"] else ids
        differs += teacher.tokenizer.encode(record["text"]).input_ids.tolist() != [*ids, 0]
    assert counts["retokenised"] == differs > 0, "an untrained student says what no tokenizer does"


def test_conversations_get_an_answer(ground, tmp_path):
    asked = [
        [{"role": "user", "content": "Is it a truth?"}],
        [{"role": "user", "content": "possession"}],
    ]
    prompts = tmp_path / "p.jsonl"
    prompts.write_text("\n".join(json.dumps({"messages": m}) for m in asked))
    found = trainers.generate(
        run=ground / "run", prompts=prompts, out=tmp_path / "o.jsonl", max_new_tokens=5
    )
    assert found.sequences == 2
    for record, messages in zip(lines_of(tmp_path / "o.jsonl"), asked, strict=True):
        assert record["messages"][:-1] == messages
        assert record["messages"][-1]["role"] == "assistant"


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("", "p.jsonl:2: not a JSON object"),
        ('{"text": "a"}', 'p.jsonl:2: expected an object with either a string "prompt"'),
        ('{"prompt": "a", "messages": []}', "p.jsonl:2: expected an object"),
        ('{"messages": ["hi"]}', "p.jsonl:2: expected an object"),
        ('{"prompt": " "}', "p.jsonl:2: the prompt has no token"),
        ('{"messages": [{"role": "assistant", "content": "a"}]}', "the assistant has spoken last"),
    ],
)
def test_bad_prompts_are_refused_and_nothing_is_left(ground, tmp_path, line, words):
    (tmp_path / "p.jsonl").write_text(f'{{"prompt": "a"}}\n{line}\n')
    with pytest.raises(CorpusError, match=words):
        trainers.generate(
            run=ground / "run",
            prompts=tmp_path / "p.jsonl",
            out=tmp_path / "o.jsonl",
            max_new_tokens=2,
        )
    assert [p.name for p in tmp_path.iterdir()] == ["p.jsonl"]


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--temperature", "-1"), "--temperature -1.0: expected at least 0"),
        (("--top-p", "0"), "--top-p 0.0: expected above 0"),
        (("--max-new-tokens", "0"), "--max-new-tokens 0: expected at least 1"),
        (("--seed", "-1"), "--seed -1: expected at least 0"),
        (("--out", "own.txt"), "expected a name that ends in .jsonl or .parquet"),
        (("--out", __file__), "expected a name that ends in"),
    ],
)
def test_impossible_flags_are_usage_errors(ground, tmp_path, flags, words):
    done = CliRunner().invoke(
        main,
        ["generate", str(ground / "run"), "--prompts", str(ground / "prompts.txt"),
         "--out", str(tmp_path / "o.jsonl"), *flags],
    )  # fmt: skip
    assert done.exit_code == 2
    assert words in done.output


def test_other_mistakes_are_refused(ground, tmp_path):
    out = tmp_path / "o.jsonl"
    with pytest.raises(RunError, match="not a run"):
        trainers.generate(run=tmp_path, prompts=ground / "prompts.txt", out=out, max_new_tokens=2)
    with pytest.raises(RunError, match="without --ema"):
        trainers.generate(
            run=ground / "run",
            prompts=ground / "prompts.txt",
            out=out,
            max_new_tokens=2,
            weights="ema",
        )
    (tmp_path / "e.txt").write_text("")
    with pytest.raises(CorpusError, match="is empty"):
        trainers.generate(run=ground / "run", prompts=tmp_path / "e.txt", out=out, max_new_tokens=2)
    with pytest.raises(ConfigError, match="more than the 2048 positions that the student knows"):
        trainers.generate(
            run=ground / "run", prompts=ground / "prompts.txt", out=out, max_new_tokens=2048
        )
    assert not out.exists()
    out.write_text("")
    with pytest.raises(ConfigError, match="is there already"):
        trainers.generate(
            run=ground / "run", prompts=ground / "prompts.txt", out=out, max_new_tokens=2
        )
