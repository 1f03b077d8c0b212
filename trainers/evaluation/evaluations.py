"""What `softtrain eval` leaves in a run, RUN/evaluations/*.json, and reading it again; no model library is needed.

A report is drawn from these files. They may come from anywhere: they are checked when they are read, and nothing in
them is more than text and numbers.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import msgspec

from softlabels.core.durable import is_temporary, replace
from softlabels.core.records import regular_size, sha256_of
from softlabels.errors import RunError, StoreError

FOLDER = "evaluations"
FORMAT = "softlabels-evaluation"
VERSION = 1
LARGEST_BYTES = 2**28
RATIOS = {
    "nll": ("nll", "n"),
    "accuracy": ("correct", "n"),
    "kl": ("kl", "kl_count"),
    "kl_dense": ("kl_dense", "kl_dense_count"),
    "agreement": ("agree", "known"),
    "top_k_agreement": ("top_k", "known"),
    "acceptance_low": ("accept_low", "known"),
    "acceptance_high": ("accept_high", "known"),
}
"""Scores that are one sum over positions divided by another."""


Count = Annotated[int, msgspec.Meta(ge=0, le=2**53)]
Share = Annotated[float, msgspec.Meta(ge=0, le=1.001)]
"""Sums in float32 may exceed 1 by their rounding."""
Number = Annotated[float, msgspec.Meta(ge=-1e100, le=1e100)]
"""Far beyond any score, and far enough from where arithmetic overflows."""
Confidence = Annotated[float, msgspec.Meta(gt=0, lt=1)]


class _Record(msgspec.Struct, frozen=True, kw_only=True):
    pass


class Interval(_Record, frozen=True, kw_only=True):
    """A score with its bootstrap interval."""

    value: Number | None
    low: Number | None = None
    """None: too few rows to say."""
    high: Number | None = None

    @property
    def clear(self) -> bool:
        """Of a difference: whether it is on one side of 0."""
        return self.low is not None and self.high is not None and self.low * self.high > 0


class Bin(_Record, frozen=True, kw_only=True):
    """A bin of confidence, `(low, high]`."""

    low: Number
    high: Number
    count: Count
    confidence: Share | None
    """Mean of the bin; None where it is empty."""
    accuracy: Share | None


class Cells(_Record, frozen=True, kw_only=True):
    """Positions by whether teacher and student were right."""

    both_right: Count
    student_only: Count
    """The student was right, the teacher wrong."""
    teacher_only: Count
    """The teacher was right, the student wrong."""
    copied: Count
    """Both wrong, with the same answer."""
    both_wrong: Count
    """Both wrong, with different answers."""

    @property
    def n(self) -> int:
        """All positions."""
        return (
            self.both_right + self.student_only + self.teacher_only + self.copied + self.both_wrong
        )

    @property
    def teacher_wrong(self) -> int:
        """Those where the teacher was wrong."""
        return self.student_only + self.copied + self.both_wrong

    @property
    def wrong_share(self) -> float | None:
        """Share of the positions where the teacher was wrong."""
        return self.teacher_wrong / self.n if self.n else None

    @property
    def copied_share(self) -> float | None:
        """Of those, the share with its very answer."""
        return self.copied / self.teacher_wrong if self.teacher_wrong else None

    @property
    def mended_share(self) -> float | None:
        """Of those, the share where the student is right."""
        return self.student_only / self.teacher_wrong if self.teacher_wrong else None


class Group(_Record, frozen=True, kw_only=True):
    """Scores of some of the positions."""

    name: str
    positions: Count
    nll: Number | None
    """None: none of them has a label."""
    accuracy: Share | None
    kl: Number | None
    """The most exact that is known: over all ids, else over kept ids and tail."""
    agreement: Share | None
    acceptance_low: Share | None
    acceptance_high: Share | None
    teacher_accuracy: Share | None
    f1: Share | None = None
    """Of a class."""
    cells: Cells | None = None


class Place(_Record, frozen=True, kw_only=True):
    """One position to look at."""

    row: Count
    position: Count
    """Token of the row."""
    context: str
    """The text before it."""
    label: str
    """What came."""
    teacher: str
    teacher_confidence: Share
    student: str
    confidence: Share
    times: Count
    """How many positions have this label and these answers; the one shown is where the student is surest."""


class BlindSpots(_Record, frozen=True, kw_only=True):
    """Where teacher and truth disagree, and what the student does there."""

    cells: Cells
    by_confidence: list[Group]
    """Bins of the teacher's confidence."""
    inherited: list[Place]
    """Both wrong with one answer; where the student is surest first."""
    lost: list[Place]
    """The teacher was right and the student wrong; where it is surest first."""
    worst_rows: list[Group]
    """Rows by KL from the teacher, largest first."""


class StoreFacts(_Record, frozen=True, kw_only=True):
    """The store that was evaluated on."""

    path: str
    digest: str
    rows: Count
    positions: Count
    estimator: str
    k: Count
    teacher: str
    teacher_parameters: Count
    domain: str
    corpus: list[str]
    vocab: str | None


