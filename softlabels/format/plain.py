"""Profile `open`: a shard as plain columns, one record for each row of the store.

The kept ids of a row's positions follow one another in one list, and `kept` says how many belong to each
position: a ragged kept set needs no padding, and a one-level list decodes twice as fast as a list of
lists.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from softlabels.codecs import PlainCodec, make_codec
from softlabels.codecs.floating import stored_logp
from softlabels.core.rows import InputRow, NamedRow
from softlabels.core.targets import SoftTargets, gaps_from_logp
from softlabels.domains import DOMAINS
from softlabels.errors import ConfigError, IntegrityError, TargetError
from softlabels.format.columns import Column, Expected
from softlabels.format.hidden import hidden_columns, hidden_expected, hidden_of_columns
from softlabels.format.identity import Identity
from softlabels.format.shard import Shard, rows_alone
from softlabels.format.summaries import summary_columns, summary_expected, summary_of_columns


def log_odds_column(temperature: float) -> str:
    """`log_odds_T2`, `log_odds_T0_5`: the shortest decimal, with `_` for the point."""
    text = repr(float(temperature)).removesuffix(".0")
    return "log_odds_T" + text.replace(".", "_")


def _codec(identity: Identity) -> PlainCodec:
    codec = make_codec(identity.encoding.values)
    if not codec.plain:
        raise ConfigError(
            f"--values {codec.id}: the profile 'open' holds float16 or float32; use --profile packed"
        )
    return cast(PlainCodec, codec)


def columns_of(shard: Shard, identity: Identity) -> dict[str, Column]:
    """The columns of a shard.

    Raises:
        TargetError: a value that the codec cannot hold, or 2^31 ids or more.
    """
    codec = _codec(identity)
    rows, t = shard.rows, shard.targets
    offsets = shard.offsets
    kept = t.kept
    counts = kept.sum(axis=1).astype(np.int32)
    id_offsets = np.concatenate([[0], np.cumsum(counts, dtype=np.int64)])[offsets]
    if id_offsets[-1] >= 2**31:
        raise TargetError(
            f"a shard of {id_offsets[-1]} kept ids is too large for one file (limit 2**31); lower --shard-rows"
        )
    domain = DOMAINS.load(identity.domain)
    width = domain.digest_bytes
    digests = np.frombuffer(b"".join(r.digest()[:width] for r in rows), np.uint8)
    logp = stored_logp(t) if shard.logp is None else shard.logp
    columns = {
        "row": Column(
            values=np.arange(shard.start_row, shard.start_row + len(rows), dtype=np.int64)
        ),
        "input_digest": Column(values=digests.reshape(len(rows), width)),
        **(domain.columns(rows) if identity.encoding.has_inputs else {}),
        "kept": Column(values=counts, offsets=offsets),
        "ids": Column(values=t.ids[kept].astype(np.int32, copy=False), offsets=id_offsets),
        "logp": Column(values=codec.encode(logp[kept]), offsets=id_offsets),
    }
    for i, temperature in enumerate(t.temperatures):
        column = Column(values=codec.encode(t.log_odds[:, i]), offsets=offsets)
        columns[log_odds_column(temperature)] = column
    return columns | hidden_columns(t, identity, offsets) | summary_columns(t, identity, offsets)


def expected_columns(
    identity: Identity, rows: int | None, positions: int | None, *, targets: bool = True
) -> dict[str, Expected]:
    """What the columns must be, given how many rows and positions there are (None: not known).

    Without `targets` those of rows and summaries only.
    """
    values = _codec(identity).encode(np.empty(0, np.float32)).dtype
    domain = DOMAINS.load(identity.domain)
    entries = None if positions is None else positions * identity.targets.k
    int32, int64 = np.dtype(np.int32), np.dtype(np.int64)
    base = {
        "row": Expected(dtype=int64, listed=False, most=rows),
        "input_digest": Expected(
            dtype=np.dtype(np.uint8), listed=False, width=domain.digest_bytes, most=rows
        ),
        **(domain.expected(identity, rows) if identity.encoding.has_inputs else {}),
        "kept": Expected(dtype=int32, most=positions),
    }
    summary = summary_expected(identity, positions, top=targets)
    if not targets:
        return base | summary
    kept = {
        "ids": Expected(dtype=int32, most=entries),
        "logp": Expected(dtype=values, most=entries),
    }
    odds = {
        log_odds_column(t): Expected(dtype=values, most=positions)
        for t in identity.targets.temperatures
    }
    return base | kept | odds | hidden_expected(identity, positions) | summary


def shard_of(
    columns: dict[str, Column],
    identity: Identity,
    *,
    start_row: int,
    where: str,
    counts_from: int | None = None,
    keep_logp: bool = False,
    targets: bool = True,
) -> Shard:
    """The shard of some columns, which are of the expected types but may hold anything.

    Args:
        columns: by name.
        identity: of the store.
        start_row: number in the store of the first row.
        where: for messages.
        counts_from: its number in the file, if that is another.
        keep_logp: whether the shard keeps what the column `logp` holds.
        targets: whether they are decoded.

    Raises:
        IntegrityError: lengths that do not add up, a row whose inputs are not those of its digest.
        TargetError: an id out of range, NaN, an empty kept set.
    """
    grid = tuple(identity.targets.temperatures)
    codec = _codec(identity)
    counts_from = start_row if counts_from is None else counts_from
    found = _rows(columns, identity, start_row, counts_from, where)
    of_row = np.array([r.n for r in found], np.int64)
    n = int(of_row.sum())
    starts = np.concatenate([[0], np.cumsum(of_row)])
    for name in ("kept", *(map(log_odds_column, grid) if targets else ())):
        entries = np.diff(_offsets(columns[name]))
        wrong = np.flatnonzero(entries != of_row)
        if len(wrong):
            raise IntegrityError(
                f"{where}: row {start_row + wrong[0]} has {of_row[wrong[0]]} positions but {entries[wrong[0]]} entries "
                f"of {name}"
            )
    counts = columns["kept"].values
    k = identity.targets.k
    if n and not 0 <= counts.min() <= counts.max() <= k:
        raise IntegrityError(
            f"{where}: a position keeps {counts.max()} ids, the manifest says at most {k}"
        )
    if not targets:
        summary = summary_of_columns(columns, identity, None, counts, starts, where=where)
        return rows_alone(start_row, found, identity, summary)
    total = np.concatenate([[0], np.cumsum(counts, dtype=np.int64)])[starts]
    wrong = np.flatnonzero(
        (total != _offsets(columns["ids"])) | (total != _offsets(columns["logp"]))
    )
    if len(wrong):
        raise IntegrityError(
            f"{where}: row {start_row + max(int(wrong[0]) - 1, 0)} has ids, logp and kept of different lengths"
        )
    check_hard(counts, identity, where)
    ids, logp = _rectangle(counts, columns["ids"].values, codec.decode(columns["logp"].values))
    gaps = gaps_from_logp(logp)
    gaps[counts == 0] = np.inf
    odds = [codec.decode(columns[log_odds_column(t)].values) for t in grid]
    kept = SoftTargets(
        ids=ids,
        gaps=gaps,
        log_odds=np.stack(odds, axis=1),
        temperatures=grid,
        vocab_size=identity.teacher.vocab_size,
        estimator=identity.targets.estimator,
        declared=identity.targets.declared,
        hidden=hidden_of_columns(columns, identity, starts, where=where),
        summary=summary_of_columns(columns, identity, ids, counts, starts, where=where),
    )
    kept.validate(where=where, unique=False)
    return Shard(start_row=start_row, rows=found, targets=kept, logp=logp if keep_logp else None)


def _offsets(column: Column) -> npt.NDArray[np.int64]:
    assert column.offsets is not None
    return column.offsets


def _rows(
    columns: dict[str, Column], identity: Identity, start_row: int, counts_from: int, where: str
) -> Sequence[InputRow]:
    numbers = columns["row"].values
    if not np.array_equal(numbers, np.arange(counts_from, counts_from + len(numbers))):
        raise IntegrityError(
            f"{where}: its rows are not {counts_from} to {counts_from + len(numbers) - 1}"
        )
    if not identity.encoding.has_inputs:
        counts = np.diff(_offsets(columns["kept"]))
        digests = columns["input_digest"].values
        return [NamedRow.of(digests[r].tobytes(), int(n)) for r, n in enumerate(counts)]
    rows = DOMAINS.load(identity.domain).rows_of(columns, identity, where=where)
    check_inputs(rows, columns["input_digest"].values, identity, start_row=start_row, where=where)
    return rows


def check_inputs(
    rows: Sequence[InputRow],
    digests: npt.NDArray[np.uint8],
    identity: Identity,
    *,
    start_row: int,
    where: str,
) -> None:
    """Refuse rows that contradict themselves or their digests `[R, W] uint8`, of which a file may hold a part only.

    Raises:
        IntegrityError: names the row.
    """
    domain = DOMAINS.load(identity.domain)
    for r, row in enumerate(rows):
        domain.check(row, identity, where=f"{where}: row {start_row + r}")
        if row.digest()[: digests.shape[1]] != digests[r].tobytes():
            raise IntegrityError(
                f"{where}: row {start_row + r} does not hold the inputs that its digest names"
            )


def check_hard(counts: npt.NDArray[np.integer[Any]], identity: Identity, where: str) -> None:
    """Refuse positions that keep nothing, unless the manifest says that some are hard-label only.

    Raises:
        TargetError: names the first.
    """
    if len(counts) and counts.min() == 0 and identity.targets.positions is None:
        raise TargetError(
            f"{where}: position {int((counts == 0).argmax())} has an empty kept set, but the manifest says that every "
            "position has a soft target (it names no `positions`); copy the store again from its source"
        )


def _rectangle(
    counts: npt.NDArray[np.int32], ids: npt.NDArray[np.int32], logp: npt.NDArray[np.float32]
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.float32]]:
    """Ragged to `[N, K]`; short rows repeat their first id, marked not kept."""
    n = len(counts)
    k = int(counts.max(initial=0))
    if n == 0 or int(counts.min()) == k:
        return ids.reshape(n, k), logp.reshape(n, k)
    kept = np.arange(k) < counts[:, None]
    wide_ids = np.zeros((n, k), np.int32)
    wide_ids[kept] = ids
    wide_ids = np.where(kept, wide_ids, wide_ids[:, :1])
    wide_logp = np.full((n, k), -np.inf, np.float32)
    wide_logp[kept] = logp
    return wide_ids, wide_logp
