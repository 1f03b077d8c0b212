"""Whether a finished store is the one of a plan: a plan names a store from before its first shard on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from softlabels.core.records import parse_record
from softlabels.errors import FormatError, IntegrityError
from softlabels.format.files import Address
from softlabels.format.manifest import PLAN, Manifest, Plan
from softlabels.store.reader import Store


def plan_digest(store: Store, *, notice: Callable[[str], None] | None = None) -> str | None:
    """The digest of a store's plan; None: it is a part of a store, or a copy without the plan.

    Args:
        notice: where the plan is not needed: takes what is wrong with it, and there is none.

    Raises:
        StoreError: the plan is damaged, or that of another store, and there is no `notice`; or it cannot be read.
    """
    if not store.finished:
        return store.digest
    if store.vouched is not None and store.vouched.part is not None:
        return None
    try:
        data = store.files.record(PLAN)
    except (FileNotFoundError, NotADirectoryError):
        return None
    try:
        plan = parse_record(data, Plan, where=store.path / PLAN)
        check_of_plan(store.path, store.manifest, plan)
    except (FormatError, IntegrityError) as e:
        if notice is None:
            raise
        notice(f"{e}; the store itself is intact, so this goes on as without {PLAN}")
        return None
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
