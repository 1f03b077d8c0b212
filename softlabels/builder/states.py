"""Writing a teacher's states: it runs over the rows of a store, and what its head is given is kept, with the head.

The flow:
 1. load the teacher, and refuse another than the store's, or one that does not show its states;
 2. take the folder: `plan.json` by create-if-absent; a folder of others, or of another job, is refused;
 3. rows in pieces of at most `PIECE_BYTES`, each a file that appears whole; a piece that is there is not made again;
 4. the head, then the record with the digest of every file (`softlabels/store/states.py`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save
from torch import Tensor

from softlabels.builder.config import StatesConfig
from softlabels.builder.measure import BATCH_TOKENS, check_same_teacher
from softlabels.builder.teach import batches
from softlabels.core.durable import explained, is_temporary, publish, sweep, sync_folder
from softlabels.core.progress import Reporter, Silent
from softlabels.core.records import FileRecord, canonical, seal, sha256_of
from softlabels.core.rows import InputRow
from softlabels.errors import IntegrityError, NonFiniteError, PlanError, TeacherError
from softlabels.store.demand import Demand
from softlabels.store.reader import Store, open_store
from softlabels.store.states import HEAD, PIECES, PLAN, RECORD, STATES, StatesRecord, TeacherStates
from softlabels.teachers import Teacher, TeacherOptions, open_teacher

PIECE_BYTES = 64 * 2**20
"""Of a piece's states, at most, unless one row has more."""
KEPT = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def write_states(
    path: Path | str,
    config: StatesConfig,
    out: Path | str,
    *,
    reporter: Reporter | None = None,
    teacher: Teacher | None = None,
    demand: Demand | None = None,
) -> StatesRecord:
    """Keep what a teacher's head is given at every position of a store, or go on with a folder that was begun.

    Args:
        path: the store, which holds its inputs.
        config: how.
        out: folder to make.
        reporter: receives the progress.
        teacher: used instead of loading `config.teacher`.
        demand: what the store must be, signed for instance.

    Raises:
        PlanError: `out` holds something else.
        TeacherError, TokenizerError: not the store's teacher, or one that does not show its states.
        StoreError: the store is damaged, the disk is full, …
    """
    report, out = reporter or Silent(), Path(out)
    store = open_store(path, **asdict(demand or Demand()))
    store.need_inputs()
    _check_folder(out)
    if teacher is None:
        teacher = open_teacher(config.teacher, _options(config, store, report))
    check_same_teacher(store.manifest.identity, teacher, report)
    if teacher.head is None:
        raise TeacherError(
            f"--teacher {teacher.record.spec}: does not show what its head is given, so there is nothing to keep; use "
            "hf:PATH, a model with a linear head over the vocabulary"
        )
    _begin(out, _plan(store, teacher))
    report.stage("states", len(store), "rows")
    files, positions = {}, 0
    for first, rows in _pieces(store, teacher):
        name = f"{PIECES}/{first:010d}.safetensors"
        files[name] = _piece(out / name, rows, first, teacher)
        positions += sum(row.n for row in rows)
        report.advance(len(rows))
    with explained(out):
        sync_folder(
            out / PIECES
        )  # a piece that another process had just made may not be durable yet
    tensors = {"weight": teacher.head.weight}
    if teacher.head.bias is not None:
        tensors["bias"] = teacher.head.bias
    publish(out / HEAD, save({n: t.cpu().contiguous() for n, t in tensors.items()}))
    files |= {HEAD: _describe(out / HEAD), PLAN: _describe(out / PLAN)}
    record = seal(_record(store, teacher, positions, files))
    if not publish(out / RECORD, canonical(record)) and TeacherStates(out).record != record:
        raise IntegrityError(
            f"{out / RECORD}: is there, and says otherwise than what lies beside it; choose another --out"
        )
    return record


def _options(config: StatesConfig, store: Store, report: Reporter) -> TeacherOptions:
    identity = store.manifest.identity
    return TeacherOptions(
        domain=identity.domain,
        device=config.device,
        dtype=identity.teacher.dtype if config.dtype == "auto" else config.dtype,
        notice=report.notice,
    )


