"""A candidate that only lists the log-probabilities of its most probable ids."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch

from softlabels.teachers.listing import Listed, ListingTeacher
from softlabels.teachers.segments import Segment
from tests.fakes import TinyTeacher


class Lists(ListingTeacher):
    """What a dense teacher says, as a server would."""

    def __init__(self, teacher: TinyTeacher) -> None:
        super().__init__()
        self._teacher = teacher
        self.record, self.tokenizer = teacher.record, teacher.tokenizer

    def check_k(self, k: int) -> None:
        pass

    def ask(self, segments: Sequence[Segment], k: int) -> Iterator[Listed]:
        raise NotImplementedError

    def listed(self, rows, k: int) -> Iterator[Listed]:
        for row in rows:
            logp = torch.log_softmax(self._teacher.dense(row).double(), 1)
            top = logp.topk(k)
            labels = torch.from_numpy(row.labels.astype(np.int64))[:, None]
            yield Listed(
                top.indices.numpy(), top.values.numpy(), logp.gather(1, labels)[:, 0].numpy()
            )
