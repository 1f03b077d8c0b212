"""What a run demanded of its stores, what was found, and that a run which goes on demands no less."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from softlabels.errors import RunError
from softlabels.store.reader import Store
from trainers.run.config import RunConfig


def trust_facts(config: RunConfig, stores: Sequence[Store]) -> list[dict[str, Any]]:
    """Of each store what was demanded and what was found, for run.json."""
    return [
        {} if store.vouched is None else store.vouched.facts(demand)
        for demand, store in zip(config.demands(), stores, strict=True)
    ]


def trust_notices(stores: Sequence[Store]) -> Iterator[str]:
    """What whoever reads the run's log should know of its stores."""
    for store in stores:
        found = store.vouched
        if found is None:
            continue
        if found.part is not None:
            yield (
                f"{store.path}: a part of a store: {len(found.part.shards)} of {len(found.manifest.shards)} shards are "
                f"there, digest {found.digest}"
            )
        if found.key_sha256 is not None:
            release = found.manifest.release
            as_ = "without a name and version" if release is None else f"as {release}"
            yield f"{store.path}: signed by the key, {as_}"


def check_same_trust(recorded: dict[str, Any], facts: dict[str, Any], run: Any) -> None:
    """Refuse to go on with less than what the run was begun with; more may be demanded.

    Raises:
        RunError: names the flag.
    """
    for before, now in zip(recorded.get("trust", []), facts["trust"], strict=False):
        for field, flag in (
            ("key_sha256", "--key"),
            ("demanded_digest", "--digest"),
            ("demanded_release", "--release"),
        ):
            if before.get(field) is not None and before[field] != now.get(field):
                raise RunError(
                    f"{run}: was begun with {flag} ({before[field]}), this has {now.get(field) or 'none'}; resume it "
                    "as it was begun"
                )
