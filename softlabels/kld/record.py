"""What a comparison says, as plain data: `softlabels kld --json`, and what tables and pages are drawn from."""

from __future__ import annotations

import msgspec


class _Record(msgspec.Struct, frozen=True, kw_only=True):
    pass


class Figure(_Record, frozen=True, kw_only=True):
    """A figure and its 95 % interval by resampling whole rows."""

    value: float | None
    """None: infinite, or not known."""
    low: float | None = None
    high: float | None = None


class Test(_Record, frozen=True, kw_only=True):
    """How often one of two was right where the other was wrong: McNemar's test, exact and two-sided."""

    only_first: int
    only_second: int
    p: float
    """Chance of a split as uneven as this, or more, if neither were the better."""


class Group(_Record, frozen=True, kw_only=True):
    """Some of the positions."""

    name: str
    positions: int
    kl: float | None
    """None: infinite."""
    same_top: float
    perplexity_ratio: float | None


class CandidateFacts(_Record, frozen=True, kw_only=True):
    """The model that was compared."""

    name: str
    spec: str
    weights_sha256: str
    dtype: str
    device: str
    engine: str
    parameters: int
    """0: not known."""
    bytes: int | None
    """Of its weights on disk; None: not known."""
    vocab_size: int
    seconds: float
    """Of the pass, without the rows that `--work` held."""
    tokens_per_second: float
    """0: it held all."""


class Candidate(_Record, frozen=True, kw_only=True):
    """All figures of one candidate. KL in nats, from the reference to it; `perplexity_ratio` of it to the reference."""

    model: CandidateFacts
    figures: dict[str, Figure]
    """`kl` and its quantiles `kl_median`, `kl_90`, `kl_99`, `kl_99_9`, `kl_max`: over all ids, estimated; `kl_bins`:
    over the kept ids and one bin of all others; 0 where the estimate is below. `same_top`,
    `dp_rms`, `dp_mean`, `dp_0_1` to `dp_99_9`, `perplexity_ratio`, `accept_low`, `accept_high`."""
    kl_least: float | None
    """The true mean KL is at least this, however the reference's numbers were rounded; None: infinite."""
    kl_most: float | None
    """It is at most this, whatever the tails are; None: not known."""
    kl_from: str
    """What the tails' part of `kl` is estimated from: `wide rows`, or `kept ids`."""
    kl_error: float | None
    """Median relative error of a position's estimated KL for the tails' part, as wide rows show it, the stored numbers'
    rounding aside; None: not known."""
    wide_positions: int
    infinite: int
    """Positions where the KL is infinite: a kept id is impossible to the candidate."""
    impossible: int
    """Positions where some id is, kept or not."""
    flips: Test
    """The reference (first) against the candidate (second)."""
    beyond: int
    """Kept ids that its head lacks, which count as tail."""
    by_class: list[Group]
    """By the kind of token that came; empty: the reference holds no table of tokens."""
    by_context: list[Group]
    by_document: list[Group]
    """The documents of the largest KL, largest first."""
    documents: int
    curve: list[tuple[float, float]]
    """Share of the positions, and the KL that so many do not exceed."""


class Pair(_Record, frozen=True, kw_only=True):
    """Two candidates on the same positions."""

    first: str
    second: str
    kl_difference: Figure
    """Of the first less that of the second: below 0 the first is nearer."""
    p: float
    """Chance of a difference as large as this, either way, if the sign of each row's were chance."""
    right: Test


class ReferenceFacts(_Record, frozen=True, kw_only=True):
    """The reference."""

    path: str
    digest: str
    model: str
    weights_sha256: str
    dtype: str
    engine: str
    vocab_size: int
    estimator: str
    k: int
    corpus: list[str]
    bytes_per_position: float
    dense_bytes_per_position: int
    """Of its logits in 16 bits."""
    wide: str | None
    tail: float
    """Mean mass of the ids that are not kept."""
    perplexity: float | None
    absolute_error: float
    """Nats, of a stored log-probability, and `relative_error` of itself."""
    relative_error: float


class Comparison(_Record, frozen=True, kw_only=True):
    """Candidates on one reference."""

    softlabels: str
    reference: ReferenceFacts
    rows: int
    positions: int
    labelled: int
    """Positions whose label, and the reference's log-probability of it, are known."""
    replicates: int
    seed: int
    candidates: list[Candidate]
    pairs: list[Pair]
