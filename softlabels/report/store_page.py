"""The report of a store: what is kept, how sure the teacher was, what it costs."""

from __future__ import annotations

import math
import shlex

import msgspec
import numpy as np

import softlabels
from softlabels.core.targets import UNBIASED
from softlabels.report.charts import Series, bars, lines
from softlabels.report.fidelity import fidelity_table
from softlabels.report.html import Child, Markup, element
from softlabels.report.page import (
    charts,
    commands,
    facts,
    figure,
    legend,
    note,
    page,
    section,
    table,
)
from softlabels.report.single_positions import hard_table, row_text
from softlabels.report.store_facts import StoreFacts
from softlabels.store.reader import Store

__all__ = ["render"]

HEAT = (0.2, 0.4, 0.6, 0.8, 0.95)
"""Shares of the store's positions, calmest first, at which the colour of a token changes."""
BINS = 20


def render(store: Store, found: StoreFacts) -> str:
    """The page."""
    manifest = store.manifest
    identity = manifest.identity
    n = max(identity.corpus.positions, 1)
    each = manifest.data_bytes / n
    dense = 2 * identity.teacher.vocab_size
    what = "predictions" if identity.domain == "causal-lm" else "answers"
    ratio = dense / each if each else 0
    than = f": {ratio:,.0f} times less than its logits" if ratio >= 1.5 else ""
    headline = f"{n:,} {what} of {identity.teacher.name}, in {each:.1f} bytes each{than}."
    read = (
        "Everything below is over the whole store."
        if found.rows == manifest.rows
        else f"Figures of single positions are over {found.rows:,} of {manifest.rows:,} rows, in {found.shards} whole "
        "shards spread evenly."
    )
    body = [
        _key_figures(store, found),
        _kept(store, found),
        _hesitation(store, found),
        _bytes(store, found),
        _fidelity(store),
        _identity(store),
    ]
    return page(
        f"Store: {identity.teacher.name}",
        eyebrow="Soft-target store",
        headline=headline,
        lead=f"The teacher read {identity.corpus.tokens:,} tokens once; students learn from what was kept. {read}",
        body=[b for b in body if b is not None],
        version=softlabels.__version__,
    )


def _key_figures(store: Store, found: StoreFacts) -> Markup:
    manifest = store.manifest
    identity, statistics = manifest.identity, manifest.statistics
    n = max(identity.corpus.positions, 1)
    soft = max(statistics.soft_of(identity.corpus.positions), 1)
    t = found.temperature
    sampled = identity.targets.estimator in UNBIASED
    mass = statistics.kept_mass[identity.targets.temperatures.index(t)] / soft
    items = [
        (
            "size",
            f"{manifest.data_bytes / 1e6:,.1f} MB",
            f"{manifest.data_bytes / n:.1f} bytes a position",
        ),
        (
            "kept of each",
            f"{statistics.kept_ids / soft:.1f} ids",
            f"{'a random sample' if sampled else identity.targets.estimator} of {store.vocab_size:,}",
        ),
    ]
    if not sampled:
        items.append(
            (f"their mass at T={t:g}", f"{mass:.1%}", "the rest is kept as one exact number")
        )
    if (nll := statistics.mean_nll(n)) is not None:
        items.append(
            (
                "the teacher's own loss, nats",
                f"{nll:.3f}",
                f"perplexity {math.exp(min(nll, 700)):,.1f}",
            )
        )
    if (accuracy := statistics.accuracy(n)) is not None:
        what = "next token" if identity.label_shift else "label"
        items.append(("the teacher is right", f"{accuracy:.1%}", f"its likeliest id is the {what}"))
    if len(found.entropy):
        median = float(np.median(found.entropy))
        items.append(
            (
                "median entropy, nats",
                f"{median:.2f}" if found.summarised else f"at least {median:.2f}",
                f"as if {math.exp(median):,.1f} ids were equally likely",
            )
        )
    return facts(items)


