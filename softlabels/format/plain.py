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
from softlabels.format.columns import Column, Expected, offsets_of
from softlabels.format.hidden import hidden_columns, hidden_expected, hidden_of_columns
from softlabels.format.identity import Identity
from softlabels.format.shard import Reading, Shard, rows_alone
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
    """The columns of a shard; `TargetError` for a value that the codec cannot hold, or 2^31 ids or more."""
    codec = _codec(identity)
    rows, t = shard.rows, shard.targets
    offsets = shard.offsets
    kept = t.kept
    counts = kept.sum(axis=1).astype(np.int32)
    id_offsets = offsets_of(counts)[offsets]
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


def expected_columns(reading: Reading) -> dict[str, Expected]:
    """What the columns must be that are wanted."""
    identity, rows, positions = reading.identity, reading.rows, reading.positions
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
    summary = summary_expected(identity, positions, top=reading.targets)
    if not reading.targets:
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


def shard_of(columns: dict[str, Column], reading: Reading) -> Shard:
    """The shard of some columns, which are of the expected types but may hold anything; raises as `decode_shard`."""
    identity, where, start_row = reading.identity, reading.where, reading.start_row
    grid = tuple(identity.targets.temperatures)
    codec = _codec(identity)
    found = _rows(columns, reading)
    of_row = np.array([r.n for r in found], np.int64)
    n = int(of_row.sum())
    starts = offsets_of(of_row)
    for name in ("kept", *(map(log_odds_column, grid) if reading.targets else ())):
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
    if not reading.targets:
        summary = summary_of_columns(columns, identity, None, counts, starts, where=where)
        return rows_alone(start_row, found, identity, summary)
    total = offsets_of(counts)[starts]
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
    held = logp if reading.keep_logp else None
    return Shard(start_row=start_row, rows=found, targets=kept, logp=held)


def _offsets(column: Column) -> npt.NDArray[np.int64]:
    assert column.offsets is not None
    return column.offsets


def _rows(columns: dict[str, Column], reading: Reading) -> Sequence[InputRow]:
    identity, where = reading.identity, reading.where
    first = reading.start_row if reading.first_row is None else reading.first_row
    numbers = columns["row"].values
    if not np.array_equal(numbers, np.arange(first, first + len(numbers))):
        raise IntegrityError(f"{where}: its rows are not {first} to {first + len(numbers) - 1}")
    if not identity.encoding.has_inputs:
        counts = np.diff(_offsets(columns["kept"]))
        digests = columns["input_digest"].values
        return [NamedRow.of(digests[r].tobytes(), int(n)) for r, n in enumerate(counts)]
    rows = DOMAINS.load(identity.domain).rows_of(columns, identity, where=where)
    check_inputs(rows, columns["input_digest"].values, reading)
    return rows


def check_inputs(
    rows: Sequence[InputRow], digests: npt.NDArray[np.uint8], reading: Reading
) -> None:
    """Refuse rows that contradict themselves or their digests `[R, W] uint8`, of which a file may hold a part only.

    Raises:
        IntegrityError: names the row.
    """
    domain = DOMAINS.load(reading.identity.domain)
    for r, row in enumerate(rows):
        where = f"{reading.where}: row {reading.start_row + r}"
        domain.check(row, reading.identity, where=where)
        if row.digest()[: digests.shape[1]] != digests[r].tobytes():
            raise IntegrityError(f"{where} does not hold the inputs that its digest names")


def check_hard(counts: npt.NDArray[np.integer[Any]], identity: Identity, where: str) -> None:
    """Refuse (`TargetError`) positions that keep nothing, unless the manifest says that some are hard-label only."""
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
