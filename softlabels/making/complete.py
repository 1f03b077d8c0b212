"""What a command does that finds its store finished: nothing, unless something of it is gone."""

from __future__ import annotations

from pathlib import Path

from softlabels.core.progress import Reporter
from softlabels.errors import IntegrityError
from softlabels.format.manifest import MANIFEST, Manifest, load_manifest
from softlabels.format.part import refuse_part
from softlabels.making.claims import clear_claims
from softlabels.making.finish import check_shards
from softlabels.making.quarantine import QUARANTINE
from softlabels.making.repair import repair_store


def complete(store: Path, report: Reporter) -> Manifest | None:
    """The manifest of a store that is finished; None: it is not, and shards are to be made.

    Every shard is looked at, without being read. If one is missing or torn the store is repaired, which withdraws the
    manifest, and the shard is made again.

    Raises:
        IntegrityError: something is gone that cannot be made again, or the store is a part.
        StoreError: shards are gone, and a builder is at work on the store.
    """
    if not (store / MANIFEST).exists():
        return None
    refuse_part(store)
    manifest = load_manifest(store)
    try:
        check_shards(store, manifest.shards)
    except IntegrityError as e:
        report.notice(f"{store} was finished, but is not whole: {e}")
    else:
        report.notice(f"{store} is complete already")
        clear_claims(store)  # of a builder that died when all was done
        return manifest
    mended = repair_store(store)
    for action in mended.actions:
        report.notice(f"{action.action} {action.file}: {action.reason}")
    if mended.quarantine:
        report.notice(f"what is not proven to be the store's is now in {store / QUARANTINE}")
    if mended.problems:
        raise IntegrityError(mended.problems[0])
    return None if mended.rebuild else load_manifest(store)
