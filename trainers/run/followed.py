"""A run on a store that is not finished when the run begins: how it calls the store, and when that changes.

`run.json` names the store by its plan's digest, as `store_digest` and `plan_digest`. As soon as a run ends, or goes on,
and finds the finished store of that plan, `store_digest` becomes the content digest. Runs by plan on a finished store
record both at once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

from softlabels.core.progress import duration
from softlabels.errors import RunError, StoreError
from softlabels.store.of_plan import plan_digest
from softlabels.store.reader import Store
from trainers.data.chain import Chain
from trainers.data.mixing import MixedStream, parse_stores
from trainers.data.order import PLANNED
from trainers.data.stream import SoftTargetStream
from trainers.data.tasks import check_rows
from trainers.run.config import RunConfig
from trainers.run.record import RUN_RECORD, is_of_plan, read_run_record, write_json


def open_followed(config: RunConfig, notice: Callable[[str], None]) -> list[tuple[Store, Fraction]]:
    """The store of a run with `--follow`, as `open_stores` gives them, finished or not.

    Raises:
        UnfinishedError: there is no plan, and nobody is making one.
        ConfigError, StoreError: as `open_stores`.
    """
    from softlabels.store.follow import follow_store  # what builders know of each other

    ((path, weight),) = parse_stores(config.store)
    store = follow_store(
        path,
        notice=notice,
        vocab=config.vocab,
        inputs=config.inputs,
        images=config.images,
        cache=config.cache_options,
    )
    check_rows(store)
    return [(store, weight)]


def plan_facts(
    config: RunConfig, stores: Sequence[tuple[Store, Any]], notice: Callable[[str], None]
) -> dict[str, Any]:
    """What `run.json` says of the plan: its digest, in a run by plan on one store that has one."""
    if config.order != PLANNED or len(stores) > 1:
        return {}
    return {"plan_digest": plan_digest(stores[0][0], notice=notice)}


def is_same_store(recorded: Mapping[str, Any], facts: Mapping[str, Any]) -> bool:
    """Whether what a run recorded of its store is true of one, which may have been finished since."""
    return recorded["store_digest"] in (facts["store_digest"], facts.get("plan_digest"))


def said_of_plan(recorded: Mapping[str, Any]) -> str:
    """What to know of a run that calls its store by the plan, after a sentence that it is another."""
    if not is_of_plan(recorded):
        return ""
    return (
        "; the first is the digest of a plan, since the store was not finished: give the store of that plan, with its "
        "plan.json"
    )


def settle_store(run: Path, digest: str) -> None:
    """Record the digest of a run's store, which may have been finished since; the run's lock is held."""
    facts = read_run_record(run)
    if facts["store_digest"] != digest:
        write_json(run / RUN_RECORD, facts | {"store_digest": digest})


def end_of(run: Path, stream: SoftTargetStream | MixedStream) -> str | None:
    """Look, at the end of a run, whether the store that it followed is finished, and record that.

    Returns:
        What to say of it; None: it was finished from the beginning.
    """
    if stream.store.finished:
        return None
    from softlabels.store.follow import FollowedStore

    store = stream.store
    assert isinstance(store, FollowedStore)
    waited = f"{store.path}: waited {duration(store.waited)} for its shards"
    try:
        finished = store.reopened()
        if finished is None:
            return f"{waited}; it is not finished yet, so run.json names it by its plan"
        learnt = stream.state_dict()["learnt"]
        Chain(finished).check(learnt, learnt["shards"])
    except (StoreError, RunError) as e:
        return f"{waited}; the run cannot be repeated from it: {e}"
    settle_store(run, finished.digest)
    return f"{waited}; it is finished by now, content digest {finished.digest[:12]}…"
