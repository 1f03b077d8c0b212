"""The folder of a run: what `run.json` records, whether a run may go on in it, and the students it leaves there."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import MISSING, fields, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from softlabels.core.durable import is_temporary, sweep
from softlabels.core.folder_lock import LOCK
from softlabels.core.folder_record import read_record, seal_folder
from softlabels.core.folders import filling, mend_folders, publish_folder, sweep_folders
from softlabels.errors import ConfigError, FormatError, IntegrityError, RunError
from softlabels.store.reader import Store
from softlabels.store.tokenizer_files import FOLDER, check_names, without_programs
from trainers.data.arrangement import EARLIER, Arrangement
from trainers.data.order import PLANNED
from trainers.data.tasks import Task, renumbers
from trainers.run.checkpoint import CHECKPOINTS
from trainers.run.config import RunConfig
from trainers.run.finite import check_finite
from trainers.run.followed import is_same_store, said_of_plan
from trainers.run.record import RUN_RECORD, read_run_record
from trainers.run.saved import holds_student, student_tensors
from trainers.run.trust import check_same_trust
from trainers.run.vocabulary import check_same_view
from trainers.students import Student

FREE = frozenset(
    {
        "store",
        "follow",
        "steps",
        "epochs",
        "key",
        "digest",
        "release",
        "init",
        "teacher_states",
        "forgetting",
        "vocab",
        "log_every",
        "track",
        "checkpoint_every",
        "keep_last",
        "heldout",
        "images",
        "heldout_images",
        "eval_every",
        "patience",
        "parallel",
        "threads",
        "cache",
        "cache_gib",
        "device",
        "dtype",
    }
)
"""What may change when a run goes on: where files lie, how long it is (`length.py` has rules of its own), how often to
log, save and evaluate, and on what to compute."""
PIECES = frozenset({"accumulate", "batch_tokens", "chunk_mib"})
"""In how large pieces a step is computed: free, too, so that a run that was short of memory can go on; it is the same
step within rounding. With --exact-ranks, which promises the same bits, they stay."""

DEFAULTS = {f.name: f.default for f in fields(RunConfig) if f.default is not MISSING}


def read_run(run: Path, *, resume: bool) -> dict[str, Any] | None:
    """What a run recorded; None in a folder where none was begun.

    Raises:
        RunError: there is a run and none is to be resumed, or the folder holds something else.
    """
    if not (run / RUN_RECORD).exists():
        if run.is_dir() and not all(_is_ours(p.name) for p in run.iterdir()):
            raise RunError(f"{run}: is not empty and not a run; choose another --out")
        return None  # nothing to resume yet: a run killed before it began is begun
    if not resume:
        raise RunError(
            f"{run}: holds a run already; pass --resume to go on with it, or choose another --out"
        )
    return read_run_record(run)


def is_run(folder: Path) -> bool:
    """Whether a folder is that of a run, or one in which a run was killed before it began."""
    if not folder.is_dir() or folder.is_symlink():
        return False
    return (folder / RUN_RECORD).exists() or all(_is_ours(p.name) for p in folder.iterdir())


def _is_ours(name: str) -> bool:
    """Whether a run that was killed before `run.json` leaves a file of that name."""
    return name in (LOCK, ".tmp-run.json") or is_temporary(name)


def mend_run(run: Path, notice: Callable[[str], None]) -> None:
    """Bring to an end what the run was doing when it was killed; its lock must be held."""
    for folder in (run, run / CHECKPOINTS):
        if folder.is_dir():
            mend_folders(folder, notice)
            sweep_folders(folder)
    sweep(run)


def check_same_run(recorded: dict[str, Any], facts: dict[str, Any], run: Path) -> None:
    """Refuse to go on with a run as another one; `FREE` may change.

    Raises:
        RunError: names what differs.
    """
    if not is_same_store(recorded, facts):
        raise RunError(
            f"{run}: was begun on store {recorded['store_digest'][:12]}…, this is {facts['store_digest'][:12]}…"
            f"{said_of_plan(recorded)}"
        )
    check_same_trust(recorded, facts, run)
    check_same_view(recorded, facts, run)
    before, now = recorded.get("init"), facts.get("init")
    if (before or {}).get("weights_sha256") != (now or {}).get("weights_sha256"):
        raise RunError(
            f"{run}: was begun from {_origin(before)}, this would be from {_origin(now)}; resume it as it was begun"
        )
    states, own = (r.get("teacher_states") or {} for r in (recorded, facts))
    if states.get("digest") != own.get("digest"):
        spelled = [f"{s['digest'][:12]}…" if s else "none" for s in (states, own)]
        raise RunError(
            f"{run}: was begun with --teacher-states of digest {spelled[0]}, this has {spelled[1]}; resume it as it "
            "was begun, or choose another --out"
        )
    if recorded.get("base_sha256") != facts.get("base_sha256"):
        raise RunError(
            f"{run}: its adapter was begun over a base whose weights have sha256 {recorded.get('base_sha256')}, and "
            f"those there now have {facts.get('base_sha256')}; put the base back, or choose another --out"
        )
    if recorded["dtype"] != facts["dtype"]:
        raise RunError(
            f"{run}: was begun in {recorded['dtype']}, this would go on in {facts['dtype']}; "
            f"pass --dtype {recorded['dtype']}"
        )
    free = FREE if facts["config"]["exact_ranks"] else FREE | PIECES
    for name, value in facts["config"].items():
        before = _recorded(recorded, name)
        before = tuple(before) if isinstance(before, list) else before  # as JSON has them
        if name not in free and before != value:
            raise RunError(
                f"{run}: was begun with {name} = {before!r}, this has {value!r}; resume it as it "
                "was begun, or choose another --out"
            )


def _recorded(recorded: Mapping[str, Any], name: str) -> Any:
    """A setting of a run, which may be older than the setting."""
    return recorded["config"].get(name, EARLIER.get(name, DEFAULTS.get(name)))


def settled(config: RunConfig, recorded: Mapping[str, Any] | None) -> RunConfig:
    """The config with what a run that goes on decided for itself when it was begun.

    Args:
        config: as it was asked for.
        recorded: of a run that goes on; nothing for a new one.
    """
    order = PLANNED if config.follow else config.order
    new = Arrangement.chosen(order, config.lanes, config.batch_size)._asdict()
    chosen: dict[str, Any] = {
        name: _recorded(recorded, name) if recorded else value
        for name, value in new.items()
        if getattr(config, name) is None
    }
    if config.follow and chosen.get("order", config.order) != PLANNED:
        raise ConfigError(
            f"--follow: the run was begun with --order {chosen['order']}, which needs the finished store; leave "
            "--follow out"
        )
    return replace(config, **chosen)


def _origin(init: dict[str, Any] | None) -> str:
    if init is None:
        return "a student of its own"
    return f"the student of {init['run']} (sha256 {init['weights_sha256'][:12]}…)"


def student_tokenizer(store: Store, notice: Callable[[str], None]) -> dict[str, bytes]:
    """The tokenizer's files that a student takes from its store; none where a view renumbers the ids.

    Raises:
        TokenizerError: the store holds other files among them.
    """
    if renumbers(store):
        return {}
    names = [n.removeprefix(FOLDER) for n in store.beside if n.startswith(FOLDER)]
    check_names(names, where=store.path)
    return {
        name: without_programs(name, store.file(FOLDER + name), where=store.path, notice=notice)
        for name in sorted(names)
    }


def publish_student(
    final: Path,
    student: Student,
    tokenizer: Mapping[str, bytes],
    *,
    task: Task,
    step: int,
    lr: float,
    besides: Collection[str],
    notice: Callable[[str], None],
    weights: dict[str, Tensor] | None = None,
    anew: bool = True,
) -> bool:
    """Save a student (or it with other `weights`, by the model's own names) with its tokenizer, whole or not at all.

    Args:
        besides: see `check_finite`.
        anew: False leaves it alone if it was published after this very step.

    Returns:
        Whether it was saved.

    Raises:
        RunError: a weight is not finite, or the student saves a file under a tokenizer's name.
        IntegrityError: what was saved is not what is in memory.
        StoreError: the disk is full, read-only, …
    """
    if not anew and _is_published(final, student, task=task, step=step, weights=weights):
        return False
    tensors = student_tensors(student, weights)
    check_finite(tensors, what="the student's", step=step, lr=lr, besides=besides)
    with filling(final) as temporary:
        student.save(temporary, None if weights is None else dict(weights))  # which saving empties
        add_tokenizer(temporary, tokenizer, final)
        if not holds_student(temporary, student, task, weights):
            raise IntegrityError(
                f"{final}: the student that was saved is not the one in memory; nothing was published. Check the disk, "
                "then --resume"
            )
        seal_folder(temporary, kind="student", step=step)
        publish_folder(temporary, final, notice)
    return True


def add_tokenizer(folder: Path, tokenizer: Mapping[str, bytes], final: Path) -> None:
    """Put a tokenizer's files into a folder that a student was saved in, and that is published as `final`.

    Raises:
        RunError: the student saved a file of that name.
    """
    for name, data in tokenizer.items():
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        if path.exists():
            raise RunError(
                f"{final}: the student itself saves a file named {name}, as its tokenizer does; nothing was published"
            )
        path.write_bytes(data)


def _is_published(
    folder: Path, student: Student, *, task: Task, step: int, weights: dict[str, Tensor] | None
) -> bool:
    """Whether a folder is the student after a step; what else was put there, or changed since, is its owner's.

    Of one without a record, made by an earlier version, the weights are compared.
    """
    try:
        record = read_record(folder)
    except (FileNotFoundError, NotADirectoryError):
        return (folder / "config.json").is_file() and holds_student(folder, student, task, weights)
    except (FormatError, IntegrityError):
        return False
    return record.step == step and all((folder / name).exists() for name in record.files)
