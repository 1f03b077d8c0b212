"""Domains: what a row is, which columns hold it, and what it must obey.

A module for each, behind `Domain`; both sides use it: the builder to write rows, a trainer to read them. To add
one: a module here, a line in `DOMAINS`, how its rows are made in `planning.py`, and docs/format.md.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import Any, Protocol, cast

from softlabels.core.rows import InputRow
from softlabels.format.columns import Column, Expected
from softlabels.format.identity import Identity

__all__ = ["DOMAINS", "Domain", "domain_module", "packed_digest_bytes"]

DOMAINS: Mapping[str, str] = {
    "causal-lm": "softlabels.domains.causal_lm",
    "masked-lm": "softlabels.domains.masked_lm",
    "sequence-classification": "softlabels.domains.sequence_classification",
    "token-classification": "softlabels.domains.token_classification",
    "image-classification": "softlabels.domains.image_classification",
}
"""Name and module."""


class Domain(Protocol):
    """What a domain's module has. `columns` and `rows_of` are each other's inverse."""

    LABEL_SHIFT: int
    """How many tokens after its position a label lies."""
    DIGEST_BYTES: int
    """Of a row's input digest that a file holds. With `PACKED_DIGEST_BYTES`, another number of the profile `packed`."""

    def columns(self, rows: Sequence[Any]) -> dict[str, Column]:
        """What is stored of rows, besides their numbers and digests."""

    def expected(self, identity: Identity, rows: int | None) -> dict[str, Expected]:
        """What these columns must be, of so many rows (None: not known)."""

    def rows_of(
        self, columns: Mapping[str, Column], identity: Identity, *, where: str
    ) -> Sequence[InputRow]:
        """The rows of some columns, which are of the expected types but may hold anything.

        Raises:
            IntegrityError: lists whose lengths do not fit together.
        """

    def check(self, row: Any, identity: Identity, *, where: str) -> None:
        """Refuse a row that contradicts itself, or the identity.

        Raises:
            IntegrityError: names `where` and the contradiction.
        """


def domain_module(name: str) -> Domain:
    """The module of a domain, by its name in a store's identity."""
    return cast(Domain, import_module(DOMAINS[name]))


def packed_digest_bytes(domain: Domain) -> int:
    """How much of a row's digest the profile `packed` holds."""
    return int(getattr(domain, "PACKED_DIGEST_BYTES", domain.DIGEST_BYTES))
