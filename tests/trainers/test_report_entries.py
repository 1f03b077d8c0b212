"""Runs of several seeds as one entry, differences that are coloured only where they are sure, settings, costs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from softlabels.report.charts import same_lines
from tests.pages import check_page
from trainers.evaluation.evaluations import FORMAT, VERSION, Assessment, Scores, StoreFacts
from trainers.report.costs import costs_of
from trainers.report.differing import differing
from trainers.report.entries import Entry, difference, entries_of, joined
from trainers.report.findings import Findings
from trainers.report.page import render
from trainers.report.runs import ReportedRun

ROWS, EACH = 40, 10
STORE = StoreFacts(
    path="heldout",
    digest="d" * 64,
    rows=ROWS,
    positions=ROWS * EACH,
    estimator="topk",
    k=5,
    teacher="tiny",
    teacher_parameters=1000,
    domain="causal-lm",
    corpus=["text:a.txt"],
    vocab=None,
)
CONFIG = {"store": "s", "student": "new:1M", "steps": 20, "batch_size": 2, "alpha": 0.9, "seed": 0}


def run_of(
    name: str,
    nll: np.ndarray | float,
    *,
    correct: np.ndarray | float = 4.0,
    curves: dict[str, list[tuple[float, float]]] | None = None,
    sums: bool = True,
    **config: Any,
) -> ReportedRun:
    """A run whose evaluation has these sums in each row."""
    of_rows = np.broadcast_to(np.asarray(nll, np.float64), ROWS)
    right = np.broadcast_to(np.asarray(correct, np.float64), ROWS)
    empty = dict.fromkeys(
        (
            *("kl", "agreement", "top_k_agreement", "acceptance_low", "acceptance_high"),
            *("teacher_nll", "teacher_accuracy", "teacher_ece", "dropped"),
        )
    )
    mean = float(of_rows.sum() / (ROWS * EACH))
    scores = Scores(
        positions=ROWS * EACH,
        soft_positions=0,
        nll=mean,
        perplexity=float(np.exp(mean)),
        accuracy=float(right.sum() / (ROWS * EACH)),
        macro_f1=0.0,
        ece=0.1,
        **empty,
    )
    found = Assessment(
        format=FORMAT,
        version=VERSION,
        softlabels="0",
        command=f"softtrain eval {name}",
        weights="student",
        weights_sha256="0" * 64,
        parameters=100,
        student_bytes=400,
        store=STORE,
        scores=scores,
        intervals={},
        level=0.95,
        replicates=400,
        seed=0,
        reliability=[],
        teacher_reliability=[],
        by_context=[],
        by_document=[],
        documents=1,
        by_class=[],
        blind_spots=None,
        row_positions=[EACH] * ROWS,
        row_nll=of_rows.tolist(),
        row_sums={"correct": right.tolist()} if sums else {},
    )
    record = {"config": CONFIG | config, "store_digest": "s" * 64, "parameters": 100}
    record |= {"dtype": "float32", "torch": "2", "softlabels": "0"}
    return ReportedRun(
        name=name,
        path=Path(name),
        record=record,
        curves=curves or {},
        found=found,
        command=f"softtrain run --out {name}",
        training_stores=[],
    )


def entry(*runs: ReportedRun) -> Entry:
    return Entry(runs=list(runs), name=runs[0].name)


def noise(seed: int, scale: float) -> np.ndarray:
    return 30 + np.random.default_rng(seed).normal(0, scale, ROWS)


# -- entries ---------------------------------------------------------------------------------------


def test_runs_that_differ_in_their_seeds_only_are_one_entry():
    runs = [run_of(f"soft-seed{i}", 30.0 + i, seed=i) for i in range(3)]
    runs += [run_of(f"hard-seed{i}", 50.0, alpha=0.0, seed=i) for i in range(2)]
    runs += [run_of("wide", 20.0, student="new:9M", store="elsewhere")]
    found = {e.name: len(e.runs) for e in entries_of(runs)}
    assert found == {"soft": 3, "hard": 2, "wide": 1}
    soft = entries_of(runs)[0]
    assert soft.score("nll") == (
        msgspec.structs.replace(soft.score("nll"), value=3.1, low=3.0, high=3.2)
    )
    assert soft.shown.name == "soft-seed1"
    assert soft.described == "soft · soft targets, alpha 0.9 · 3 seeds"


def test_a_repeat_of_a_seed_is_no_further_seed():
    runs = [run_of("one", 30.0), run_of("again", 30.0)]
    assert [len(e.runs) for e in entries_of(runs)] == [1, 1]


def test_where_the_store_lies_is_no_setting_and_which_it_is_is_one():
    moved = [run_of("a0", 30.0, store="here"), run_of("a1", 30.0, store="there", seed=1)]
    assert len(entries_of(moved)) == 1
    moved[1].record["store_digest"] = "t" * 64
    assert len(entries_of(moved)) == 2


def test_names_that_share_nothing_or_are_taken_stay_clear():
    runs = [run_of("x", 30.0), run_of("y", 30.0, seed=1)]
    assert [e.name for e in entries_of(runs)] == ["all runs"]
    runs += [run_of("x-0", 9.0, alpha=0.0), run_of("x-1", 9.0, alpha=0.0, seed=1)]
    assert len({e.name for e in entries_of(runs)}) == 2


# -- differences -----------------------------------------------------------------------------------


def test_a_difference_that_is_the_same_in_every_row_is_known_exactly():
    base = noise(0, 5.0)
    d = difference(entry(run_of("a", base)), entry(run_of("b", base + 2)))
    assert (d.value, d.low, d.high) == pytest.approx((0.2, 0.2, 0.2))
    assert d.clear


@given(st.integers(0, 2**31))
def test_the_two_orders_of_a_difference_are_opposite(seed):
    one, other = (entry(run_of(n, noise(seed + i, 3.0))) for i, n in enumerate("ab"))
    d, back = difference(one, other), difference(other, one)
    assert (d.value, d.low, d.high) == pytest.approx((-back.value, -back.high, -back.low))
    assert d.low <= d.value <= d.high or abs(d.value) < 1


def test_seeds_that_differ_more_than_settings_do_not_pass_for_an_effect():
    base = noise(1, 5.0)
    one = entry(*(run_of(f"a{i}", base + x, seed=i) for i, x in enumerate((-6.0, 0.0, 6.0))))
    other = entry(*(run_of(f"b{i}", base + 1 + x, seed=i) for i, x in enumerate((-6.0, 0.0, 6.0))))
    apart = difference(entry(one.runs[1]), entry(other.runs[1]))
    together = difference(one, other)
    assert apart.clear
    assert together.value == pytest.approx(0.1)
    assert not together.clear
    calm = [
        entry(*(run_of(f"{n}{i}", base + up + 0.01 * i, seed=i) for i in range(3)))
        for n, up in (("a", 0.0), ("b", 1.0))
    ]
    assert difference(*calm).clear


def test_the_spread_of_seeds_in_an_interval_is_that_of_their_mean():
    """Rows all alike, so that only seeds vary: against the normal interval of a difference of two means."""
    values = np.array([-3.0, -1.0, 0.0, 1.0, 3.0])
    one = entry(*(run_of(f"a{i}", 30 + 10 * x, seed=i) for i, x in enumerate(values)))
    other = entry(*(run_of(f"b{i}", 30 + 10 * x, seed=i) for i, x in enumerate(values)))
    d = difference(one, other)
    expected = 1.96 * np.sqrt(2 * values.var(ddof=1) / len(values))
    assert d.high - d.low == pytest.approx(2 * expected, rel=0.15)


def test_only_what_is_surely_better_is_coloured():
    base = noise(2, 5.0)
    right = np.random.default_rng(3).integers(0, 10, ROWS).astype(float)
    other = np.random.default_rng(4).permutation(right)  # as many, in other rows
    other[0] += 1
    findings = Findings.of(
        [
            run_of("good", base, correct=right, alpha=0.5),
            run_of("bad", base + 3, correct=other, alpha=0.0),
        ]
    )
    lines = {line.score.name: line for line in findings.table()}
    assert lines["nll"].best == lines["perplexity"].best == 0
    assert lines["accuracy"].best is None
    assert not lines["accuracy"].beyond.clear
    assert lines["ece"].best is None
    page = render(findings, command="")
    assert page.count('class="n best"') == 3  # nll and its difference, perplexity
    text = check_page(page)
    assert "Coloured: surely different." in text
    assert "bad has more by" in text


def test_an_evaluation_of_before_has_no_interval_for_what_it_does_not_keep():
    runs = [run_of(n, noise(5, 1.0) + up, sums=False, lr=up) for n, up in (("a", 0.0), ("b", 9.0))]
    lines = {line.score.name: line for line in Findings.of(runs).table()}
    assert lines["nll"].best == 0
    assert (lines["accuracy"].beyond.low, lines["accuracy"].best) == (None, None)


# -- curves ----------------------------------------------------------------------------------------


def test_the_same_curve_is_drawn_once_and_says_whose_it_is():
    hard = [(1.0, 3.0), (2.0, 2.0)]
    runs = [
        run_of("a", 30.0, curves={"hard": hard}, lr=0.1),
        run_of("b", 31.0, curves={"hard": hard}, lr=0.2),
        run_of("c", 32.0, curves={"hard": [(1.0, 3.0), (2.0, 1.0)]}, lr=0.3),
    ]
    series = Findings.of(runs).curves("hard")
    assert [(s.name, s.said) for s in series] == [("a = b", "a = b"), ("c", "")]
    page = render(Findings.of(runs), command="")
    assert "a = b</text>" in page
    assert page.count('<polyline points="') == 2


def test_seeds_are_one_curve_with_a_band_over_the_steps_that_all_logged():
    lines = [[(1.0, 2.0), (2.0, 1.0)], [(1.0, 4.0), (2.0, 3.0), (3.0, 0.0)]]
    s = joined("x", "s0", lines)
    assert s.points == [(1.0, 3.0), (2.0, 2.0)]
    assert s.band == [(1.0, 2.0, 4.0), (2.0, 1.0, 3.0)]
    assert same_lines([s, s._replace(name="y")])[0].name == "x = y"


# -- settings and costs ----------------------------------------------------------------------------


def test_only_the_settings_that_differ_are_listed():
    runs = [run_of("a", 30.0, lr=0.001), run_of("b", 31.0, lr=0.01, freeze=["head"])]
    found = {s.name: s.values for s in differing(entries_of(runs))}
    assert found == {"--lr": ["0.001", "0.01"], "--freeze": ["not given", "head"]}
    seeds = [run_of(f"a{i}", 30.0, seed=i) for i in range(2)]
    assert [(s.name, s.values) for s in differing(entries_of(seeds))] == [("--seed", ["0, 1"])]
    same = [run_of("one", 30.0), run_of("again", 30.0)]
    assert differing(entries_of(same)) == []
    assert "they have the same settings" in check_page(render(Findings.of(same), command=""))
    assert differing(entries_of(same[:1])) == []


def test_costs_are_of_what_was_logged():
    logged = {
        "elapsed": [(1.0, 10.0), (20.0, 1800.0)],
        "seconds": [(1.0, 5.0), (20.0, 15.0)],
        "positions_per_second": [(1.0, 10.0), (10.0, 90.0), (20.0, 100.0)],
        "peak_rss_mib": [(1.0, 500.0), (20.0, 2048.0)],
    }
    (exact,) = costs_of(entries_of([run_of("a", 30.0, curves=logged)]), 2.0)
    assert (exact.seconds, exact.about, exact.rate, exact.memory) == (1800.0, False, 90.0, 2048.0)
    assert (exact.money, exact.time) == (1.0, "30 min")
    old = {k: v for k, v in logged.items() if k != "elapsed"}
    (about,) = costs_of(entries_of([run_of("a", 30.0, curves=old)]), None)
    assert (about.seconds, about.about, about.money) == (200.0, True, None)
    seeds = [run_of(f"a{i}", 30.0, seed=i, curves=logged) for i in range(3)]
    (three,) = costs_of(entries_of(seeds), 2.0)
    assert (three.seconds, three.money) == (1800.0, 3.0)
    (none,) = costs_of(entries_of([run_of("a", 30.0)]), 2.0)
    assert (none.seconds, none.money, none.time) == (None, None, "")
    page = render(Findings.of(seeds), command="", price=2.0)
    assert "cost at 2 an hour" in page
    assert "3.00" in page


def test_seeds_that_followed_their_store_are_one_entry_with_those_that_did_not():
    runs = [run_of(f"run-{s}", 2.0, seed=s, order="plan", follow=s > 0) for s in range(3)]
    for digest, run in zip("spp", runs, strict=True):  # a store that was not finished is its plan
        run.record.update(store_digest=digest * 64, plan_digest="p" * 64)
    assert [len(e.runs) for e in entries_of(runs)] == [3]
    runs[2].record.update(plan_digest="q" * 64)
    assert [len(e.runs) for e in entries_of(runs)] == [2, 1]
