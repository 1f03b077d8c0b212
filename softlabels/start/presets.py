"""What to keep and how to train, by the size of a corpus: one rule, each value with its reason.

The evidence is docs/fidelity.md (what a student keeps of full distillation), docs/benchmarks.md (shares of soft loss,
learning rates, the demo) and docs/choosing.md. Where there is none, the reason says so.

 1. The student is sized to the text: a twentieth of its tokens in parameters, at least 200 for each id of the
    vocabulary, so that embeddings take no more than about four fifths, at most half of the teacher.
 2. Text of fewer than 20 tokens a parameter is read three times, more is read once; a small text as often as makes 100
    steps, up to 20 times.
 3. Targets are those of the purpose (`builder/purposes.py`): `far` for a student from scratch, `near` for one that
    begins from a model. Where the disk has no room for them, the 12 ids of `sampled` are kept instead.
 4. What still does not fit in the budget of disk or hours is left out, and said.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from softlabels.builder.purposes import PURPOSES, Purpose
from softlabels.start.sizing import bytes_per_position, hours_of

SIZES = (1e6, 3e6, 10e6, 30e6, 100e6, 300e6, 1e9, 3e9)
"""Parameters of students."""
PER_ID = 200
TOKENS_PER_PARAMETER = 20
"""After Hoffmann et al. 2022, for models trained on labels; not measured for soft targets."""
EPOCHS = 3
MOST_EPOCHS = 20
FEWEST_STEPS, STEPS = 100, 300
"""At least, and what a batch is chosen for."""
BATCHES = (4, 8, 16, 32, 64)
LENGTHS = (128, 256, 512, 1024, 2048)
WHOLE = 0.95
"""Share of the documents that a row is to hold whole."""
PROSE = 512
RATES = ((30e6, 2e-3), (300e6, 1e-3), (math.inf, 5e-4))
"""Largest student, and its learning rate."""


@dataclass(frozen=True, kw_only=True)
class Known:
    """What was seen of corpus and teacher, and what may be spent."""

    tokens: float
    documents: Sequence[int]
    """Tokens of each document that was looked at; empty: not known."""
    vocab_size: int
    context: int | None
    teacher_parameters: float | None
    tokens_per_second: float | None
    """Of the teacher, estimated; None: not known."""
    disk: float
    """Bytes that the store may take."""
    hours: float | None
    """That the teacher may take; None: as many as it wants."""


@dataclass(frozen=True, kw_only=True)
class Chosen:
    """A setting, and why."""

    key: str
    value: object
    why: str


@dataclass(frozen=True, kw_only=True)
class Presets:
    """What was chosen."""

    job: list[Chosen]
    run: list[Chosen]
    seq_len: int
    tokens: float
    """That are taught."""
    data_bytes: float
    hours: float | None


def choose(known: Known, *, student: str | None = None) -> Presets:
    """Choose everything.

    Args:
        student: as of `softtrain run --student`; None: a new one, of a size that is chosen.
    """
    seq_len, why_length = _length(known)
    size = _student_size(known)
    kept = _targets(known, student)
    each = _bytes(known, kept)
    tokens, why_fewer = _affordable(known, each)
    rows = max(1, math.ceil(tokens / seq_len))
    epochs = EPOCHS if known.tokens < TOKENS_PER_PARAMETER * size else 1
    batch = max((b for b in BATCHES if epochs * rows / b >= STEPS), default=BATCHES[0])
    epochs = min(MOST_EPOCHS, max(epochs, math.ceil(FEWEST_STEPS * batch / rows)))
    steps = max(1, epochs * rows // batch)
    job = [
        Chosen(key="seq_len", value=seq_len, why=why_length),
        *kept,
    ]
    if why_fewer:
        job.append(Chosen(key="limit_rows", value=rows, why=why_fewer))
    return Presets(
        job=job,
        run=[
            *_student(student, size, known),
            Chosen(
                key="epochs",
                value=epochs,
                why=f"about {steps:,} steps; {_why_epochs(epochs)}",
            ),
            Chosen(key="batch_size", value=batch, why="rows in a step"),
            Chosen(key="lr", value=_rate(student, size), why=_why_rate(student)),
            Chosen(
                key="alpha",
                value=0.9,
                why="soft targets; 0.9 and 1 tied in docs/benchmarks.md, and a tenth of labels is an anchor",
            ),
            Chosen(key="temperature", value=1.0, why="what the store is exact or unbiased at"),
            Chosen(key="checkpoint_every", value=max(25, steps // 5), why="what a kill costs"),
        ],
        seq_len=seq_len,
        tokens=tokens,
        data_bytes=tokens * each,
        hours=None
        if known.tokens_per_second is None
        else hours_of(tokens, known.tokens_per_second),
    )


def heldout(steps_every: int) -> list[Chosen]:
    """What a run does with held-out rows."""
    return [
        Chosen(key="eval_every", value=steps_every, why="steps between evaluations"),
        Chosen(
            key="patience", value=3, why="evaluations without a lower held-out loss, then it stops"
        ),
    ]


def steps_of(presets: Presets) -> int:
    """Steps of the run, about."""
    values = {c.key: c.value for c in presets.run}
    rows = max(1, math.ceil(presets.tokens / presets.seq_len))
    return max(1, int(str(values["epochs"])) * rows // int(str(values["batch_size"])))


def _length(known: Known) -> tuple[int, str]:
    most = known.context or max(LENGTHS)
    if not known.documents:
        return min(PROSE, most), "the default; how long the documents are is not known"
    few = sorted(known.documents)
    needed = few[min(len(few) - 1, math.ceil(WHOLE * len(few)) - 1)]
    if needed > max(LENGTHS):
        return min(PROSE, most), "documents are longer than rows, and are cut into pieces"
    length = next(n for n in LENGTHS if n >= needed)
    if length > most:
        return most, "the teacher's context"
    return length, f"{WHOLE:.0%} of the documents fit in a row as a whole"


def _student_size(known: Known) -> float:
    wanted = max(known.tokens / TOKENS_PER_PARAMETER, PER_ID * known.vocab_size)
    if known.teacher_parameters:
        wanted = min(wanted, max(known.teacher_parameters / 2, PER_ID * known.vocab_size, SIZES[0]))
    least = next((s for s in SIZES if s >= PER_ID * known.vocab_size), SIZES[-1])
    return max(max((s for s in SIZES if s <= wanted), default=SIZES[0]), least)


def _targets(known: Known, student: str | None) -> list[Chosen]:
    """What is kept of each position, within the disk's budget."""
    name = "near" if starts_from_a_model(student) else "far"
    kept = _of_purpose(PURPOSES[name], f'for = "{name}": {PURPOSES[name].why}')
    if known.tokens * _bytes(known, kept) <= known.disk:
        return kept
    small = Purpose({"estimator": "sampled", "k": 12, "profile": "packed"}, "")
    return _of_purpose(small, "the fewest bytes that are unbiased, for the budget of disk")


