"""Offline on-policy distillation: a student writes, the teacher that taught it scores that once, the student learns.

    OUT/opd.json                    what was asked for, and the digest of the student that began
    OUT/round-1/text.parquet        what the student wrote: the very ids
    OUT/round-1/store               the teacher's log-probability of each token of it, its top k and their tail
    OUT/round-1/run                 the student that learnt from it, an ordinary run; it writes the text of round 2

1. Write `text.parquet`, unless it is there.
2. Have it scored: by `softlabels build` in a process of its own, which has ended before anything is learnt; or by
   whoever does that elsewhere, and the same command then goes on.
3. Refuse a store of another teacher, by the digest of its weights, or of another text.
4. Go on from the student with `sampled_reverse_kl`, as `softtrain run --resume` does.

Each part appears whole, so whoever was killed goes on with the part that is missing.
"""

from __future__ import annotations

import glob
import json
import shlex
import subprocess
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

import softlabels
from softlabels.core.durable import is_temporary, make_folder
from softlabels.core.folder_lock import LOCK, FolderLock
from softlabels.core.own_process import own_environment, own_module
from softlabels.core.progress import Reporter
from softlabels.errors import IntegrityError, PairingError, RunError
from softlabels.format.figures import figures_of
from softlabels.store.reader import Store, open_store
from trainers.evaluation.evaluate import evaluate
from trainers.generation.opd_config import OpdConfig
from trainers.generation.texts import generate
from trainers.run.finished import open_finished
from trainers.run.own_text import check_same_teacher, check_written
from trainers.run.record import is_student, write_json
from trainers.run.setup import train
from trainers.students import load_student

RECORD = "opd.json"
FREE = frozenset({"teacher", "rounds", "judge", "device", "generate_batch_size"})
"""What may change when it goes on: where the teacher lies, how long it is, and where and how it computes."""
ROW = 512
"""Tokens of a store's row, at least: several texts share one."""
TARGETS = ("--estimator", "topk")
"""What is kept of the teacher: with its likeliest ids and their tail, `sampled_reverse_kl` estimates only what lies in
the tail (`trainers/loss/sampled.py`)."""
STDERR = 2


@dataclass(frozen=True, kw_only=True)
class OwnText:
    """What a student wrote, and how far from its teacher that is."""

    round: int
    store: Path
    sequences: int
    tokens: int
    """Those that the student drew."""
    student_nll: float
    """Mean over these, in nats; so is the next."""
    teacher_nll: float
    student: Path | None
    """Folder of the student that learnt from it; None: none did."""

    @property
    def reverse_kl(self) -> float:
        """Nats a token, of the student that wrote it from the teacher; unbiased."""
        return self.teacher_nll - self.student_nll


@dataclass(frozen=True, kw_only=True)
class Unscored:
    """A text that awaits its teacher."""

    round: int
    text: Path
    command: str
    """Scores it, but for the teacher's name."""


def opd(
    run: Path, out: Path, config: OpdConfig, report: Reporter
) -> tuple[list[OwnText], Unscored | None]:
    """Take the rounds, or go on with them.

    Args:
        run: a finished run; its student begins.
        out: folder to make.

    Returns:
        The texts that are scored, in order, and the one that is not, where no teacher was named.

    Raises:
        RunError: not a finished run, `out` holds something else or was begun otherwise, scoring failed.
        PairingError: a store was scored by another teacher, or is of another text.
    """
    begun = {"config": asdict(config), "weights_sha256": open_finished(run).digest()}
    _check_folder(out)
    with FolderLock(out, report.notice) as lock:
        lock.acquire()
        _check_record(out, begun)
        write_json(out / RECORD, begun | {"softlabels": softlabels.__version__})
        found: list[OwnText] = []
        writer = run
        for number in range(1, config.rounds + 1 + config.judge):
            folder = out / f"round-{number}"
            unscored = _write(writer, folder, number, config, report)
            if unscored is not None:
                return found, unscored
            store = _checked(writer, folder)
            learns = number <= config.rounds
            found.append(_judged(writer, folder, store, number, config, learns=learns))
            report.notice(
                f"round {number}: {found[-1].reverse_kl:.4f} nats a token from the teacher"
            )
            if not learns:
                break
            if not is_student(folder / "run" / "student"):
                settings = config.run_on(folder / "store", init=writer)
                train(settings, folder / "run", resume=True, reporter=report)
            writer = folder / "run"
        return found, None


# -- the folder -----------------------------------------------------------------------------------


def _check_folder(out: Path) -> None:
    if out.exists() and not out.is_dir():
        raise RunError(f"{out}: is a file; choose another --out")
    if out.is_dir() and not (out / RECORD).is_file():
        for path in sorted(out.iterdir()):
            if path.name != LOCK and not is_temporary(path.name):
                raise RunError(
                    f"{out}: holds {path.name} and no {RECORD}, so it was not made by softtrain opd; choose another "
                    "--out"
                )


