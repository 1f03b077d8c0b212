"""Whether an export answers as the PyTorch student does, on real rows.

The student is asked about each example alone, unpadded; the export about batches that are padded on either side, about
single examples, and about the smallest input there is, alone and beside others. N outputs, V ids.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from softlabels.errors import ExportError, RunError
from trainers.exports.domains import Arrays, Example, Exported
from trainers.exports.formats import Runner
from trainers.exports.record import Comparison

BATCH = 4
"""Examples of a padded batch."""
ALONE = 2
"""Examples that are also asked about alone."""


@torch.inference_mode()
def compare(
    model: Any,
    runner: Runner,
    domain: Exported,
    examples: Sequence[Example],
    *,
    advance: Callable[[int], None] = lambda _: None,
) -> Comparison:
    """Ask the student's model, in evaluation mode, and the export about all examples.

    Raises:
        ExportError: the export fails, gives other shapes, NaN or infinity.
        RunError: no example has a label.
    """
    if not any(len(e.labels) for e in examples):
        raise RunError("no row has a label, so there is no score to compare; use another store")
    student: list[Tensor] = []
    export: list[Tensor] = []
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
                student.append(_scored(expected, example))
                export.append(_scored(found, example))
        if start != len(flat):
            raise ExportError(f"the export has {len(flat)} outputs where the student has {start}")
        advance(len(batch) if counts else 0)
    (nll, accuracy), (nll_s, accuracy_s) = (
        torch.cat(scored, dim=1).mean(dim=1).tolist() for scored in (export, student)
    )
    return Comparison(
        outputs=outputs,
        labels=sum(len(e.labels) for e in examples),
        largest_difference=largest,
        agreement=agreeing / outputs,
        nll=nll,
        nll_of_student=nll_s,
        accuracy=accuracy,
        accuracy_of_student=accuracy_s,
        loss_of_nll=_share(nll - nll_s, nll_s),
        loss_of_accuracy=_share(accuracy_s - accuracy, accuracy_s),
    )


def _scored(log_p: Tensor, example: Example) -> Tensor:
    """`[2, M] float64`: of each label the negative log-likelihood, nats, and whether it is the most probable id."""
    own = log_p[torch.from_numpy(example.labelled)]
    labels = torch.from_numpy(example.labels)
    right = own.argmax(dim=1) == labels
    return torch.stack([-own.gather(1, labels[:, None])[:, 0].double(), right.double()])


def _share(difference: float, whole: float) -> float:
    if difference == 0:
        return 0.0
    return difference / whole if whole > 0 else float(np.copysign(np.inf, difference))


def _ask(runner: Runner, inputs: Arrays) -> npt.NDArray[np.float32]:
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
    """Refuse an export, called `what`, that lost more than its format's rule allows.

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
