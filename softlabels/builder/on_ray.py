"""A build by several builders that Ray places, and starts again when they die.

Each builder is an actor that runs what `softlabels build` runs, in the same store, under claims of its own. So Ray
knows nothing of shards, and nothing is lost with an actor, with the cluster, or with the process that began it: the
same command goes on. The cluster is the one of RAY_ADDRESS, or else one that is begun on this host.

The price: an actor loads its teacher for itself, and what all builders say at once is left to Ray's log.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from softlabels.builder.build import build
from softlabels.builder.config import BuildConfig
from softlabels.core.progress import Reporter
from softlabels.errors import (
    ConfigError,
    MissingExtraError,
    SoftLabelsError,
    StoreError,
    first_line,
)
from softlabels.format.manifest import Manifest
from softlabels.making.status import status_of

RESTARTS = 100
"""How often one actor is started again: a spot machine is, and what dies of itself must come to an end."""
LOOK = 2.0
"""Seconds between two looks at how far the store is."""
LOOK_IN_BUCKET = 30.0
"""The same, where each is some requests."""


def build_on_ray(
    config: BuildConfig,
    out: Path | str,
    *,
    report: Reporter,
    builders: int | None = None,
    work: Callable[[BuildConfig, Path | str], Manifest] = build,
) -> Manifest:
    """Build a store with actors of a Ray cluster, or finish one that was begun.

    Args:
        config: of the build; its paths, and `out`, must mean the same on every host of the cluster.
        out: folder of the store, or its address in a bucket.
        report: hears how many shards are done.
        builders: actors; one for each GPU of the cluster if None, and one where there is none.
        work: what each actor does.

    Raises:
        MissingExtraError: Ray is not installed.
        ConfigError: there is no such number of builders.
        StoreError: actors died too often, or the cluster is out of reach.
        SoftLabelsError: as `build`, of the first builder that fails.
    """
    if builders is not None and builders < 1:
        raise ConfigError(f"--builders {builders}: expected 1 or more")
    try:
        import ray
    except ImportError as e:
        raise MissingExtraError("Ray", "ray", "--engine ray") from e

    ours = not ray.is_initialized()
    if ours:
        _join(ray)
    try:
        gpus = int(ray.cluster_resources().get("GPU", 0))
        actor = ray.remote(
            max_restarts=RESTARTS, max_task_retries=RESTARTS, num_cpus=1, num_gpus=int(gpus > 0)
        )(_Builder)
        crew = [actor.remote(work) for _ in range(builders or max(1, gpus))]
        report.notice(f"{len(crew)} builder{'s'[: len(crew) != 1]} on Ray")
        out = out if "://" in str(out) else Path(out).absolute()
        try:
            here = str(Path.cwd())
            return _first(ray, [one.build.remote(config, out, here) for one in crew], out, report)
        finally:
            for one in crew:
                ray.kill(one)
    finally:
        if ours:
            ray.shutdown()


class _Builder:
    """An actor."""

    def __init__(self, work: Callable[[BuildConfig, Path | str], Manifest]) -> None:
        self._work = work

    def build(self, config: BuildConfig, out: Path | str, folder: str) -> Manifest:
        """Build, whatever others do.

        Args:
            folder: the one that relative paths begin at, if this host has it.
        """
        with suppress(OSError):
            os.chdir(folder)
        return self._work(config, out)


def _join(ray: Any) -> None:
    """Join the cluster, or begin one."""
    try:
        ray.init(logging_level="ERROR", log_to_driver=False)
    except (ConnectionError, RuntimeError, ValueError) as e:
        raise StoreError(
            f"no Ray cluster: {first_line(e)}; set RAY_ADDRESS to a cluster's address, or unset it to begin one here"
        ) from e


def _first(ray: Any, builds: list[Any], out: Path | str, report: Reporter) -> Manifest:
    """What the first builder gives that sees the store finished, or its error."""
    done, every = 0, LOOK if isinstance(out, Path) else LOOK_IN_BUCKET
    while True:
        ready, _ = ray.wait(builds, timeout=every)
        done = _tell(out, done, report)
        if not ready:
            continue
        try:
            manifest: Manifest = ray.get(ready[0])
        except ray.exceptions.RayTaskError as e:
            if isinstance(e.cause, SoftLabelsError):
                raise e.cause from e
            raise
        except ray.exceptions.RayActorError as e:
            raise StoreError(
                f"{out}: a builder on Ray died {RESTARTS} times or could not be started ({first_line(e)}); see Ray's "
                "logs, then run the same command again: what was finished is kept"
            ) from e
        return manifest


def _tell(out: Path | str, done: int, report: Reporter) -> int:
    """Report the shards that were recorded since; returns how many are."""
    try:
        status = status_of(out)
    except StoreError:
        return done  # nobody has begun, or it is out of reach for a while
    if not status.planned:
        return done
    if not done:
        report.stage("build", status.shards, "shards")
    report.advance(status.shards_done - done)
    return status.shards_done
