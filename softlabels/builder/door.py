"""The functions of the package, as `softlabels.build` and `softlabels.measure`; the commands call the same."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from softlabels.builder.config import BuildConfig, MeasureConfig
from softlabels.core.keywords import Reported, keywords
from softlabels.core.progress import Reporter, Silent
from softlabels.errors import ConfigError

if TYPE_CHECKING:
    from softlabels.format.certificate import Fidelity
    from softlabels.format.manifest import Manifest

__all__ = ["build", "measure"]


@dataclass(frozen=True, kw_only=True)
class _Build(Reported, BuildConfig):
    out: Path | str
    """Folder of the store, made if absent; or its address in a bucket, `s3://…` or `gs://…`."""
    shards: str | None = None
    """`I/N`, number I of N builders, from 0: the I-th part of the shards is taken first, then what is left."""
    engine: str | None = None
    """`ray`: Ray places the builders and starts them again when they die; None: this process is one."""
    builders: int | None = None
    """Builders on Ray; one for each GPU of the cluster if None."""


@keywords(_Build, BuildConfig)
def build(
    config: BuildConfig,
    *,
    out: Path | str,
    shards: str | None,
    engine: str | None,
    builders: int | None,
    progress: Reporter | None,
) -> Manifest:
    """Run a teacher over a corpus and write a store, or finish one that was begun.

    Returns:
        The store's manifest.

    Raises:
        ConfigError: a setting that cannot be; the message begins with the flag.
        PlanError: `out` holds a different job.
        CorpusError, TeacherError, StoreError: what, where and the way out.
    """
    from softlabels.builder.build import build
    from softlabels.making.share import Share

    share = None if shards is None else Share.parse(shards)
    if engine == "ray":
        from softlabels.builder.on_ray import build_on_ray

        if share is not None:
            raise ConfigError(
                "--shards numbers builders that --engine ray starts itself; give --builders"
            )
        return build_on_ray(config, out, report=progress or Silent(), builders=builders)
    if engine is not None:
        raise ConfigError(f"--engine {engine}: expected ray")
    if builders is not None:
        raise ConfigError(
            "--builders needs --engine ray; else start the command as often as you like"
        )
    return build(config, out, reporter=progress, share=share)


@dataclass(frozen=True, kw_only=True)
class _Measure(Reported, MeasureConfig):
    store: Path | str
    """Folder of the store."""
    write: bool = True
    """Put the record into the store's manifest and card."""
    key: Path | str | None = None
    """PEM file of the public key of whoever must have signed the store."""
    digest: str | None = None
    """Content digest that the store must have; its first 16 digits or more."""
    release: str | None = None
    """Name that the store must be signed with, and the oldest version to accept; needs `key`."""


@keywords(_Measure, MeasureConfig)
def measure(
    config: MeasureConfig,
    *,
    store: Path | str,
    write: bool,
    progress: Reporter | None,
    **demand: Any,
) -> Fidelity:
    """Run the teacher again on a sample of rows, and say how far the stored targets are from what it says.

    Returns:
        The record, with a 95 % interval for each figure.

    Raises:
        TeacherError, TokenizerError: not the teacher that made the store.
        StoreError: the store is damaged, not what was demanded, or cannot be written to.
    """
    from softlabels.builder.measure import measure
    from softlabels.store.demand import Demand

    return measure(store, config, write=write, reporter=progress, demand=Demand(**demand))
