"""Changing what a finished store's manifest says beside its content: a measurement, a card.

The content (identity and shards) stays, and so does `content_digest`. Whoever amends holds the store's lock (`alone`)
from reading the present manifest to replacing it, so that of two changes at once both are there afterwards. The new
manifest replaces the old in one step; then the files that are made from it are replaced. Whoever reads at any moment
finds one manifest or the other, whole. A process that dies in between leaves the new manifest with an old card:
`verify` says so, and `repair` makes the card again from the manifest, which finishes the job.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path

from softlabels.core.durable import alone, replace
from softlabels.core.records import canonical, read_file
from softlabels.errors import FormatError, IntegrityError
from softlabels.format.manifest import MANIFEST, Manifest, load_manifest
from softlabels.format.part import refuse_part
from softlabels.making.finish import CARD, MADE, with_files
from softlabels.making.quarantine import make_way


def amend(
    store: Path,
    change: Callable[[Manifest], Manifest],
    *,
    content: str | None = None,
    make: Sequence[str] = (),
) -> Manifest:
    """Change the manifest of a store, and renew what is made from it; returns the one in force.

    Args:
        change: given the present manifest, which may be another than the caller has read: the new one, of the same
            content; its seal is made here.
        content: the content digest that the change was worked out for; None: it fits any.
        make: names of `finish.MADE` to add, if the store has them not yet.

    Raises:
        FormatError: the present manifest holds what this version does not know, and would lose.
        IntegrityError: the store's content changed meanwhile.
        StoreError: a file cannot be written.
    """
    refuse_part(store)
    with alone(store):
        present = load_manifest(store)
        if content is not None and present.content_digest != content:
            raise IntegrityError(
                f"{store}: its content changed meanwhile ({present.content_digest[:12]}…, expected {content[:12]}…); "
                "nothing was written, run the same command again"
            )
        if canonical(present) != read_file(store / MANIFEST):
            raise FormatError(
                f"{store / MANIFEST}: holds fields that this version does not know and would drop; upgrade softlabels"
            )
        manifest = change(present)
        assert manifest.content_digest == present.content_digest, "an amendment changes no content"
        names = [n for n in MADE if n == CARD or n in make or n in manifest.files]
        made = {name: MADE[name](manifest).encode() for name in names}
        sealed = with_files(manifest, made)
        replace(store / MANIFEST, canonical(sealed))
        for name, data in made.items():
            _keep_edited(store, name, present, data)
            replace(store / name, data)
    return sealed


def _keep_edited(store: Path, name: str, present: Manifest, data: bytes) -> None:
    """Move a card aside that somebody has written in: it is not the one that the manifest has."""
    record = present.files.get(name)

    def ours(path: Path) -> bool:
        found = read_file(path)
        recorded = record is not None and hashlib.sha256(found).hexdigest() == record.sha256
        return recorded or found == data

    make_way(store, store / name, ours)