def _kept(store: Store, found: StoreFacts) -> Markup | None:
    if store.manifest.identity.targets.estimator in UNBIASED:
        return _kept_sample(store, found)
    if not found.mass_at:
        return None
    t = f"T={found.temperature:g}"
    name = "share of the teacher's mass"
    mass = lines(
        [Series("mean", "s0", [(float(k), m) for k, m in found.mass_at.items()])],
        x_name="ids kept, largest first (logarithmic)",
        y_name=f"{name} at {t}",
        y_form="{:.0%}",
        label=f"{name} of the k largest kept ids",
        log_x=True,
        y_range=(0.0, 1.02),
    )
    last = max(found.mass_at)
    caption = f"On average the first holds {found.mass_at[1]:.0%}, all {last} hold {found.mass_at[last]:.1%}."
    drawing = _histogram(found.tail, 0.0, 1.0, f"tail mass at {t}", percent=True)
    mean = float(found.tail.mean())
    return section(
        "What is kept",
        "The ids that are kept, and the mass of all others, which is stored as one number for each temperature.",
        charts(
            figure("How much the k largest hold", mass, caption),
            figure(
                "What lies outside",
                drawing,
                f"Mean {mean:.1%}; kept exactly at each T of the grid.",
            ),
        ),
    )


def _kept_sample(store: Store, found: StoreFacts) -> Markup | None:
    """A sample has no mass inside or outside; what it has are ids that were sure to be in it."""
    lead = (
        "A random sample stands for the distribution: its weights average to the teacher's probabilities, so of one "
        "position alone they say little."
    )
    if store.manifest.identity.targets.estimator != "sampled" or not len(found.sure):
        return section("What is kept", lead)
    drawing = _histogram(
        found.sure,
        0.0,
        1.0,
        f"mass of the ids that are sure, at T={found.temperature:g}",
        percent=True,
    )
    caption = (
        f"On average {found.sure_ids:.1f} ids of a position are sure to be kept, at their own probability, and hold "
        f"{found.sure.mean():.0%} of the mass. The others are drawn by chance from the rest, and share one weight."
    )
    return section(
        "What is kept", lead, charts(figure("How much of it is certain", drawing, caption))
    )


def _histogram(
    values: np.typing.NDArray[np.float64],
    low: float,
    high: float,
    x_name: str,
    *,
    percent: bool = False,
) -> Markup:
    counts, edges = np.histogram(values, bins=BINS, range=(low, high))
    total = max(len(values), 1)
    form = "{:.0%}" if percent else "{:.3g}"
    items = [
        (
            form.format(edges[i]),
            float(c) / total,
            f"{form.format(edges[i])} to {form.format(edges[i + 1])}: {c:,} positions",
        )
        for i, c in enumerate(counts)
    ]
    return bars(items, style="s0", label=f"positions by {x_name}", x_name=x_name)


# -- where it hesitates ----------------------------------------------------------------------------


def _hesitation(store: Store, found: StoreFacts) -> Markup | None:
    causal = bool(store.manifest.identity.label_shift)
    title = "Where the teacher hesitates"
    if not len(found.entropy) and not len(found.label_logp):
        return section(
            title,
            "This store holds a sample of each distribution and no summaries of positions (builds keep them since "
            "format 1.3), so nothing is known of the teacher's certainty at any one position.",
        )
    steps = [float(x) for x in np.quantile(found.entropy, HEAT)] if len(found.entropy) else []
    figures = []
    if len(found.entropy):
        high = float(max(math.ceil(found.entropy.max()), 1))
        drawing = _histogram(found.entropy, 0.0, high, "entropy, nats")
        caption = (
            f"The teacher's own, over its whole vocabulary; {found.entropy.mean():.2f} on average."
            if found.summarised
            else "The tail is counted as one id, so the teacher's own is at least this."
        )
        figures.append(figure("Entropy of the positions", drawing, caption))
    if len(found.label_logp):
        figures.append(_losses(found, "next token" if causal else "label"))
    parts: list[Child] = [charts(*figures)]
    if found.texts:
        names = [f"up to {x:.1f}" for x in steps] + [f"more than {steps[-1]:.1f} nats"]
        parts += [
            element("h3", "The rows it found hardest", class_="top"),
            legend([(f"u{i}", name) for i, name in enumerate(names)]),
            [row_text(row, tokens, steps) for row, tokens in found.texts],
        ]
    least = len(found.label_logp) > 0
    name = "What it least expected" if least else "The most uncertain positions"
    parts += [element("h3", name, class_="top"), hard_table(found.hardest, causal=causal)]
    return section(
        title,
        "Each token has the colour of the teacher's uncertainty before it came; rest the pointer on one to see what "
        "it expected."
        if found.texts
        else "The rows on which the teacher's answer is least certain, or least right.",
        *parts,
    )


