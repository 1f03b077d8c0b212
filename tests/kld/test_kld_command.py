"""`softlabels kld`: figures, pairs, gates, refusals, the page and the block of a card."""

from __future__ import annotations

import hashlib
import json
import math
import shutil
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from softlabels import open_store
from softlabels.cli.main import main
from softlabels.errors import TokenizerError
from softlabels.kld.candidates import check_same_ids, models_of, vocabulary
from softlabels.kld.compare import compare
from softlabels.kld.significance import mcnemar, sign_flips
from softlabels.kld.token_classes import class_of
from softlabels.teachers import TEACHERS
from tests.fakes import TinyTeacher, build_tiny, write_corpus
from tests.kld.test_compare import Near, dense_of


def load_near(argument: str, options) -> TinyTeacher:
    noise, _, padding = argument.partition("+")
    return Near(float(noise), int(padding or 0))


def load_other(argument: str, options) -> TinyTeacher:
    return TinyTeacher(salt=argument)


@pytest.fixture(autouse=True)
def _back_ends(monkeypatch):
    monkeypatch.setitem(TEACHERS.builtin, "near", "tests.kld.test_kld_command:load_near")
    monkeypatch.setitem(TEACHERS.builtin, "salted", "tests.kld.test_kld_command:load_other")


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("kld")
    build_tiny(folder / "s", write_corpus(folder / "text"), k=20, shard_rows=4, values="float32")
    return folder / "s"


def run(*arguments: object, exit_code: int = 0):
    result = CliRunner().invoke(main, ["kld", *map(str, arguments)])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == exit_code, result.output
    return result


def json_of(*arguments: object) -> dict:
    return json.loads(run(*arguments, "--json").stdout)


def test_figures_are_those_of_whole_distributions(store):
    (found,) = json_of("a=near:0.1", "--store", store)["candidates"]
    true = dense_of(store, Near(0.1))
    figures = {name: f["value"] for name, f in found["figures"].items()}
    dp = np.exp(true["label_logp"]) - np.exp(true["said_logp"])
    assert found["kl_least"] <= true["kl"].mean() <= found["kl_most"]
    assert figures["kl_bins"] < true["kl"].mean()
    assert figures["kl"] == pytest.approx(true["kl"].mean(), rel=0.05)
    assert figures["same_top"] == true["same_top"].mean()
    ratio = math.exp((true["said_logp"] - true["label_logp"]).mean())
    assert figures["perplexity_ratio"] == pytest.approx(ratio, rel=1e-3)
    assert figures["dp_rms"] == pytest.approx(math.sqrt((dp**2).mean()), rel=1e-2)
    assert figures["dp_median"] == pytest.approx(np.median(dp), abs=1e-3)
    assert figures["accept_low"] <= true["accept"].mean() <= figures["accept_high"]
    assert figures["kl_median"] <= figures["kl_90"] <= figures["kl_99"] <= figures["kl_max"]
    flips = found["flips"]
    assert flips["only_first"] == (true["said_right"] & ~true["right"]).sum()
    assert flips["only_second"] == (~true["said_right"] & true["right"]).sum()
    for name in ("kl", "kl_median", "kl_99", "same_top", "dp_rms", "perplexity_ratio"):
        figure = found["figures"][name]
        assert figure["low"] <= figure["value"] <= figure["high"], name
    assert sum(g["positions"] for g in found["by_context"]) == len(dp)


def test_the_reference_itself_is_at_no_distance(store):
    (found,) = json_of("a=near:0", "--store", store)["candidates"]
    assert found["figures"]["kl_max"]["value"] < 1e-6
    assert found["figures"]["same_top"]["value"] == 1
    assert found["flips"]["p"] == 1


