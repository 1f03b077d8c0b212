"""Two jobs are compared field by field, and the sentence names the flag that decides the field."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from softlabels.errors import PlanError
from softlabels.format.manifest import Plan
from softlabels.making.plan import load_plan
from softlabels.making.same_job import check_same_job, differences
from tests.fakes import build_tiny, write_corpus


@pytest.fixture(scope="module")
def plan(tmp_path_factory) -> Plan:
    folder = tmp_path_factory.mktemp("job")
    build_tiny(folder / "s", write_corpus(folder / "corpus", documents=1, repeat=1))
    found = load_plan(folder / "s")
    assert found is not None
    return found


def changed(plan: Plan, **fields: Any) -> Plan:
    """The plan with `PART__NAME` of its identity changed."""
    identity = plan.identity
    for name, value in fields.items():
        part, _, own = name.partition("__")
        new = msgspec.structs.replace(getattr(identity, part), **{own: value}) if own else value
        identity = msgspec.structs.replace(identity, **{part: new})
    return msgspec.structs.replace(plan, identity=identity)


def said(plan: Plan, other: Plan, tmp_path) -> str:
    with pytest.raises(PlanError) as e:
        check_same_job(tmp_path, plan, other, command="build")
    return str(e.value).removeprefix(f"{tmp_path}: ")


@pytest.mark.parametrize(
    ("field", "value", "says"),
    [
        ("targets__k", 6, "targets k = 5, this build has 6 (--k); run it as planned"),
        ("targets__temperatures", [2.0], "[1.0], this build has [2.0] (--temperature)"),
        ("corpus__seq_len", 9, "corpus seq_len = 64, this build has 9 (--seq-len)"),
        ("teacher__weights_sha256", "0" * 64, "(--teacher)"),
        ("teacher__dtype", "bfloat16", "this build has 'bfloat16' (--dtype)"),
        ("encoding__container", "zarr", "this build has 'zarr' (--container)"),
        ("licence", "MIT", "(--licence); run it as planned, and state it afterwards (`softlabels"),
        ("summary", None, "with summaries of positions; run it with --position-summary"),
        ("corpus__fingerprint", "0" * 64, "from another corpus; give all builders the same"),
        ("classes", ["a"], "classes = None, this build has ['a'] (--teacher)"),
    ],
)
def test_the_flag_is_named(plan, tmp_path, field, value, says):
    assert says in said(plan, changed(plan, **{field: value}), tmp_path)


def test_what_was_chosen_is_named_before_what_follows_from_it(plan, tmp_path):
    other = changed(plan, corpus__fingerprint="0" * 64, corpus__rows=3, targets__seed=4)
    assert "targets seed = 0" in said(plan, other, tmp_path)
    fields = [d.field for d in differences(plan.identity, other.identity)]
    assert fields == ["targets seed", "corpus fingerprint", "corpus rows"]


def test_where_things_lie_is_no_difference(plan, tmp_path):
    other = changed(plan, teacher__spec="hf:elsewhere", teacher__name="x", corpus__specs=["text:y"])
    check_same_job(tmp_path, plan, other, command="build")
    assert said(plan, msgspec.structs.replace(other, shard_rows=1), tmp_path).startswith(
        "was planned with shard_rows = 8, this build has 1 (--shard-rows)"
    )
