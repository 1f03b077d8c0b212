"""What a student is for: the domain of its store, what it reads, and of classification the classes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from softlabels.domains import DOMAINS
from softlabels.errors import ConfigError, PairingError, RunError
from softlabels.format.files import Address
from softlabels.store.reader import Store


@dataclass(frozen=True, kw_only=True)
class Task:
    """What a student is for."""

    domain: str = "causal-lm"
    classes: tuple[str, ...] = ()
    """Of classification: what each id means."""
    vocab_size: int = 0
    """V of the tokens that are read; 0: not known."""
    row_tokens: int = 0
    """Tokens of a row, at most; 0: not known."""
    special_ids: Mapping[str, int] = field(default_factory=dict)
    """The tokenizer's `bos`, `eos`, `pad`, `unk`, where it has them."""

    @staticmethod
    def of(store: Store) -> Task:
        """A store's, in the vocabulary that it is read in."""
        identity = store.identity
        classes = tuple(identity.classes or ())
        v = store.vocab_size if not classes else identity.tokenizer.vocab_size
        special = {} if renumbers(store) else identity.tokenizer.special_ids
        return Task(
            domain=identity.domain,
            classes=classes,
            vocab_size=v,
            row_tokens=identity.corpus.seq_len,
            special_ids={name: i for name, i in special.items() if i < v},
        )

    @staticmethod
    def saved(domain: str, folder: Path) -> Task:
        """Of a student in a folder, whose configuration names its classes: `classes`, or as transformers does."""
        path = folder / "config.json"
        if not path.exists() and (folder / "adapter_config.json").exists():
            return Task(domain=domain)  # adapters are of causal LMs
        try:
            config = json.loads(path.read_text(encoding="utf-8"))
            names = config.get("id2label", {})
            listed = config.get("classes") or [names[str(i)] for i in range(len(names))]
        except (OSError, ValueError, AttributeError, KeyError, TypeError) as e:
            raise RunError(
                f"{path}: not the configuration of a student ({e}); take another copy of {folder}"
            ) from e
        # transformers give models over tokens two classes all the same
        classes = tuple(listed) if DOMAINS.load(domain).classified else ()
        return Task(domain=domain, classes=classes)

    @property
    def tokens(self) -> dict[str, Any]:
        """What a model's configuration says of the tokens that it reads."""
        ids = {f"{name}_token_id": self.special_ids.get(name) for name in ("bos", "eos", "pad")}
        return {"vocab_size": self.vocab_size, **ids}

    @property
    def settings(self) -> dict[str, Any]:
        """What a model's configuration says of it."""
        if not self.classes:
            return {}
        names = dict(enumerate(self.classes))
        return {"id2label": names, "label2id": {name: i for i, name in names.items()}}


CAUSAL = Task()


def renumbers(store: Store) -> bool:
    """Whether the store's tokenizer no longer gives the ids that are read."""
    return store.view is not None and store.view.table is not None


def check_rows(store: Store, flag: str = "--images") -> None:
    """Refuse a store whose inputs, or images, are elsewhere, and nobody said where.

    Raises:
        PairingError: inputs.
        ConfigError: images; names the flag.
    """
    store.need_inputs()
    if store.identity.images is not None and store.images is None:
        specs = " ".join(f"{flag} {s}" for s in store.identity.corpus.specs)
        raise ConfigError(
            f"{flag} is missing: {store.path} holds no pixels, it was made from images that must be at hand: {specs}, "
            "with their folder"
        )


def check_domain(
    store: Store, domain: str, *, of: Path | Address | str, where: Path | Address | str
) -> None:
    """Refuse a store of another domain than `of` is of, whose rows it cannot be fed.

    Raises:
        PairingError: names both.
    """
    if store.identity.domain != domain:
        raise PairingError(
            f"{where}: is a store of the domain {store.identity.domain}, {of} is of {domain}; give one of that domain"
        )
