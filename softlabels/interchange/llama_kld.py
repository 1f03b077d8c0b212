"""llama.cpp's files of a base model's log-probabilities, as `llama-perplexity --kl-divergence-base` writes and reads.

Little-endian, without padding between the parts:

    8 bytes `_logits_`; int32 S, V and C: tokens of a chunk, ids of the vocabulary, chunks
    int32 [C, S] tokens, as the text was tokenised
    for each chunk, for each of its tokens S // 2 to S - 2:
        float32 step, float32 least, uint16 [V (, 1 if V is odd)]:  log p(i) = step * u(i) + least

The first half of a chunk is context only. A logit more than 16 below the largest is held as 16 below it, so `step` is
at most 16 / 65535, and a kept value is off by at most half of that, 0.00012 nats. What was clipped weighs too much: of
V ids e^-16 of the largest's probability each, at most 0.6 % of it at V = 50,000. So the tail is taken for what the k
likeliest leave of 1, never for the sum of what the file says of the others.

Where a model wants a token at the beginning of each text (GGUF `tokenizer.ggml.add_bos_token`), llama.cpp reads it in
the place of each chunk's first token, and the file does not say so: name it, `llama-kld?bos=1`.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt

from softlabels.core.durable import appearing
from softlabels.core.progress import Reporter
from softlabels.core.rows import Row
from softlabels.errors import ConfigError, CorpusError, PairingError
from softlabels.format.shard import StoredRow
from softlabels.interchange import ForeignRow
from softlabels.store.reader import Store

MAGIC = b"_logits_"
STEPS = 65535
CLIP = 16.0
"""Nats below the largest."""
AT_ONCE = 2**26
"""Bytes of log-probabilities that are read at a time, about."""
UNITS = "<u2"


def read(path: Path, k: int = 64, bos: int | None = None) -> Iterator[ForeignRow]:
    """One row for each chunk, with the k likeliest ids of each position.

    Args:
        path: the file.
        k: ids to keep.
        bos: the id that was read in the place of each chunk's first token; None: none was.

    Raises:
        CorpusError: not such a file, torn, or with numbers that no log-probabilities are.
        ConfigError: a k that is none.
    """
    if k < 1:
        raise ConfigError(f"llama-kld?k={k}: expected at least 1")
    try:
        with path.open("rb") as file:
            yield from _rows(file, path, k, bos)
    except OSError as e:
        raise CorpusError(f"{path}: cannot be read ({e.strerror})") from e


def _rows(file: BinaryIO, path: Path, k: int, bos: int | None) -> Iterator[ForeignRow]:
    s, v, chunks = _header(file, path)
    tokens = np.frombuffer(file.read(4 * s * chunks), "<i4").reshape(chunks, s)
    first, n = s // 2, s - 1 - s // 2
    label_mask = np.zeros(s, np.bool_)
    label_mask[first : first + n] = True
    for c in range(chunks):
        where = f"{path}: chunk {c}"
        input_ids = tokens[c].astype(np.int32)
        if bos is not None:
            input_ids[0] = bos
        labels = tokens[c, first + 1 : first + 1 + n].astype(np.int64)
        if labels.size and (labels.min() < 0 or labels.max() >= v):
            raise CorpusError(f"{where}: holds a token outside 0..{v - 1}; altered?")
        ids, logp, label_logp = _positions(file, labels, v, min(k, v), where)
        yield ForeignRow(
            where=where,
            input_ids=input_ids,
            label_mask=label_mask,
            ids=ids,
            logp=logp,
            label_logp=label_logp,
        )


def _header(file: BinaryIO, path: Path) -> tuple[int, int, int]:
    """S, V and C, of which the file has the length.

    Raises:
        CorpusError: it has another, or is no such file.
    """
    head = file.read(20)
    if len(head) < 20 or head[:8] != MAGIC:
        raise CorpusError(
            f"{path}: does not begin with {MAGIC.decode()}; expected what `llama-perplexity --kl-divergence-base FILE` "
            "writes"
        )
    s, v, chunks = np.frombuffer(head[8:], "<i4").tolist()
    if not (2 <= s <= 2**24 and 2 <= v < 2**31 and chunks >= 1):
        raise CorpusError(f"{path}: says {chunks} chunks of {s} tokens, {v} ids: impossible")
    size, expected = path.stat().st_size, _size(s, v, chunks)
    if size != expected:
        raise CorpusError(
            f"{path}: {size:,} bytes, expected {expected:,} for {chunks:,} chunks of {s:,} tokens and {v:,} ids: torn; "
            "was the run that wrote it stopped?"
        )
    return s, v, chunks


def _size(s: int, v: int, chunks: int) -> int:
    return 20 + chunks * (4 * s + (s - 1 - s // 2) * _width(v))


def _width(v: int) -> int:
    """Bytes of a position."""
    return 8 + 2 * (v + v % 2)


def _positions(
    file: BinaryIO, labels: npt.NDArray[np.int64], v: int, k: int, where: str
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """The likeliest ids of a chunk's positions, the first the likeliest, and their log-probabilities: `[n, k]` each.

    The third is the log-probability of each of `labels [n]`.
    """
    n = len(labels)
    label_logp = np.zeros(n, np.float32)
    ids, logp = np.zeros((n, k), np.int64), np.zeros((n, k), np.float32)
    step = max(1, AT_ONCE // _width(v))
    for begin in range(0, n, step):
        m = min(step, n - begin)
        data = np.frombuffer(file.read(m * _width(v)), np.uint8).reshape(m, _width(v))
        scale, least = data[:, :8].copy().view("<f4").T
        if not (np.isfinite(scale).all() and np.isfinite(least).all() and (scale >= 0).all()):
            raise CorpusError(f"{where}: a step or a least value that is no number; altered?")
        units = np.ascontiguousarray(data[:, 8 : 8 + 2 * v]).view(UNITS)
        best = np.argpartition(units, v - k, axis=1)[:, v - k :]
        values = np.take_along_axis(units, best, 1)
        order = np.argsort(-values.astype(np.int64), axis=1, kind="stable")
        part = slice(begin, begin + m)
        ids[part] = np.take_along_axis(best, order, 1)
        values = np.take_along_axis(values, order, 1)
        logp[part] = scale[:, None] * values.astype(np.float32) + least[:, None]
        own = np.take_along_axis(units, labels[part, None], 1)[:, 0]
        label_logp[part] = scale * own.astype(np.float32) + least
    return ids, logp, label_logp


# -- writing ---------------------------------------------------------------------------------------


def write(store: Store, out: Path, report: Reporter) -> int:
    """Write the rows of a store that holds whole distributions; returns how many positions.

    llama.cpp sums over all V ids, and ignores those below e^-16: of a store with tails it would leave out a term that
    is larger than what a good quantisation differs by. So only stores without tails are taken.

    Raises:
        PairingError: the store has tails, or no row that is one whole chunk.
    """
    identity = store.manifest.identity
    if identity.targets.k != store.vocab_size:
        raise PairingError(
            f"{store.path}: keeps {identity.targets.k} of {store.vocab_size:,} ids; llama.cpp sums over all. Export "
            f"a store that was built with --estimator dense --k {store.vocab_size}, or compare with `softlabels kld`"
        )
    s = max(stored.row.size for stored in store)
    whole = [stored.index for stored in store if _is_chunk(stored, s)]
    if not whole:
        raise PairingError(
            f"{store.path}: no row is one piece of one document with a target at its tokens {s // 2} to {s - 2}"
        )
    if len(whole) < len(store):
        report.notice(
            f"left out {len(store) - len(whole)} of {len(store)} rows, which are shorter than {s} tokens or hold "
            "several documents"
        )
    report.stage("export", len(whole), "rows")
    with appearing(out) as temporary, temporary.open("wb") as file:
        file.write(MAGIC + np.array([s, store.vocab_size, len(whole)], "<i4").tobytes())
        for index in whole:
            row = store.row(index).row
            assert isinstance(row, Row)
            file.write(row.input_ids.astype("<i4").tobytes())
        for index in whole:
            _write_row(file, store.row(index), s)
            report.advance(1)
    return len(whole) * (s - 1 - s // 2)


def _is_chunk(stored: StoredRow, s: int) -> bool:
    row, soft = stored.row, stored.targets.soft
    if not isinstance(row, Row) or row.size != s or len(row.segment_lengths) != 1:
        return False
    targeted = set(row.positions[soft].tolist())
    return targeted.issuperset(range(s // 2, s - 1))


def _write_row(file: BinaryIO, stored: StoredRow, s: int) -> None:
    row, targets = stored.row, stored.targets
    assert isinstance(row, Row)
    v = targets.vocab_size
    wanted = np.flatnonzero((row.positions >= s // 2) & (row.positions < s - 1))
    for at in wanted:
        logp = np.full(v, -np.inf, np.float32)
        logp[targets.ids[at]] = targets[at : at + 1].logp[0]
        most = logp.max()
        least = np.float32(max(logp.min(), most - np.float32(CLIP)))
        step = np.float32((most - least) / STEPS)
        units = np.zeros(v + v % 2, UNITS)
        if step > 0:
            units[:v] = np.rint(np.clip((logp - least) / step, 0, STEPS))
        file.write(np.array([step, least], "<f4").tobytes() + units.tobytes())