def _of_purpose(purpose: Purpose, why: str) -> list[Chosen]:
    reasons = {
        "estimator": why,
        "k": "draws, or ids, at a position",
        "profile": 'half the bytes; "open" is what other tools read',
    }
    return [
        *(Chosen(key=n, value=v, why=reasons[n]) for n, v in purpose.settings.items()),
        Chosen(
            key="temperature",
            value=[1.0],
            why="a sample is unbiased at one T; topk may have several",
        ),
    ]


def _bytes(known: Known, kept: Sequence[Chosen]) -> float:
    """Bytes of a position."""
    values = {c.key: c.value for c in kept}
    return bytes_per_position(
        estimator=str(values["estimator"]),
        k=int(str(values["k"])),
        vocab_size=known.vocab_size,
        sample=values["estimator"] != "topk",
        profile=str(values["profile"]),
    )


def starts_from_a_model(student: str | None) -> bool:
    """Whether a student has learnt already, as of `softtrain run --student`."""
    return student is not None and not student.startswith(("new:", "hf-config:"))


def _affordable(known: Known, each: float) -> tuple[float, str]:
    """Tokens that the budget allows, and why they are fewer than there are."""
    limits = {"disk": known.disk / each}
    if known.hours is not None and known.tokens_per_second:
        limits["hours"] = known.hours * 3600 * known.tokens_per_second
    which = min(limits, key=limits.__getitem__)
    if known.tokens <= limits[which]:
        return known.tokens, ""
    share = limits[which] / known.tokens
    return limits[which], f"the first {share:.1%} of the text, which is what the {which} allow"


def _student(student: str | None, size: float, known: Known) -> list[Chosen]:
    if student is not None:
        return [Chosen(key="student", value=student, why="as you said")]
    name = f"{size / 1e9:g}B" if size >= 1e9 else f"{size / 1e6:g}M"
    return [
        Chosen(
            key="student",
            value=f"new:{name}",
            why=f"made to fit the store; at least {PER_ID} parameters for each of {known.vocab_size:,} ids, one for "
            f"{TOKENS_PER_PARAMETER} tokens of text",
        )
    ]


def _why_epochs(epochs: int) -> str:
    if epochs == 1:
        return "a large text is read once"
    if epochs > EPOCHS:
        return f"a small text, read until there are {FEWEST_STEPS} steps"
    return "as in docs/fidelity.md"


def _rate(student: str | None, size: float) -> float:
    if student is not None and starts_from_a_model(student):
        return 2e-4 if "lora=" in student else 1e-4
    return next(rate for most, rate in RATES if size <= most)


def _why_rate(student: str | None) -> str:
    if starts_from_a_model(student):
        return "a model that has learnt already, as in docs/students.md"
    return "2e-3 up to 30M parameters, as the demo (3e-3 was best in docs/benchmarks.md); lower above, not measured"
