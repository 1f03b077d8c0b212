"""What stores of 10^9 to 10^12 tokens take: the tables of docs/scale.md, from what was measured and what is assumed.

    python -m tests.benchmarks.scale

Nothing is run. Each figure below says where it is from; change one and the tables follow.
"""

from __future__ import annotations

from softlabels.builder.shard_size import chosen_rows
from softlabels.format.pages import PAGED_ABOVE

SEQ_LEN = 512
TOKENS = (10**9, 10**10, 10**11, 10**12)

# -- measured (docs/benchmarks.md, docs/sizing.md, docs/fidelity.md) ------------------------------
BYTES = 18.3
"""Of a position in the default store, `packed`, inputs included."""
ENCODED = 431_000
"""Positions that a core encodes in a second (python -m tests.benchmarks.columns)."""
DECODED = 583_000
"""Tokens that a core of a busy machine decodes in a second (python -m tests.benchmarks.loader)."""
TOKENISED = 554_000
"""Tokens that a core plans in a second, with a tokenizer of 49,152 ids (python -m tests.benchmarks.planning)."""
PACKED = 4_300_000
"""Tokens in a second of all of that but tokenising, which is one thread's whatever cores there are (the same)."""
OWN = 2.2e-3
"""CPU seconds of a builder's own for a shard (python -m tests.benchmarks.builders)."""
PLANNED = (480, 37)
"""Bytes of a plan for a shard, at most (tests/test_shard_size.py), and in pages (python -m tests.benchmarks.pages)."""
OF_SHARE = 1.3
"""Shards that a rank reads, at most, of those that are its share."""

# -- simulated (tests/simulate) -------------------------------------------------------------------
REQUESTS = 3
"""For a shard in a bucket, with leases."""

# -- assumed --------------------------------------------------------------------------------------
FLOPS = 989e12
"""Of a GPU, bfloat16, dense: an H100's data sheet."""
TEACHERS = {"8B": (8e9, 0.40), "70B": (70e9, 0.40), "1T, 32B active": (32e9, 0.25)}
"""Parameters that a token meets, and how much of a GPU its prefill uses."""
CORES = 16
"""Of the machine that plans; each tokenises as fast as one alone does."""
STUDENT, STUDENT_USE = 1e9, 0.40
"""Parameters of the student, and how much of a GPU its training uses."""
GPU_HOUR = 2.5
"""Dollars."""
GB_MONTH, MILLION_PUTS = 0.023, 5.0
"""Dollars of a bucket."""


def shard_rows(tokens: float) -> int:
    """What a build chooses (`softlabels/builder/shard_size.py`)."""
    return chosen_rows(round(tokens / SEQ_LEN))


def power(tokens: float) -> str:
    """`10^9`."""
    return f"10^{len(str(int(tokens))) - 1}"


def store_table() -> list[str]:
    """The store and its records."""
    lines = [
        "| tokens | store | a month | rows in a shard | shards | of MB each | plan | requests | for |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for tokens in TOKENS:
        rows = shard_rows(tokens)
        shards = -(-tokens // (SEQ_LEN * rows))
        size, plan = tokens * BYTES, shards * PLANNED[shards > PAGED_ABOVE]
        lines.append(
            f"| {power(tokens)} | {size / 1e9:,.0f} GB | ${size / 1e9 * GB_MONTH:,.2f} | {rows:,} | {shards:,} | "
            f"{size / shards / 1e6:,.1f} | {plan / 1e6:.1f} MB | {shards * REQUESTS:,} | "
            f"${shards * REQUESTS / 1e6 * MILLION_PUTS:.2f} |"
        )
    return lines


def teacher_table() -> list[str]:
    """What the teacher costs, and what encoding takes beside it."""
    lines = [
        "| teacher | tokens/s of a GPU | GPU hours for "
        + " | ".join(map(power, TOKENS))
        + " | dollars for 10^12 | cores that encode, a GPU |",
        "|---|---|" + "---|" * (len(TOKENS) + 2),
    ]
    for name, (parameters, use) in TEACHERS.items():
        speed = FLOPS * use / (2 * parameters)
        hours = [tokens / speed / 3600 for tokens in TOKENS]
        lines.append(
            f"| {name} | {speed:,.0f} | "
            + " | ".join(f"{h:,.0f}" for h in hours)
            + f" | ${hours[-1] * GPU_HOUR:,.0f} | {speed / ENCODED:.3f} |"
        )
    return lines


def student_table() -> list[str]:
    """What training reads."""
    speed = FLOPS * STUDENT_USE / (6 * STUDENT)
    lines = [
        "| GPUs that train | tokens/s | read from the store | cores that decode, a GPU | an epoch of 10^12 |",
        "|---|---|---|---|---|",
    ]
    for gpus in (8, 64, 512):
        tokens = gpus * speed
        lines.append(
            f"| {gpus} | {tokens:,.0f} | {tokens * BYTES * OF_SHARE / 1e6:,.0f} MB/s | {speed / DECODED:.2f} | "
            f"{1e12 / tokens / 86400:,.1f} days |"
        )
    return lines


def planned(cores: int) -> float:
    """Tokens a second of a plan: its own thread's work, and beside that tokenising, which is shared."""
    return 1 / (1 / PACKED + (1 / TOKENISED - 1 / PACKED) / cores)


def planning_table() -> list[str]:
    """What one builder does alone, or all do beside teaching."""
    lines = [
        f"| tokens | planning, one core (m) | {CORES} cores (a) | builders' own work, all shards |",
        "|---|---|---|---|",
    ]
    for tokens in TOKENS:
        shards = -(-tokens // (SEQ_LEN * shard_rows(tokens)))
        lines.append(
            f"| {power(tokens)} | {tokens / planned(1) / 3600:,.1f} h | {tokens / planned(CORES) / 3600:,.1f} h | "
            f"{shards * OWN:,.0f} CPU s |"
        )
    return lines


def main() -> None:
    for table in (store_table(), teacher_table(), student_table(), planning_table()):
        print("\n".join(table), end="\n\n")


if __name__ == "__main__":
    main()