def _plan(store: Store, teacher: Teacher) -> bytes:
    """What must be equal for another process to go on with a folder."""
    identity, record = store.manifest.identity, teacher.record
    return canonical(
        {
            "format": f"{STATES.format}-plan",
            "corpus": identity.corpus.fingerprint,
            "weights_sha256": record.weights_sha256,
            **{name: getattr(record, name) for name in ("dtype", "device", "engine")},
        }
    )


def _check_folder(out: Path) -> None:
    """Refuse a folder of others before a teacher is loaded.

    Raises:
        PlanError: it is a file, or holds anything, and no plan.
    """
    if out.exists() and not out.is_dir():
        raise PlanError(f"--out {out}: is a file, not a folder; choose another --out")
    if out.is_dir() and not (out / PLAN).is_file():
        others = sorted(p.name for p in out.iterdir() if not is_temporary(p.name))
        if others:
            raise PlanError(
                f"--out {out}: holds {others[0]!r} and no states of a teacher; choose another --out"
            )


def _begin(out: Path, plan: bytes) -> None:
    """Take the folder.

    Raises:
        PlanError: it holds another job.
    """
    if not publish(out / PLAN, plan) and (out / PLAN).read_bytes() != plan:
        raise PlanError(
            f"--out {out}: was begun with another corpus, teacher, engine, device or dtype ({PLAN}); go on as it was "
            "begun, or choose another --out"
        )
    sweep(out)


def _pieces(store: Store, teacher: Teacher) -> Iterator[tuple[int, list[InputRow]]]:
    """Consecutive rows whose states are kept in one file, and the number of the first."""
    assert teacher.head is not None
    width, item = teacher.head.weight.shape[1], teacher.head.weight.dtype.itemsize
    piece: list[InputRow] = []
    first, size = 0, 0
    for index in range(len(store.manifest.shards)):
        for row in store.read_shard(index, targets=False).rows:
            if piece and size + row.n * width * item > PIECE_BYTES:
                yield first, piece
                first, piece, size = first + len(piece), [], 0
            piece.append(row)
            size += row.n * width * item
    yield first, piece


def _piece(path: Path, rows: Sequence[InputRow], first: int, teacher: Teacher) -> FileRecord:
    """Make a piece unless it is there."""
    if not path.exists():
        tensors = {
            "hidden": _states(rows, first, teacher),
            "digests": torch.from_numpy(
                np.frombuffer(b"".join(r.digest() for r in rows), np.uint8).reshape(-1, 16).copy()
            ),
            "positions": torch.tensor([r.n for r in rows], dtype=torch.int32),
        }
        publish(path, save(tensors))
    return _describe(path)


@torch.no_grad()
def _states(rows: Sequence[InputRow], first: int, teacher: Teacher) -> Tensor:
    """`[N, D]` at all positions of some rows.

    Raises:
        NonFiniteError: names the rows.
    """
    parts, done = [], first
    for batch in batches(rows, BATCH_TOKENS):
        found = teacher.states(batch)
        n = sum(row.n for row in batch)
        assert len(found) == n, f"the teacher gave {len(found)} states for {n} positions"
        if not bool(found.isfinite().all()):
            raise NonFiniteError(
                f"{teacher.record.spec}: a state of the rows {done} to {done + len(batch) - 1} is NaN or infinite; "
                "try --dtype float32, and check the teacher's weights"
            )
        assert found.dtype in KEPT, f"states of {found.dtype}"
        parts.append(found.cpu())
        done += len(batch)
    return torch.cat(parts).contiguous()


def _describe(path: Path) -> FileRecord:
    return FileRecord(sha256=sha256_of(path), bytes=path.stat().st_size)


def _record(
    store: Store, teacher: Teacher, positions: int, files: dict[str, FileRecord]
) -> StatesRecord:
    assert teacher.head is not None
    identity = store.manifest.identity
    return StatesRecord(
        format=STATES.format,
        version=STATES.version,
        files=files,
        digest="",
        domain=identity.domain,
        teacher=teacher.record,
        tokenizer_sha256=identity.tokenizer.sha256,
        rows=len(store),
        positions=positions,
        width=int(teacher.head.weight.shape[1]),
        scale=teacher.head.scale,
        softcap=teacher.head.softcap,
    )
