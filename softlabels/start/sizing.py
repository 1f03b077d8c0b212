"""Bytes, hours and money of a store, from figures that were measured: the one home of these constants.

Bytes of a position are the ids that are kept of it, each at what ids and values took where stores were measured, and
what a position has besides: its inputs, its summary, the odds of its tail at each temperature. Figures are from
docs/benchmarks.md and docs/fidelity.md (SmolLM2-135M, V = 49,152, prose); the estimate is within 15 % of every store
that is listed there. A dictionary of ids, which takes off up to a seventh, is left out of account.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from softlabels.core.registry import name_of
from softlabels.format.figures import dense_fp16_bytes

MEASURED_VOCABULARY = 49_152
"""V of the stores whose bytes were measured."""
BYTES_PER_ID = {
    ("packed", True): 1.39,
    ("packed", False): 1.575,
    ("open", True): 2.3,
    ("open", False): 3.0,
}
"""By profile, and whether the kept set is a sample: an id with its value."""
INPUT_BYTES = 1.15
"""A position's own token and what finds it."""
SUMMARY_BYTES = {"packed": 2.7, "open": 3.2}
TEMPERATURE_BYTES = 1.3
"""A position's, for each temperature after the first."""
IDS_OF_DRAWS = {"rs": (35, 12.0), "systematic": (35, 13.5)}
"""Draws, and the distinct ids that they come to on average: between the two texts that were measured."""
DRAWS_POWER = 0.68
"""Ids grow with the draws to this power: on one text 35 draws of `rs` gave 11.1, 95 gave 21.8."""
TOPP_SHARE = 0.5
"""Of --k, which `topp` may keep at most: assumed, for it depends on the text."""

FLOPS = {
    "cpu": (2.3e11, "two CPU cores, on which 135M parameters did 861 tokens a second"),
    "gpu": (
        1e14,
        "a GPU that does 1e14 operations a second, a tenth of an H100's peak: not measured",
    ),
}
"""Operations a second, at two a parameter and token, and what that is of."""
LETTERS_PER_TOKEN = 4.2
"""Bytes of English text for each token of a vocabulary such as the measured one."""


BYTES_ARE = (
    f"bytes as of stores of {MEASURED_VOCABULARY:,} ids, on novels and manuals; within 15 % there"
)
"""What an estimate of bytes rests on."""


@dataclass(frozen=True, kw_only=True)
class Size:
    """What a store would take."""

    positions: int
    bytes_per_position: float
    data_bytes: int
    dense_fp16_bytes: int
    """What the teacher's logits would take."""
    tokens_per_second: float | None
    hours: float | None
    """Of the teacher; None: its speed is not known."""


def kept_ids(estimator: str, k: int) -> float:
    """Ids that are kept of a position, on average."""
    name, _ = name_of(estimator)
    if name in IDS_OF_DRAWS:
        draws, ids = IDS_OF_DRAWS[name]
        return min(float(k), ids * math.pow(k / draws, DRAWS_POWER))
    return max(1.0, TOPP_SHARE * k) if name == "topp" else float(k)


def bytes_per_position(
    *,
    estimator: str,
    k: int,
    vocab_size: int,
    sample: bool,
    temperatures: int = 1,
    profile: str = "open",
    summary: bool = True,
) -> float:
    """Estimated bytes that a position takes on the disk.

    Args:
        sample: whether the estimator keeps a random sample (`KeptSet.sample`).
        temperatures: how many the store is exact at.
    """
    longer = max(0.0, math.log2(vocab_size / MEASURED_VOCABULARY)) / 8
    ids = min(kept_ids(estimator, k), vocab_size)
    each = BYTES_PER_ID[profile, sample] + longer
    more = TEMPERATURE_BYTES * (temperatures - 1)
    return ids * each + INPUT_BYTES + more + (SUMMARY_BYTES[profile] if summary else 0.0)


def hours_of(tokens: float, tokens_per_second: float, *, tokenise_seconds: float = 0.0) -> float:
    """Hours of a build: the teacher once over all tokens, the tokenizer twice."""
    return (tokens / tokens_per_second + 2 * tokenise_seconds) / 3600


def speed_of(parameters: float, machine: str) -> float:
    """Tokens a second of a teacher on a `cpu` or `gpu` of `FLOPS`."""
    return FLOPS[machine][0] / (2 * parameters)


def size_of(
    positions: float, *, vocab_size: int, each: float, tokens_per_second: float | None
) -> Size:
    """All of it; a position is taken to be a token that the teacher reads."""
    return Size(
        positions=round(positions),
        bytes_per_position=each,
        data_bytes=round(positions * each),
        dense_fp16_bytes=round(positions * dense_fp16_bytes(vocab_size)),
        tokens_per_second=tokens_per_second,
        hours=None if tokens_per_second is None else hours_of(positions, tokens_per_second),
    )