def test_which_of_two_is_nearer(store):
    result = json_of("a=near:0.1", "b=near:0.15", "c=near:0.1+7", "--store", store)
    pairs = {(p["first"], p["second"]): p for p in result["pairs"]}
    assert list(pairs) == list(combinations("abc", 2))
    clear, even = pairs["a", "b"], pairs["a", "c"]
    assert clear["p"] < 0.01
    assert clear["kl_difference"]["high"] < 0
    text = run("a=near:0.1", "b=near:0.15", "--store", store).stdout
    assert "a is nearer than b, by 0.0" in text
    assert even["first"] == "a"


def test_equal_candidates_cannot_be_told_apart(store):
    text = run("a=near:0.1", "b=near:0.1", "--store", store).stdout
    assert "a and b cannot be told apart" in text or "b and a cannot be told apart" in text


def test_gates_go_by_the_worse_end_of_the_interval(store):
    (found,) = json_of("a=near:0.1", "--store", store)["candidates"]
    kl, same = found["figures"]["kl"], found["figures"]["same_top"]
    between = (kl["value"] + kl["high"]) / 2
    run("a=near:0.1", "--store", store, "--max-kl", kl["high"] * 1.01)
    failed = run("a=near:0.1", "--store", store, "--max-kl", between, exit_code=1)
    assert "a: its mean KL is" in failed.stderr
    assert "KL, mean" in failed.stdout
    run("a=near:0.1", "--store", store, "--min-same-top", same["low"] * 0.99)
    failed = run("a=near:0.1", "--store", store, "--min-same-top", 0.999, exit_code=1)
    assert "--min-same-top asks for 0.999" in failed.stderr
    assert "--max-kl" in run("near:0", "--store", store, "--max-kl", "nan", exit_code=2).stderr


def test_another_tokenizer_is_refused(store):
    assert "cannot be compared" in run("salted:x", "--store", store, exit_code=1).stderr


def test_the_same_tokens_in_another_file_are_the_same(store, tmp_path):
    """A GGUF's tokenizer is rebuilt, and its digest another, though each id is the same token."""
    table = {f"t{i}": i for i in range(257)}

    def tokenizer_of(salt: str, **changes: int) -> TinyTeacher:
        teacher = TinyTeacher(salt=salt)
        content = {"model": {"vocab": table | changes}, "made_by": salt}
        teacher.tokenizer.files = lambda: {"tokenizer.json": json.dumps(content).encode()}
        return teacher

    corpus = write_corpus(tmp_path / "text", documents=1, repeat=1)
    build_tiny(tmp_path / "s", corpus, teacher=tokenizer_of("a"))
    told: list[str] = []
    check_same_ids(open_store(tmp_path / "s"), tokenizer_of("b"), told.append)
    assert "all 257 ids are the same tokens" in told[0]
    swapped = tokenizer_of("c", t7=9, t9=7)
    with pytest.raises(TokenizerError, match="id 7 is 't9', to the reference 't7'"):
        check_same_ids(open_store(tmp_path / "s"), swapped, told.append)


