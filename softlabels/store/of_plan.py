"""Whether a finished store is the one of a plan: a plan names a store from before its first shard on."""

from __future__ import annotations

from pathlib import Path

from softlabels.core.records import parse_record
from softlabels.errors import IntegrityError
from softlabels.format.files import Address
from softlabels.format.manifest import PLAN, Manifest, Plan
from softlabels.store.reader import Store


def plan_digest(store: Store) -> str | None:
    """The digest of a store's plan; None: it is a part of a store, or a copy without the plan.

    Raises:
        StoreError: the plan is damaged, or that of another store.
    """
    if not store.finished:
        return store.digest
    if store.vouched is not None and store.vouched.part is not None:
        return None
    try:
        data = store.files.record(PLAN)
    except (FileNotFoundError, NotADirectoryError):
        return None
    plan = parse_record(data, Plan, where=store.path / PLAN)
    check_of_plan(store.path, store.manifest, plan)
    return plan.digest


def check_of_plan(path: Path | Address, manifest: Manifest, plan: Plan) -> None:
    """Refuse a manifest that is not of a plan.

    Raises:
        IntegrityError: names the store.
    """
    same = (manifest.identity, len(manifest.shards)) == (plan.identity, len(plan.shards))
    if not same:
        raise IntegrityError(
            f"{path}: its {PLAN} is of another store than its manifest; copy both again from the store's source"
        )
