"""What a reader must know of the ids that an estimator keeps, whoever wrote the estimator.

An estimator declares it (`Estimator.keeps`). A store of an estimator that format 1.3 did not know carries the
declaration in its manifest, so that it is read, trained on and reported where the estimator is not installed. Losses,
codecs, views and reports ask it, and never for an estimator's name.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec

from softlabels.errors import ConfigError

LARGEST_GRID = 1024
"""Temperatures of a store, at most."""


class KeptSet(
    msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True
):
    """What the kept ids of a position are, and what their values mean."""

    sample: bool = False
    """The ids are a random sample: they have weights at the store's one temperature, whose mean over draws is the
    teacher's probability of each id. Otherwise they have probabilities at each temperature of the grid, in which 1
    is."""
    tail: bool = True
    """The mass of all other ids is known at each temperature. A sample has none, nor has a set of all ids."""
    largest: bool = False
    """No other id is likelier than a kept one, so that the likeliest of them are such a set, too."""
    sure: bool = False
    """Of a sample: ids heavier than the lightest were sure to be kept, and their weight is their probability."""

    def __post_init__(self) -> None:
        if self.sample and (self.tail or self.largest):
            raise ValueError("a sample has no tail, and its ids are not the largest")
        if self.sure and not self.sample:
            raise ValueError("ids are sure to be kept in a sample; without one all are")

    def check_grid(self, estimator: str, temperatures: Sequence[float]) -> None:
        """Refuse temperatures at which such a set is not known, by a `ConfigError` with the flag and the way out."""
        if not temperatures:
            raise ConfigError("--temperature: give at least one")
        if len(temperatures) > LARGEST_GRID:
            raise ConfigError(f"--temperature: {len(temperatures)} of them, at most {LARGEST_GRID}")
        for t in temperatures:
            if not (0 < t < float("inf")):
                raise ConfigError(f"--temperature {t}: expected a finite number above 0")
        if len(set(temperatures)) != len(temperatures):
            raise ConfigError(f"--temperature: {sorted(temperatures)} names one twice")
        if self.sample and len(temperatures) != 1:
            raise ConfigError(
                f"--temperature {list(temperatures)}: a store of the {estimator!r} estimator holds one temperature, "
                "since a sample is unbiased only at the one it was drawn at; build one store for each, or use "
                "--estimator topk"
            )
        if not self.sample and 1.0 not in temperatures:
            raise ConfigError(
                f"--temperature {list(temperatures)}: this estimator also needs T=1 (it costs 2 bytes a "
                "position); add --temperature 1"
            )


BUILT_IN: Mapping[str, KeptSet] = {
    "topk": KeptSet(largest=True),
    "topp": KeptSet(largest=True),
    "sampled": KeptSet(sample=True, tail=False, sure=True),
    "rs": KeptSet(sample=True, tail=False),
    "dense": KeptSet(tail=False),
}
"""Of the estimators of format 1.0 to 1.3, whose stores do not say it. Nothing is ever added: newer ones declare it."""


def kept_set(estimator: str, declared: KeptSet | None) -> KeptSet:
    """What an estimator keeps, as it is known, or as a store or the estimator declares; else `ConfigError`."""
    found = BUILT_IN.get(estimator, declared)
    if found is None:
        raise ConfigError(
            f"estimator {estimator!r}: is not known, and nothing declares what it keeps"
        )
    return found
