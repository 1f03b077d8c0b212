"""Changing what a finished store's manifest says beside its content: a measurement, a card.

The content (identity and shards) stays, and so does `content_digest`. The new manifest replaces the old in one
step; then the files that are made from it are replaced. Whoever reads at any moment finds one manifest or the
other, whole. A process that dies in between leaves the new manifest with an old card: `verify` says so, and
`repair` makes the card again from the manifest, which finishes the job.
"""

from __future__ import annotations

from pathlib import Path

from softlabels.errors import FormatError, IntegrityError
from softlabels.store.card import card
from softlabels.store.commit import replace
from softlabels.store.finish import CARD, with_card
from softlabels.store.manifest import MANIFEST, Manifest, load_manifest
from softlabels.store.records import canonical

__all__ = ["amend"]


def amend(store: Path, manifest: Manifest) -> Manifest:
    """Put a manifest of the same content in the place of the store's own, and renew the card.

    Raises:
        FormatError: the present manifest holds what this version does not know, and would lose.
        IntegrityError: the store's content changed meanwhile.
        StoreError: a file cannot be written.
    """
    present = load_manifest(store)
    if present.content_digest != manifest.content_digest:
        raise IntegrityError(
            f"{store}: its content changed meanwhile ({present.content_digest[:12]}…, expected "
            f"{manifest.content_digest[:12]}…); nothing was written, run the same command again"
        )
    if canonical(present) != (store / MANIFEST).read_bytes():
        raise FormatError(
            f"{store / MANIFEST}: holds fields that this version does not know and would drop; upgrade softlabels"
        )
    readme = card(manifest).encode()
    sealed = with_card(manifest, readme)
    replace(store / MANIFEST, canonical(sealed))
    replace(store / CARD, readme)
    return sealed