class Scores(_Record, frozen=True, kw_only=True):
    """Means over the labelled positions of a store, at T=1; what compares with the teacher, over the soft ones.

    That is None for a sampled store, which does not determine it unless its teacher's states are given, and where no
    position has a soft target.
    """

    positions: Count
    soft_positions: Count
    """Those that have a soft target."""
    nll: Number
    """-log p of the label, nats."""
    perplexity: Number | None
    accuracy: Share
    """Share of positions whose most probable id is the label."""
    macro_f1: Share
    """Mean F1 of the classes (tokens) that are a label or were the most probable."""
    ece: Share
    """Expected calibration error of the most probable id, 15 bins of equal width (Guo et al. 2017)."""
    kl: Number | None
    """KL(teacher || student) over kept ids and tail, nats: a lower bound of that over all ids, since within the tail
    the two may differ as well."""
    kl_dense: Number | None = None
    """KL(teacher || student) over all ids, nats; None: neither does the store keep them all, nor are its teacher's
    states given."""
    agreement: Share | None
    """Share of soft positions where student and teacher agree on the most probable id."""
    top_k_agreement: Share | None
    """Share where the teacher's most probable id is among the student's 5."""
    acceptance_low: Share | None
    """Speculative decoding: at least this share of the tokens that the student drafts is accepted, sum of min(p, q):
    exact over the kept ids, nothing for the tail."""
    acceptance_high: Share | None
    """And at most this: all that the two tails' masses allow."""
    teacher_nll: Number | None
    """The teacher's own, where the store knows it; None in a view, whose conditional distribution is another."""
    teacher_accuracy: Share | None
    teacher_ece: Share | None
    dropped: dict[str, Any] | None
    """What the view dropped of the teacher's mass (`softlabels.core.views.Dropped`); None without one."""


class Assessment(_Record, frozen=True, kw_only=True):
    """All that one evaluation of a student found."""

    format: str
    version: Count
    softlabels: str
    command: str
    weights: str
    """`student`, `ema` or `best`."""
    weights_sha256: str
    """Of the model file that was evaluated."""
    parameters: Count
    student_bytes: Count
    store: StoreFacts
    scores: Scores
    intervals: dict[str, Interval]
    level: Confidence
    replicates: Count
    seed: Count
    reliability: list[Bin]
    teacher_reliability: list[Bin]
    by_context: list[Group]
    by_document: list[Group]
    """The worst by nll; `documents` says of how many."""
    documents: Count
    by_class: list[Group]
    """Empty unless the vocabulary is small."""
    blind_spots: BlindSpots | None
    row_positions: list[Count]
    """Positions of each row, in order."""
    row_nll: list[Number]
    """Sum over each row, so that runs can be compared row by row."""
    row_sums: dict[str, list[Number]] = {}
    """The other sums of `RATIOS` that there are, over each row; none in evaluations of before they were kept."""

    def sums(self, name: str) -> tuple[list[float], list[float]] | None:
        """Numerator and denominator of a score of `RATIOS` over each row; None: they are not kept."""
        kept = self.row_sums | {"n": [float(n) for n in self.row_positions], "nll": self.row_nll}
        above, below = RATIOS[name]
        found = kept.get(above), kept.get(below)
        if found[0] is None or found[1] is None or len(found[0]) != len(found[1]):
            return None
        return found[0], found[1]


def tensor_files(folder: Path) -> list[Path]:
    """The model files of a student, in order of name.

    Raises:
        OSError: the folder cannot be listed; `glob` would find it empty.
    """
    return sorted(p for p in folder.iterdir() if p.suffix == ".safetensors")


def weights_digest(folder: Path) -> str:
    """sha256 over the model files of a student, in order of name.

    Raises:
        RunError: there is none.
    """
    files = tensor_files(folder)
    if not files:
        raise RunError(f"{folder}: holds no *.safetensors; has the run finished?")
    digest = hashlib.sha256()
    for path in files:
        regular_size(path)
        digest.update(bytes.fromhex(sha256_of(path)))
    return digest.hexdigest()


class Evaluation(NamedTuple):
    """What `trainers.evaluate` found."""

    assessment: Assessment
    saved: Path | None
    """Where it is kept; None if the run could not be written to."""

    @property
    def scores(self) -> Scores:
        """The means."""
        return self.assessment.scores


def save_assessment(
    run: Path, assessment: Assessment, notice: Callable[[str], None]
) -> Path | None:
    """Write it into the run, whole or not at all; another of the same weights and store is replaced.

    Args:
        notice: told of a run that cannot be written to, such as another's, or on a full disk: the result does not go
            with its copy.

    Returns:
        Where it lies; None if it was not kept.

    Raises:
        RunError: what lies there under its name is no evaluation.
    """
    path = run / FOLDER / f"{assessment.weights}-{assessment.store.digest[:12]}.json"
    try:
        if path.exists():
            _read(path)  # what is not ours stays
        replace(path, msgspec.json.format(msgspec.json.encode(assessment), indent=1))
    except StoreError as e:
        reason = os.strerror(e.__cause__.errno or 0) if isinstance(e.__cause__, OSError) else str(e)
        notice(f"{run}: the evaluation is not kept in it ({reason})")
        return None
    return path


def find_assessments(run: Path) -> list[Assessment]:
    """Every evaluation that a run holds, by file name.

    Raises:
        RunError: names the file that is not one.
    """
    try:
        files = sorted(p for p in (run / FOLDER).iterdir() if p.suffix == ".json")
    except (FileNotFoundError, NotADirectoryError):
        return []
    return [_read(path) for path in files if not is_temporary(path.name)]


def _read(path: Path) -> Assessment:
    try:
        if regular_size(path) > LARGEST_BYTES:
            raise RunError(f"{path}: more than {LARGEST_BYTES:,} bytes; not an evaluation")
        assessment = msgspec.json.decode(path.read_bytes(), type=Assessment)
    except RunError:
        raise
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as e:
        raise RunError(
            f"{path}: not an evaluation that this version can read ({e}); delete it and run `softtrain eval` again"
        ) from e
    if (assessment.format, assessment.version) != (FORMAT, VERSION):
        raise RunError(
            f"{path}: is {assessment.format!r} version {assessment.version}, expected {FORMAT!r} {VERSION}; "
            "run `softtrain eval` again"
        )
    return assessment
