"""What a student's model is made with, and how anyone makes it again from its weights."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from softlabels.domains import DOMAINS


@dataclass(frozen=True, kw_only=True)
class Origin:
    """Of one kind of model."""

    libraries: tuple[str, ...]
    """Beside PyTorch, those whose versions matter."""
    needs: str
    """What to install to load the weights."""
    code: str
    """Python from `inputs`, a dict of arrays, to `logits`, with imports; PATH is the folder."""
    sources: tuple[Path, ...] = ()
    """Python files that `code` imports, which lie beside the weights."""


def of_transformers(domain: str) -> Origin:
    """A model that transformers loads for a domain."""
    return Origin(
        libraries=("transformers",),
        needs="torch transformers",
        code=(
            "import torch, transformers\n"
            f'model = transformers.{DOMAINS.load(domain).transformers}.from_pretrained("PATH").eval()\n'
            "logits = model(**{k: torch.from_numpy(v) for k, v in inputs.items()}).logits.detach().numpy()\n"
        ),
    )
