"""Which candidate the page says to ship, by the gates that were asked for."""

from __future__ import annotations

import re

import pytest

from softlabels.kld.gates import USUAL, Gates
from softlabels.kld.record import (
    Candidate,
    CandidateFacts,
    Comparison,
    Figure,
    Pair,
    ReferenceFacts,
)
from softlabels.kld.record import Test as Split
from softlabels.report.kld_page import render
from tests.pages import browser, check_page

EVEN = Split(only_first=0, only_second=0, p=1.0)


def candidate(name: str, size: int | None, kl: float | None, same: float) -> Candidate:
    facts = CandidateFacts(
        name=name,
        spec=f"hf:{name}",
        weights_sha256="0" * 64,
        dtype="float32",
        device="cpu",
        engine="none",
        parameters=0,
        bytes=size,
        vocab_size=10,
        seconds=1.0,
        tokens_per_second=1.0,
    )
    figures = {"kl": Figure(value=kl), "same_top": Figure(value=same, low=same - 0.01, high=same)}
    return Candidate(
        model=facts,
        figures=figures,
        kl_least=0.0,
        kl_most=1.0,
        kl_from="kept ids",
        kl_error=None,
        wide_positions=0,
        infinite=0 if kl is not None else 3,
        impossible=0,
        flips=EVEN,
        beyond=0,
        by_class=[],
        by_context=[],
        by_document=[],
        documents=1,
        curve=[(0.0, 0.1), (1.0, 0.2)],
    )


def page(*candidates: Candidate, gates: Gates = USUAL) -> str:
    """Its text, the words of neighbouring cells apart."""
    found = html(*candidates, gates=gates)
    check_page(found)
    return " ".join(re.sub(r"<[^>]+>", " ", found).split())


def html(*candidates: Candidate, gates: Gates = USUAL) -> str:
    names = [c.model.name for c in candidates]
    pairs = [
        Pair(first=a, second=b, kl_difference=Figure(value=None), p=1.0, right=EVEN)
        for i, a in enumerate(names)
        for b in names[i + 1 :]
    ]
    reference = ReferenceFacts(
        path="ref",
        digest="0" * 64,
        model="big",
        weights_sha256="0" * 64,
        dtype="float32",
        engine="none",
        vocab_size=10,
        estimator="topk",
        k=4,
        corpus=["text:a"],
        bytes_per_position=1.0,
        dense_bytes_per_position=20,
        wide=None,
        tail=0.1,
        perplexity=None,
        absolute_error=0.0,
        relative_error=0.0,
    )
    found = Comparison(
        softlabels="0",
        reference=reference,
        rows=1,
        positions=1,
        labelled=0,
        replicates=0,
        seed=0,
        candidates=list(candidates),
        pairs=pairs,
    )
    return render(found, gates)


MODELS = (
    candidate("q8", 80_000_000, 0.001, 0.99),
    candidate("q5", 50_000_000, 0.004, 0.97),
    candidate("q4x", 50_000_000, 0.03, 0.92),
    candidate("q3", 30_000_000, 0.2, 0.8),
)


def test_the_smallest_that_is_near_enough_is_to_be_shipped():
    text = page(*MODELS)
    assert "Ship q5, 50.0 MB: it makes another first choice than big at 1 token in 33." in text
    assert "q3 too far: another first choice at 1 token in 5" in text
    assert "q4x q5 is no larger, and nearer" in text
    assert "q8 4 times as near, for 30.0 MB more" in text
    assert text.count("ship this") == 1


def test_gates_are_the_rule():
    assert "Ship q8" in page(*MODELS, gates=Gates(max_kl=0.002))
    assert "Ship q3" in page(*MODELS, gates=Gates(max_kl=0.5))
    assert "is at most 0.5 nats away" in page(*MODELS, gates=Gates(max_kl=0.5))


def test_none_is_near_enough_and_that_is_said():
    text = page(*MODELS, gates=Gates(min_same_top=0.999))
    assert "None is near enough: even q8 makes another first choice than big" in text
    assert "ship this" not in text


def test_without_sizes_it_is_the_nearest():
    text = page(candidate("a", None, 0.004, 0.97), candidate("b", None, 0.001, 0.98))
    assert "Ship b: it makes" in text


@pytest.mark.parametrize("kl", [None, 0.3])
def test_one_candidate_is_described_and_an_infinite_kl_is_no_number(kl):
    text = page(candidate("a", 10, kl, 0.6))
    assert "a makes another first choice than big at 40% of the tokens." in text
    assert ("infinite" in text) == (kl is None)


@pytest.mark.slow
@pytest.mark.parametrize("width", [1280, 400])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_choice_is_on_the_first_screen(tmp_path, width, scheme):
    (tmp_path / "kld.html").write_text(html(*MODELS), encoding="utf-8")
    with browser() as chromium:
        context = chromium.new_context(
            viewport={"width": width, "height": 800}, color_scheme=scheme
        )
        tab = context.new_page()
        said: list[str] = []
        tab.on("console", lambda m: said.append(m.text))
        tab.goto((tmp_path / "kld.html").as_uri())
        assert said == []
        assert tab.evaluate("document.documentElement.scrollWidth") <= width
        for what in ("h1", "td.best >> nth=0", "small.good"):
            box = tab.locator(what).bounding_box()
            assert box["y"] + box["height"] < 800, what
            assert box["x"] + box["width"] <= width, what
        assert "Ship q5" in tab.locator("h1").inner_text()