def _check_record(out: Path, begun: dict[str, Any]) -> None:
    """Refuse to go on as something else than what was begun."""
    path = out / RECORD
    if not path.is_file():
        return
    try:
        recorded = json.loads(path.read_bytes())
        config, weights = dict(recorded["config"]), str(recorded["weights_sha256"])
    except (OSError, ValueError, KeyError, TypeError) as e:
        raise RunError(
            f"{path}: not the record of softtrain opd ({e}); choose another --out"
        ) from e
    if weights != begun["weights_sha256"]:
        raise RunError(
            f"{out}: was begun with a student whose weights have sha256 {weights[:12]}…, this one's have "
            f"{begun['weights_sha256'][:12]}…; choose another --out"
        )
    for name, value in begun["config"].items():
        if name not in FREE and config.get(name) != value:
            raise RunError(
                f"{out}: was begun with {name} = {config.get(name)!r}, this has {value!r}; go on as it was begun, or "
                "choose another --out"
            )


# -- a round --------------------------------------------------------------------------------------


def _write(
    writer: Path, folder: Path, number: int, config: OpdConfig, report: Reporter
) -> Unscored | None:
    """Have the student write and the teacher score, as far as either is not done; what is left to do elsewhere."""
    text, store = folder / "text.parquet", folder / "store"
    make_folder(folder)
    if not text.exists():
        report.notice(f"round {number}: the student of {writer} writes {text}")
        generate(writer, text, config.text_of(number), report)
    if (store / "manifest.json").is_file():
        return None
    corpus = f"ids:{glob.escape(str(text))}"
    words = ("--corpus", corpus, *TARGETS, "--seq-len", max(ROW, _longest(text)), "--out", store)
    if config.teacher is None:
        command = shlex.join(["softlabels", "build", *map(str, words)])
        return Unscored(round=number, text=text, command=command)
    report.notice(f"round {number}: {config.teacher} scores it, in a process of its own")
    given = ("build", "--teacher", config.teacher, "--device", config.device, *words)
    done = subprocess.run(
        own_module("softlabels", *given), stdout=STDERR, check=False, env=own_environment()
    )
    if done.returncode:
        raise RunError(
            f"{store}: softlabels build ended with exit code {done.returncode}, and said why above; the same command "
            "goes on"
        )
    return None


def _checked(writer: Path, folder: Path) -> Store:
    """The store of a round's text: scored by the teacher that taught the student, and of that very text."""
    store = open_store(folder / "store")
    again = f"remove {store.path}, and the same command has it scored anew"
    try:
        check_written(store)
        check_same_teacher(writer, store)
    except PairingError as e:
        raise PairingError(f"{e}; {again}") from e
    corpus = store.identity.corpus
    sequences, tokens, drawn = _counts(folder / "text.parquet")
    if (corpus.documents, corpus.tokens, corpus.positions) != (sequences, tokens, drawn):
        raise PairingError(
            f"{store.path}: has {corpus.documents:,} documents, {corpus.tokens:,} tokens and {corpus.positions:,} "
            f"positions, and what the student wrote has {sequences:,}, {tokens:,} and {drawn:,}: it is of another "
            f"text; {again}"
        )
    return store


def _judged(
    writer: Path, folder: Path, store: Store, number: int, config: OpdConfig, *, learns: bool
) -> OwnText:
    """How far the writer is from the teacher on its own text."""
    finished = open_finished(writer)
    finished.check_fits(store)
    student = load_student(finished.folder)
    device, rows = config.device, config.batch_size
    scores = evaluate(student, store, device=device, batch_size=rows)
    teacher = figures_of(store.manifest).teacher_nll
    assert teacher is not None, "its positions have labels"
    return OwnText(
        round=number,
        store=folder / "store",
        sequences=store.identity.corpus.documents,
        tokens=store.identity.corpus.positions,
        student_nll=float(scores.nll),
        teacher_nll=teacher,
        student=folder / "run" / "student" if learns else None,
    )


def _longest(text: Path) -> int:
    return int(np.diff(_column(text, "input_ids").offsets.to_numpy()).max())


def _counts(text: Path) -> tuple[int, int, int]:
    """Sequences, their tokens, and those that the student drew."""
    ids, mask = _column(text, "input_ids"), _column(text, "loss_mask")
    return len(ids), len(ids.flatten()), int(mask.flatten().to_numpy().sum())


def _column(text: Path, name: str) -> Any:
    try:
        return pq.read_table(text, columns=[name])[name].combine_chunks()
    except (OSError, ValueError, KeyError) as e:
        raise IntegrityError(
            f"{text}: cannot be read ({e}); remove {text.parent}, and the same command writes it anew"
        ) from e
