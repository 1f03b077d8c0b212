"""The study's cells as tables: what share of full distillation's gain each arm gave, and for how many bytes."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from softlabels import __version__
from softlabels.report.charts import Series, style_of
from softlabels.report.page import draw
from tests.benchmarks.study.arms import FULL, HARD

Result = dict[str, Any]


def shares(results: Sequence[Result]) -> list[Result]:
    """Each cell with `share`: (hard - arm) / (hard - full) in held-out NLL, of the same text, student, seed and rows.

    A cell whose hard or full one is missing has None.
    """
    anchors: dict[tuple[Any, ...], float] = {}
    for r in results:
        if r["arm"] in (HARD.name, FULL.name):
            anchors[(*_rows(r), r["arm"], *_setting(r))] = r["found"]["nll"]
    out = []
    for r in results:
        key = _rows(r)
        hard = anchors.get((*key, HARD.name))
        full = anchors.get((*key, FULL.name, r["temperature"], 1.0))
        known = hard is not None and full is not None
        out.append({**r, "share": (hard - r["found"]["nll"]) / (hard - full) if known else None})
    return out


def _rows(result: Result) -> tuple[Any, ...]:
    """What must be the same for the rows to be: cells of before there were lanes have one."""
    return (result["text"], result["student"], result["seed"], result.get("lanes", 1))


def _setting(result: Result) -> tuple[float, ...]:
    return () if result["arm"] == HARD.name else (result["temperature"], result["alpha"])


def mean_sd(values: Iterable[float | None], form: str) -> str:
    """A mean and, of several seeds, their standard deviation."""
    found = [v for v in values if v is not None]
    if not found:
        return "-"
    sd = f" ± {statistics.stdev(found):{form}}" if len(found) > 1 else ""
    return f"{statistics.mean(found):{form}}{sd}"


def tables(results: Sequence[Result]) -> str:
    """One table for each text, student, temperature and share of soft loss, the best arm first; Markdown."""
    groups: dict[tuple[Any, ...], dict[str, list[Result]]] = defaultdict(lambda: defaultdict(list))
    counted = shares(results)
    for r in counted:
        where = (r["text"], r["student"])
        if r["arm"] == HARD.name:
            continue
        groups[(*where, r["temperature"], r["alpha"])][r["arm"]].append(r)
    blocks = []
    for (text, student, temperature, alpha), arms in sorted(groups.items()):
        hard = [
            r for r in counted if (r["text"], r["student"], r["arm"]) == (text, student, HARD.name)
        ]
        rows = sorted(
            {**arms, HARD.name: hard}.items(),
            key=lambda item: statistics.mean([r["found"]["nll"] for r in item[1]] or [99.0]),
        )
        table = [
            f"### {text}, {student} student, T = {temperature:g}, alpha = {alpha:g}",
            "",
            "| arm | seeds | B/position | share of the gain | NLL | dense KL | ECE | agreement | s |",
            "|---|---|---|---|---|---|---|---|---|",
        ]
        table += [_row(arm, found) for arm, found in rows if found]
        blocks.append("\n".join(table))
    return "\n\n".join(blocks) + "\n"


def _row(arm: str, found: Sequence[Result]) -> str:
    size = found[0]["bytes_per_position"]
    cells = [
        arm,
        str(len(found)),
        "-" if size is None else f"{size:.1f}",
        mean_sd((r["share"] for r in found), ".1%"),
        mean_sd((r["found"]["nll"] for r in found), ".4f"),
        mean_sd((r["found"].get("kl_dense") for r in found), ".4f"),
        mean_sd((r["found"]["ece"] for r in found), ".2%"),
        mean_sd((r["found"]["agreement"] for r in found), ".2%"),
        f"{statistics.median(r['seconds'] for r in found):.0f}",
    ]
    return f"| {' | '.join(cells)} |"


def write_page(results: Sequence[Result], path: Path) -> None:
    """The rate-distortion curves, one chart for each text, student, temperature and share of soft loss."""
    groups: dict[tuple[Any, ...], dict[str, list[Result]]] = defaultdict(lambda: defaultdict(list))
    for r in shares(results):
        if r["share"] is not None and r["bytes_per_position"] is not None:
            where = (r["text"], r["student"], r["temperature"], r["alpha"])
            groups[where][r["arm"]].append(r)
    charts = []
    for (text, student, temperature, alpha), arms in sorted(groups.items()):
        families: dict[str, list[tuple[float, float]]] = defaultdict(list)
        for arm, found in arms.items():
            share = statistics.mean(r["share"] for r in found)
            families[arm.split("-")[0]].append((found[0]["bytes_per_position"], share))
        names = sorted(families)
        charts.append(
            {
                "title": f"{text}, {student} student, T = {temperature:g}, alpha = {alpha:g}",
                "caption": f"Means over {max(map(len, arms.values()))} seeds.",
                "legend": [(style_of(i), name) for i, name in enumerate(names)],
                "series": [
                    Series(name, style_of(i), sorted(families[name]))
                    for i, name in enumerate(names)
                ],
            }
        )
    page = draw("study.html", Path(__file__).parent, charts=charts, version=__version__)
    path.write_text(page, encoding="utf-8")
