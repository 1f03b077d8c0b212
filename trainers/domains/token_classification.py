"""Classifiers of words as students."""

from __future__ import annotations

from trainers.data.tasks import Task
from trainers.domains.encoder import EncoderDomain


class TokenClassification(EncoderDomain):
    """A linear head over the classes, for each token."""

    name = "token-classification"

    def head_parameters(self, task: Task, width: int) -> int:
        """Of the head alone."""
        return (width + 1) * len(task.classes)


DOMAIN = TokenClassification()
