"""axolotl's prepared rows: `target_token_ids`, `target_logprobs` and `target_mask`, `[S, K]` each, beside `input_ids`.

Entry t belongs to the logits of token t: it predicts token t + 1, and its loss does not shift it. `labels` is
-100 where a token is not to be learnt. Both directions are here. What a row of axolotl cannot say: several
documents in one row (an export makes a row of each), the tail, and any temperature but the one of its numbers.
Its preparation renormalises the kept ids, which destroys the tail: import rows as the teacher gave them.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa

from softlabels.core.rows import Row
from softlabels.errors import CorpusError
from softlabels.format.shard import StoredRow
from softlabels.interchange import ForeignRow
from softlabels.interchange.tables import matrix, records, vector

IGNORED = -100
FIELDS = ("input_ids", "target_token_ids", "target_logprobs", "target_mask")
SCHEMA = pa.schema(
    {
        "input_ids": pa.list_(pa.int32()),
        "attention_mask": pa.list_(pa.int8()),
        "labels": pa.list_(pa.int32()),
        "target_token_ids": pa.list_(pa.list_(pa.int32())),
        "target_logprobs": pa.list_(pa.list_(pa.float32())),
        "target_mask": pa.list_(pa.list_(pa.int8())),
    }
)


def read(path: Path) -> Iterator[ForeignRow]:
    """Rows of Parquet files or JSON lines."""
    for where, record in records(path, FIELDS):
        input_ids = vector(record["input_ids"], where, "input_ids")
        s = len(input_ids)
        ids, logp, mask = (matrix(record[f], where, f) for f in FIELDS[1:])
        if not len(ids) == len(logp) == len(mask) or len(ids) not in (s, s - 1):
            raise CorpusError(
                f"{where}: {len(ids)} target_token_ids, {len(logp)} target_logprobs and {len(mask)} entries of "
                f"target_mask for {s} input_ids; expected {s} of each"
            )
        if not ids.shape == logp.shape == mask.shape:
            raise CorpusError(
                f"{where}: targets are {ids.shape}, {logp.shape} and {mask.shape}; expected one shape"
            )
        kept = mask != 0
        if (kept.any(1) != kept.all(1)).any():
            raise CorpusError(
                f"{where}: target_mask marks some ids of a position only; expected all or none"
            )
        label_mask = np.zeros(s, np.bool_)
        label_mask[: len(ids)] = kept.any(1)
        label_mask[-1:] = False  # nothing follows the last token
        if record.get("labels") is not None:
            labels = vector(record["labels"], where, "labels")
            if len(labels) != s:
                raise CorpusError(f"{where}: {len(labels)} labels for {s} input_ids")
            label_mask[:-1] &= labels[1:] != IGNORED
        at = np.flatnonzero(label_mask)
        yield ForeignRow(
            where=where,
            input_ids=input_ids.astype(np.int32),
            label_mask=label_mask,
            ids=ids[at].astype(np.int64),
            logp=logp[at].astype(np.float32),
        )


def rows_of(stored: StoredRow) -> Iterator[dict[str, list[object]]]:
    """A store's row as rows of axolotl: one for each document in it that has a position."""
    row, targets = stored.row, stored.targets
    assert isinstance(row, Row)
    k = targets.k
    ids = np.tile(np.arange(k, dtype=np.int32), (len(row.input_ids), 1))
    logp = np.full(ids.shape, -np.inf, np.float32)
    mask = np.zeros(ids.shape, np.int8)
    at = row.positions
    ids[at] = targets.ids
    logp[at] = targets.logp
    mask[at] = targets.kept
    labels = np.full(len(row.input_ids), IGNORED, np.int32)
    labels[at + 1] = row.labels
    begin = 0
    for length in row.segment_lengths.tolist():
        part, begin = slice(begin, begin + length), begin + length
        if row.label_mask[part].any():
            yield {
                "input_ids": row.input_ids[part].tolist(),
                "attention_mask": [1] * length,
                "labels": labels[part].tolist(),
                "target_token_ids": ids[part].tolist(),
                "target_logprobs": logp[part].tolist(),
                "target_mask": mask[part].tolist(),
            }