def _losses(found: StoreFacts, label: str) -> Markup:
    losses = np.minimum(-found.label_logp, 1e5)  # -inf: less than a store can hold
    high = float(max(math.ceil(np.quantile(losses, 0.99)), 1))
    beyond = int((losses > high).sum())
    drawing = _histogram(np.minimum(losses, high), 0.0, high, f"-log p of the {label}, nats")
    more = f" The last bar holds the {beyond:,} that are beyond." if beyond else ""
    sure = float((losses < math.log(2)).mean())
    caption = f"The {label} had more than half of the mass at {sure:.0%} of the positions.{more}"
    return figure(f"What the teacher gave the {label}", drawing, caption)


# -- bytes and identity ----------------------------------------------------------------------------


def _bytes(store: Store, found: StoreFacts) -> Markup:
    total = sum(found.column_bytes.values()) or 1
    rows = [
        [name, f"{size:,}", f"{size / max(found.positions, 1):.2f}", f"{size / total:.1%}"]
        for name, size in found.column_bytes.items()
    ]
    encoding = store.manifest.identity.encoding
    return section(
        "What it costs",
        f"Compressed bytes by column, profile {encoding.profile} in {encoding.container}.",
        table(["column", "bytes", "a position", "share"], rows),
    )


def _fidelity(store: Store) -> Markup | None:
    record = getattr(store.manifest, "fidelity", None)
    if record is None:
        return None
    return section(
        "How faithful it is",
        "The teacher was run again on some rows, and what is stored compared with what it said.",
        fidelity_table(msgspec.to_builtins(record)),
    )


def _identity(store: Store) -> Markup:
    manifest = store.manifest
    i = manifest.identity
    grid = ", ".join(f"{t:g}" for t in i.targets.temperatures)
    rows: list[list[Child]] = [
        ["content", element("code", manifest.content_digest)],
        [
            "teacher",
            f"{i.teacher.name}, {i.teacher.parameters:,} parameters, {i.teacher.dtype} on {i.teacher.device}",
        ],
        ["its weights", element("code", i.teacher.weights_sha256)],
        ["engine", i.teacher.engine],
        ["tokenizer", element("code", i.tokenizer.sha256)],
        [
            "corpus",
            f"{', '.join(i.corpus.specs)}: {i.corpus.documents:,} documents, {i.corpus.rows:,} rows",
        ],
        ["targets", f"{i.targets.estimator}, k={i.targets.k}, T in {grid}, seed {i.targets.seed}"],
        ["values", f"{i.encoding.values}, within {i.encoding.relative_error:.2g} of each value"],
        ["licence", manifest.licence],
        ["format", f"{manifest.version}, made by {manifest.created_by}"],
    ]
    words = ["softlabels", "build", "--teacher", i.teacher.spec]
    for spec in i.corpus.specs:
        words += ["--corpus", spec]
    words += [
        "--estimator",
        i.targets.estimator,
        "--k",
        str(i.targets.k),
        "--seq-len",
        str(i.corpus.seq_len),
    ]
    for t in i.targets.temperatures:
        words += ["--temperature", f"{t:g}"]
    words += [
        "--profile",
        i.encoding.profile,
        "--container",
        i.encoding.container,
        "--out",
        "STORE",
    ]
    return section(
        "What it is",
        "A store says of itself what it was made from; `softlabels verify` checks every byte of it.",
        table(["", "sha256, or what the manifest says"], rows, numbers_from=9),
        commands(shlex.join(words), shlex.join(["softlabels", "verify", str(store.path)])),
        note("The manifest names paths without the folders they lie in: put yours before them."),
    )
