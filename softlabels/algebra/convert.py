"""`convert`: the same rows and targets in another profile, container or type of values."""

from __future__ import annotations

from pathlib import Path

import msgspec

from softlabels.algebra.recode import recoded
from softlabels.algebra.rewrite import rewrite, survey
from softlabels.algebra.sources import files_of, open_source
from softlabels.errors import ConfigError
from softlabels.progress import Reporter, Silent
from softlabels.store.manifest import Manifest

__all__ = ["convert"]


def convert(
    source: Path | str,
    out: Path | str,
    *,
    profile: str | None = None,
    container: str | None = None,
    values: str | None = None,
    reporter: Reporter | None = None,
) -> Manifest:
    """Write a store in another encoding.

    Args:
        source: the store.
        out: the new store's folder; made if absent.
        profile: `open` or `packed`; None: as it is. Packed shards are coded without a dictionary.
        container: `parquet` or `zarr`; None: as it is.
        values: codec of the stored numbers; None: as it is.
        reporter: told of progress.

    Raises:
        ConfigError: an unknown name, or nothing to change.
        TargetError: a value that the new codec cannot hold.
        PlanError: `out` holds something else.
        StoreError: the source is damaged; the disk is full, …
    """
    report, out = reporter or Silent(), Path(out)
    store = open_source(Path(source), out)
    old = store.manifest.identity
    encoding = recoded(old, profile=profile, container=container, values=values)
    parts = ("profile", "container", "values")
    if all(getattr(encoding, p) == getattr(old.encoding, p) for p in parts):
        raise ConfigError(
            f"convert: {store.path} is {encoding.profile}, {encoding.container}, {encoding.values} already; say what "
            "to change: --profile, --container or --values"
        )
    shard_rows = max(s.rows for s in store.manifest.shards)
    return rewrite(
        survey(store, report, None, shard_rows=shard_rows),
        out,
        msgspec.structs.replace(old, encoding=encoding),
        "convert",
        {p: getattr(encoding, p) for p in parts},
        report,
        shard_rows=shard_rows,
        files=files_of(store, "tokenizer"),
    )
