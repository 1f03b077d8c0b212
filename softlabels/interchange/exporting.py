"""Writing a store's targets for other tools: one file, whole or not at all.

`axolotl`: its prepared rows (`axolotl.py`). `topk`: one record for each position. `llama-kld`: llama.cpp's base for its
KL divergences (`llama_kld.py`). All are of T = 1. A sampled store is
refused: its weights are no log-probabilities, and what reads them would take an absent id for an unlikely one.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from softlabels.core.durable import appearing, forget_attempts
from softlabels.core.progress import Reporter, Silent
from softlabels.core.rows import Row
from softlabels.domains import DOMAINS
from softlabels.errors import ConfigError, PairingError
from softlabels.format.shard import StoredRow
from softlabels.interchange import EXPORTS, axolotl, llama_kld
from softlabels.store.demand import Demand
from softlabels.store.reader import Store, open_store

BATCH = 64
TOPK = pa.schema(
    {
        "row": pa.int64(),
        "token": pa.int32(),
        "label": pa.int32(),
        "ids": pa.list_(pa.int32()),
        "logp": pa.list_(pa.float32()),
        "tail": pa.float32(),
    }
)


def export_store(
    path: Path | str,
    kind: str,
    out: Path,
    *,
    reporter: Reporter | None = None,
    demand: Demand | None = None,
) -> int:
    """Write one file; returns its number of records.

    Args:
        path: the store, which must be what is demanded.
        kind: a key of `EXPORTS`.

    Raises:
        ConfigError: an unknown kind, or `out` exists.
        PairingError: the store has nothing that the kind could hold.
        StoreError: the store is damaged.
    """
    if kind not in EXPORTS:
        raise ConfigError(f"{kind!r}: expected one of {', '.join(EXPORTS)}")
    if out.exists():
        forget_attempts(out)
        raise ConfigError(f"--out {out}: exists already; choose another name, or remove it")
    if not out.parent.is_dir():
        raise ConfigError(f"--out {out}: its folder does not exist; make it first")
    report = reporter or Silent()
    store = open_store(path, **asdict(demand or Demand()))
    _check(store, kind)
    if kind == "llama-kld":
        return llama_kld.write(store, out, report)
    make = axolotl.rows_of if kind == "axolotl" else _positions_of
    schema = axolotl.SCHEMA if kind == "axolotl" else TOPK
    report.stage("export", len(store), "rows")
    records = 0
    with (
        appearing(out) as temporary,
        pq.ParquetWriter(temporary, schema, compression="zstd") as writer,
    ):
        batch: list[dict[str, Any]] = []
        for stored in store:
            batch += make(stored)
            report.advance(1)
            if len(batch) >= BATCH or stored.index == len(store) - 1:
                writer.write_table(pa.Table.from_pylist(batch, schema=schema))
                records, batch = records + len(batch), []
    return records


def _check(store: Store, kind: str) -> None:
    identity = store.manifest.identity
    if not DOMAINS.load(identity.domain).chained:
        raise PairingError(
            f"{store.path}: is of the domain {identity.domain!r}; {kind} holds next-token distributions (causal-lm)"
        )
    if identity.targets.keeps.sample:
        raise PairingError(
            f"{store.path}: holds random samples ({identity.targets.estimator!r}), whose weights are no "
            f"log-probabilities; {kind} needs a store of topk, topp or dense"
        )
    if 1.0 not in identity.targets.temperatures:
        raise PairingError(f"{store.path}: its grid lacks T = 1, at which {kind} holds its numbers")


def _positions_of(stored: StoredRow) -> Iterator[dict[str, Any]]:
    row, targets = stored.row, stored.targets
    assert isinstance(row, Row)
    logp, tail, kept = targets.logp, targets.tail(1.0), targets.kept
    for i in range(targets.n):
        if kept[i].any():  # else hard label only
            yield {
                "row": stored.index,
                "token": int(row.positions[i]),
                "label": int(row.labels[i]),
                "ids": targets.ids[i][kept[i]].tolist(),
                "logp": logp[i][kept[i]].tolist(),
                "tail": float(tail[i]),
            }
