"""Changing what a finished store's manifest says beside its content: a measurement, a card.

The content (identity and shards) stays, and so does `content_digest`. The new manifest replaces the old in one
step; then the files that are made from it are replaced. Whoever reads at any moment finds one manifest or the
other, whole. A process that dies in between leaves the new manifest with an old card: `verify` says so, and
`repair` makes the card again from the manifest, which finishes the job.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from softlabels.durable import replace
from softlabels.errors import FormatError, IntegrityError
from softlabels.store.finish import CARD, MADE, with_files
from softlabels.store.manifest import MANIFEST, Manifest, load_manifest
from softlabels.store.part import refuse_part
from softlabels.store.records import canonical

__all__ = ["amend"]


def amend(store: Path, manifest: Manifest, *, make: Sequence[str] = ()) -> Manifest:
    """Put a manifest of the same content in the place of the store's own, and renew what is made from it.

    Args:
        store: its folder.
        manifest: the new one; its seal is made here.
        make: names of `finish.MADE` to add, if the store has them not yet.

    Raises:
        FormatError: the present manifest holds what this version does not know, and would lose.
        IntegrityError: the store's content changed meanwhile.
        StoreError: a file cannot be written.
    """
    refuse_part(store)
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
    names = [n for n in MADE if n == CARD or n in make or n in manifest.files]
    made = {name: MADE[name](manifest).encode() for name in names}
    sealed = with_files(manifest, made)
    replace(store / MANIFEST, canonical(sealed))
    for name, data in made.items():
        replace(store / name, data)
    return sealed
