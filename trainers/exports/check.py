"""Whether an export answers as the PyTorch student does, on real rows.

The student is asked about each example alone, unpadded; the export about batches that are padded on either side, about
single examples, and about the smallest input there is, alone and beside others. N outputs, V ids.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from softlabels.errors import ExportError, RunError
from trainers.exports.domains import Arrays, Example, Exported
from trainers.exports.formats import Runner

BATCH = 4
"""Examples of a padded batch."""
ALONE = 2
"""Examples that are also asked about alone."""


@dataclass
class Answers:
    """Of student or export, over the labels."""

    nll: list[Tensor] = field(default_factory=list)
    right: list[Tensor] = field(default_factory=list)

    def add(self, log_p: Tensor, example: Example) -> None:
        """Take the example's `[N, V]` log-probabilities into account."""
        own = log_p[torch.from_numpy(example.labelled)]
        labels = torch.from_numpy(example.labels)
        self.nll.append(-own.gather(1, labels[:, None])[:, 0])
        self.right.append(own.argmax(dim=1) == labels)

    def means(self) -> tuple[float, float]:
        """Negative log-likelihood, nats, and accuracy."""
        nll, right = torch.cat(self.nll), torch.cat(self.right)
        return float(nll.double().mean()), float(right.double().mean())


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """The figures of a check; `CheckRecord` says what they are."""

    outputs: int
    labels: int
    largest_difference: float
    agreement: float
    nll: float
    nll_of_student: float
    accuracy: float
    accuracy_of_student: float

    @property
    def loss_of_nll(self) -> float:
        """As a share of the student's."""
        return _share(self.nll - self.nll_of_student, self.nll_of_student)

    @property
    def loss_of_accuracy(self) -> float:
        """As a share of the student's."""
        return _share(self.accuracy_of_student - self.accuracy, self.accuracy_of_student)


def _share(difference: float, whole: float) -> float:
    if difference == 0:
        return 0.0
    return difference / whole if whole > 0 else float(np.copysign(np.inf, difference))


@torch.inference_mode()
def compare(
    model: Any,
    runner: Runner,
    domain: Exported,
    examples: Sequence[Example],
    *,
    advance: Callable[[int], None] = lambda _: None,
) -> Comparison:
    """Ask both about all examples.

    Args:
        model: the student's, in evaluation mode.
        runner: the export.
        domain: whose students they are.
        examples: what to ask about.
        advance: told of examples done.

    Raises:
        ExportError: the export fails, gives other shapes, NaN or infinity.
        RunError: no example has a label.
    """
    if not any(len(e.labels) for e in examples):
        raise RunError("no row has a label, so there is no score to compare; use another store")
    student, export = Answers(), Answers()
    outputs, agreeing, largest = 0, 0, 0.0
    for batch, left, counts in _batches(domain, examples):
        laid = domain.lay(batch, left=left)
        logits = torch.from_numpy(_ask(runner, laid.inputs))
        flat = logits.reshape(-1, logits.shape[-1])[torch.from_numpy(laid.places)]
        start = 0
        for example in batch:
            expected = torch.log_softmax(domain.reference(model, example).float(), dim=-1)
            found = flat[start : start + len(expected)]
            start += len(expected)
            if found.shape != expected.shape or not bool(torch.isfinite(found).all()):
                raise ExportError(
                    f"the export gives logits {tuple(found.shape)}, finite or not, where the student gives "
                    f"{tuple(expected.shape)}, all finite"
                )
            found = torch.log_softmax(found.float(), dim=-1)
            largest = max(largest, float((found - expected).abs().max()))
            if counts:
                outputs += len(expected)
                agreeing += int((found.argmax(1) == expected.argmax(1)).sum())
                student.add(expected, example)
                export.add(found, example)
        if start != len(flat):
            raise ExportError(f"the export has {len(flat)} outputs where the student has {start}")
        advance(len(batch) if counts else 0)
    (nll, accuracy), (nll_s, accuracy_s) = export.means(), student.means()
    return Comparison(
        outputs=outputs,
        labels=sum(len(e.labels) for e in examples),
        largest_difference=largest,
        agreement=agreeing / outputs,
        nll=nll,
        nll_of_student=nll_s,
        accuracy=accuracy,
        accuracy_of_student=accuracy_s,
    )


def _ask(runner: Runner, inputs: Arrays) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    try:
        return runner(inputs)
    except Exception as e:  # of any kind: each runtime has its own
        shapes = ", ".join(f"{name} {v.shape}" for name, v in inputs.items())
        raise ExportError(
            f"the export fails on {shapes}, which the student takes ({type(e).__name__}: {str(e).strip()[:200]})"
        ) from e


def _batches(
    domain: Exported, examples: Sequence[Example]
) -> Iterator[tuple[Sequence[Example], bool, bool]]:
    """Examples, on which side to pad them, and whether they count in the score (each does once)."""
    shortest = domain.shortest(examples[0])
    yield [shortest], False, False
    for example in examples[:ALONE]:
        yield [example], False, False
        for left in (False, True):  # rows of one length would never be padded
            yield [shortest, example], left, False
    for i, start in enumerate(range(0, len(examples), BATCH)):
        yield examples[start : start + BATCH], i % 2 == 1, True


def verdict(found: Comparison, *, rule: str, tolerance: float, what: str) -> None:
    """Refuse an export that lost too much.

    Args:
        found: its figures.
        rule: of its format.
        tolerance: how much is allowed.
        what: names it in the message.

    Raises:
        ExportError: says how much it lost.
    """
    if rule == "log-probability":
        losses = {"log-probabilities differ by up to {:.3g} nats": found.largest_difference}
    else:
        losses = {
            "the negative log-likelihood rises by {:.3%}": found.loss_of_nll,
            "the accuracy falls by {:.3%}": found.loss_of_accuracy,
        }
    for text, loss in losses.items():
        if not loss <= tolerance:
            raise ExportError(
                f"{what} does not give the student's answers: {text.format(loss)} over {found.labels:,} labels, "
                f"allowed is {tolerance:g}; nothing was written. Look for the cause, check on more rows (--rows), or "
                "allow it (--tolerance)"
            )