def test_a_shuffled_row_is_refused_by_its_digest(store, tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    from tests.store.made_up import reseal

    copy = Path(shutil.copytree(store, tmp_path / "s"))
    shard = sorted((copy / "data").iterdir())[0]
    rows = pq.read_table(shard)
    ids = rows["input_ids"].to_pylist()
    ids[0][3:9] = reversed(ids[0][3:9])
    at = rows.schema.get_field_index("input_ids")
    changed = rows.set_column(at, rows.schema.field(at), pa.array(ids, rows.schema.field(at).type))
    pq.write_table(changed, shard, write_page_checksum=True)
    data = shard.read_bytes()
    record = {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
    reseal(copy / "manifest.json", **{f"shards__0__{n}": v for n, v in record.items()})
    said = run("near:0", "--store", copy, exit_code=1).stderr
    assert "row 0" in said


def test_two_of_one_name_and_what_is_no_model_are_refused(store):
    assert "two models are called" in run("near:0", "near:0", "--store", store, exit_code=2).stderr
    assert "no such path" in run("nowhere/at/all", "--store", store, exit_code=2).stderr


def test_a_path_says_what_it_is(tmp_path):
    for name in ("run/student/config.json", "export/model.onnx", "plain/config.json"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_text("{}")
    (tmp_path / "m.gguf").write_bytes(b"GGUF")
    (tmp_path / "plain" / "model.safetensors").write_bytes(b"12345")
    (tmp_path / "run" / "student" / "model.safetensors").write_bytes(b"1")
    found = models_of(tuple(str(tmp_path / n) for n in ("run", "export", "plain", "m.gguf")))
    assert [m.spec for m in found] == [
        f"hf:{tmp_path}/run/student",
        f"onnx:{tmp_path}/export/model.onnx",
        f"hf:{tmp_path}/plain",
        f"hf:{tmp_path}/m.gguf",
    ]
    assert [m.name for m in found] == ["run", "export", "plain", "m.gguf"]
    assert [m.bytes for m in found] == [1, 2, 5, 4]


def test_the_page_and_the_card(store, tmp_path):
    out = tmp_path / "kld.html"
    run("a<b=near:0.1", "--store", store, exit_code=2)
    run("a b=near:0.1", "c=near:0.3", "--store", store, "--out", out)
    page = out.read_text(encoding="utf-8")
    assert "a b is nearer than c" in page
    assert page.count("<svg") >= 2
    card = run("a=near:0.1", "--store", store, "--markdown").stdout
    assert "| a | not known | " in card
    assert open_store(store).digest[:16] in card


def test_rows_are_limited(store):
    assert json_of("near:0.1", "--store", store, "--limit-rows", 3)["rows"] == 3


# -- chance ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("split", [(0, 0), (0, 5), (3, 9), (40, 25), (1, 1)])
def test_mcnemar_is_the_binomial_test(split):
    from math import comb

    n, few = sum(split), min(split)
    expected = min(1.0, 2 * sum(comb(n, i) for i in range(few + 1)) / 2**n)
    assert mcnemar(*split).p == pytest.approx(expected)


def test_sign_flips_are_fair():
    g = np.random.default_rng(0)
    none = [sign_flips(g.normal(size=30), seed) for seed in range(60)]
    assert 0.3 < np.mean(none) < 0.7
    assert sign_flips(g.normal(size=30) + 1, 0) < 0.01


@pytest.mark.parametrize(
    ("token", "kind"),
    [
        ("Ġthe", "word begins"),
        ("▁The", "word begins"),
        ("ing", "word goes on"),
        ("Ġ12", "number"),
        ("Ċ", "white space"),
        ("ĠĠ", "white space"),
        (",", "punctuation"),
        ("<|endoftext|>", "special"),
        (None, "special"),
        ("âĢ", "word goes on"),
    ],
)
def test_kinds_of_tokens(token, kind):
    assert class_of(token) == kind


def test_a_table_of_tokens_is_read_in_either_form():
    assert vocabulary(b'{"model": {"vocab": {"a": 0, "b": 1}}}') == {0: "a", 1: "b"}
    pieces = b'{"model": {"vocab": [["a", -1.0], ["b", -2.0]]}, "added_tokens": [{"id": 2, "content": "c"}]}'
    assert vocabulary(pieces) == {0: "a", 1: "b", 2: "c"}
    for broken in (b"", b"[]", b'{"model": {"vocab": 3}}', b'{"model": {"vocab": {"a": "b"}}}'):
        assert vocabulary(broken) is None


def test_a_candidate_that_lists_is_compared_over_what_both_know(store):
    from tests.kld.listing import Lists

    opened = open_store(store)
    whole = compare(opened, Near(0.2))
    listed = compare(opened, Lists(Near(0.2)), list_k=30)
    assert (listed.answered.bins <= whole.answered.bins + 1e-6).all()
    assert listed.answered.bins.mean() > 0.7 * whole.answered.bins.mean()
    np.testing.assert_allclose(listed.answered.label_logp, whole.answered.label_logp, atol=1e-5)
    np.testing.assert_array_equal(listed.answered.same_top, whole.answered.same_top)
