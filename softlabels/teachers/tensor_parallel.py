"""`hf:PATH?tp=auto`: one model over the processes of torchrun, each with a part of every layer and of the head.

    torchrun --nproc-per-node 8 -m softlabels build --teacher 'hf:PATH?tp=auto' …

The first process builds. What it asks its teacher for it sends to the others, which run the same forward; of the logits
each process makes those of its own ids, and the estimator is dealt out (`estimators/vocab_parallel.py`). The others see
no corpus and no store: they serve until the first one is done, and end.
"""

from __future__ import annotations

import atexit
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch.distributed as dist

from softlabels.capture import BadLogitError, Job, Kept
from softlabels.capture.torchrun import agreed
from softlabels.teachers import Teacher

if TYPE_CHECKING:
    from torch import Tensor

    from softlabels.teachers.hf_head import HFHeadTeacher


class TensorParallelTeacher(Teacher):
    """The teacher of the first process, which takes the others along.

    In any other process making one does not return: it serves, and ends the process.

    Args:
        own: this process's part.
    """

    def __init__(self, own: HFHeadTeacher) -> None:
        self.own = own
        self.record, self.tokenizer, self.context = own.record, own.tokenizer, own.context
        if dist.get_rank() > 0:
            _serve(own)
            dist.destroy_process_group()
            raise SystemExit(0)
        atexit.register(_dismiss)

    def logits(self, rows: Sequence[Any]) -> Iterator[Tensor]:
        """Chunks of all V logits, brought together: for what cannot be dealt out."""
        agreed(("logits", rows))
        chunks = self.own.logits(rows)
        try:
            yield from chunks
        finally:
            for _ in chunks:  # the others wait for these
                pass

    def selected(self, rows: Sequence[Any], job: Job, uniforms: Tensor | None) -> Iterator[Kept]:
        """What is kept of the positions of all rows."""
        if not job.estimator.deals:
            yield from super().selected(rows, job, uniforms)
            return
        agreed(("selected", rows, job, uniforms))
        yield from list(self.own.selected(rows, job, uniforms))


def _serve(own: HFHeadTeacher) -> None:
    while (asked := agreed(None)) is not None:
        method, *arguments = asked
        try:
            for _ in getattr(own, method)(*arguments):
                pass
        except BadLogitError:
            pass  # the first process says so


def _dismiss() -> None:
    if dist.is_initialized():
        agreed(None)
        dist.destroy_process_group()
