"""Hidden states in a shard: columns of the profile `open`, streams of the profile `packed`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from softlabels.codecs.hidden import HIDDEN_CODECS, HiddenCodec
from softlabels.codecs.streams import Stream, plain, plain_numbers, stream_of
from softlabels.core.targets import SoftTargets
from softlabels.errors import FormatError, IntegrityError, TargetError
from softlabels.format.columns import Column, Expected
from softlabels.format.identity import HiddenRecord, Identity

Float32 = npt.NDArray[np.float32]
NUMBERS, SCALES = "hidden", "hidden_scale"


def _codec(record: HiddenRecord) -> HiddenCodec:
    if record.values not in HIDDEN_CODECS:
        raise FormatError(
            f"hidden states are held as {record.values!r}, known are {', '.join(HIDDEN_CODECS)}; upgrade softlabels"
        )
    return HIDDEN_CODECS[record.values]


def _given(targets: SoftTargets, record: HiddenRecord) -> Float32:
    hidden = targets.hidden
    if hidden is None or hidden.shape[1] != record.width:
        found = "none" if hidden is None else f"some of width {hidden.shape[1]}"
        raise TargetError(
            f"the store holds hidden states of width {record.width}, and the targets have {found}"
        )
    if not np.isfinite(hidden).all():
        raise TargetError("a hidden state is not finite; try --dtype float32")
    return hidden


def hidden_columns(
    targets: SoftTargets, identity: Identity, offsets: npt.NDArray[np.int64]
) -> dict[str, Column]:
    """The columns of a shard whose rows have positions `offsets [R + 1]`; none if the store has no hidden states."""
    if (record := identity.hidden) is None:
        return {}
    codec = _codec(record)
    numbers, scales = codec.encode(_given(targets, record))
    columns = {NUMBERS: Column(values=numbers.reshape(-1), offsets=offsets * record.width)}
    return columns | ({SCALES: Column(values=scales, offsets=offsets)} if codec.scaled else {})


def hidden_expected(identity: Identity, positions: int | None) -> dict[str, Expected]:
    """What these columns must be."""
    if (record := identity.hidden) is None:
        return {}
    codec = _codec(record)
    entries = None if positions is None else positions * record.width
    expected = {NUMBERS: Expected(dtype=codec.dtype, most=entries)}
    scale = Expected(dtype=np.dtype(np.float32), most=positions)
    return expected | ({SCALES: scale} if codec.scaled else {})


def hidden_of_columns(
    columns: Mapping[str, Column],
    identity: Identity,
    offsets: npt.NDArray[np.int64],
    *,
    where: str,
) -> Float32 | None:
    """`[N, D]` of columns that may hold anything, or `IntegrityError`; None if the store has no hidden states."""
    if (record := identity.hidden) is None:
        return None
    codec = _codec(record)
    for name, each in ((NUMBERS, record.width), (SCALES, 1)):
        if name == SCALES and not codec.scaled:
            continue
        found = columns[name].offsets
        if found is None or not np.array_equal(found, offsets * each):
            raise IntegrityError(
                f"{where}: column {name!r} has not {each} entries for each position of each row"
            )
    numbers = columns[NUMBERS].values.reshape(-1, record.width)
    return _finite(codec.decode(numbers, columns[SCALES].values if codec.scaled else None), where)


def hidden_streams(targets: SoftTargets, identity: Identity) -> dict[str, Stream]:
    """The streams of a shard."""
    if (record := identity.hidden) is None:
        return {}
    codec = _codec(record)
    numbers, scales = codec.encode(_given(targets, record))
    return {NUMBERS: plain(numbers.reshape(-1))} | ({SCALES: plain(scales)} if codec.scaled else {})


def hidden_of_streams(
    streams: Mapping[str, Stream], identity: Identity, n: int, *, where: str
) -> Float32 | None:
    """`[N, D]` of streams that may hold anything, or `IntegrityError`; None if the store has no hidden states."""
    if (record := identity.hidden) is None:
        return None
    codec = _codec(record)

    def held(name: str, dtype: np.dtype[Any], entries: int) -> npt.NDArray[Any]:
        found = stream_of(streams, name, where)
        return plain_numbers(found, dtype, entries, where=f"{where}: stream {name!r}")

    numbers = held(NUMBERS, codec.dtype, n * record.width).reshape(n, record.width)
    scales = held(SCALES, np.dtype(np.float32), n).astype(np.float32) if codec.scaled else None
    return _finite(codec.decode(numbers, scales), where)


def _finite(hidden: Float32, where: str) -> Float32:
    if not np.isfinite(hidden).all():
        raise IntegrityError(f"{where}: a hidden state is not finite")
    return hidden
