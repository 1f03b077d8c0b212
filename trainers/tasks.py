"""What a student is for: the domain of its store, and of classification the classes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from softlabels.store.reader import Store

__all__ = ["CAUSAL", "LOADERS", "Task"]


@dataclass(frozen=True, kw_only=True)
class Task:
    """What a student is for."""

    domain: str = "causal-lm"
    classes: tuple[str, ...] = ()
    """Of classification: what each id means."""

    @staticmethod
    def of(store: Store) -> Task:
        """A store's."""
        identity = store.manifest.identity
        return Task(domain=identity.domain, classes=tuple(identity.classes or ()))

    @property
    def settings(self) -> dict[str, Any]:
        """What a model's configuration says of it."""
        if not self.classes:
            return {}
        names = dict(enumerate(self.classes))
        return {"id2label": names, "label2id": {name: i for i, name in names.items()}}


CAUSAL = Task()
LOADERS = {
    "causal-lm": "AutoModelForCausalLM",
    "masked-lm": "AutoModelForMaskedLM",
    "sequence-classification": "AutoModelForSequenceClassification",
    "token-classification": "AutoModelForTokenClassification",
}
"""Domain, and the class of transformers that loads its models."""
