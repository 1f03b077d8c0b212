"""Set up a training run, or one that goes on: check that all goes together, record it, start it.

On a CPU the result is a function of config and store alone, to the bit, wherever it was interrupted. Under torchrun the
processes share each batch; on how many, and whether always on as many, changes nothing beyond rounding, and with
--exact-ranks nothing (`gradients.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import torch

import softlabels
from softlabels.core.devices import choose
from softlabels.core.folder_lock import FolderLock
from softlabels.core.progress import Reporter, Silent
from softlabels.errors import ConfigError, PairingError
from softlabels.store.reader import Store
from trainers.data.full_teacher import FullTeacher
from trainers.data.mixing import feed_of, make_stream, mixture_digest, open_stores
from trainers.data.tasks import CAUSAL, Task, renumbers
from trainers.evaluation.forgetting import Forgetting, open_watched
from trainers.evaluation.heldout import HeldOut, open_heldout
from trainers.loss.schedules import LossSchedule
from trainers.loss.settings import SAMPLED
from trainers.run.config import RunConfig
from trainers.run.ema import Ema
from trainers.run.finished import provenance
from trainers.run.finite import is_finite
from trainers.run.folder import check_same_run, mend_run, read_run, settled, student_tokenizer
from trainers.run.followed import end_of, open_followed, plan_facts
from trainers.run.kernels import apply_kernels
from trainers.run.length import Length, in_steps
from trainers.run.loop import Loop
from trainers.run.own_text import check_same_teacher, check_written
from trainers.run.record import write_json
from trainers.run.reduce import Ranks, joined
from trainers.run.step import Optimisation
from trainers.run.trust import trust_facts, trust_notices
from trainers.run.vocabulary import view_facts
from trainers.students import Student, make_student
from trainers.students.context import check_context, check_student
from trainers.students.documents import SEE_EACH_OTHER


def train(
    config: RunConfig, run: Path | str, *, resume: bool = False, reporter: Reporter | None = None
) -> Path:
    """Train a student, or with `resume` go on with a run, on any number of processes; see `trainers.train`.

    Under torchrun, each process calls this alike, with a folder that all see; the first alone reports and writes.
    """
    with joined() as ranks:
        report = reporter if reporter is not None and ranks.first else Silent()
        return _train(config, Path(run), ranks, report, resume=resume)


def _train(config: RunConfig, run: Path, ranks: Ranks, report: Reporter, *, resume: bool) -> Path:
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    config.micro_batches(ranks.world_size)
    stores = _open_stores(config, report)
    config, epochs = in_steps(config, stores)
    if epochs is not None:
        report.notice(epochs)
    store = stores[0][0]  # in what is asked of it below, all are alike
    teacher = None
    if config.teacher_states is not None:
        teacher = FullTeacher.open(config.teacher_states, store)
    loss = config.make_loss().on(store.identity.targets, whole=teacher is not None)
    _check_stores(config, loss, [opened for opened, _ in stores], report)
    _check_tokens(config, [opened for opened, _ in stores])
    watched = open_watched(config.forgetting, store, vocab=config.vocab, cache=config.cache_options)
    heldout = None
    if config.heldout is not None:
        heldout = open_heldout(
            config.heldout,
            store,
            vocab=config.vocab,
            images=config.heldout_images,
            cache=config.cache_options,
        )
    recorded = ranks.from_first(lambda: read_run(run, resume=resume))
    config = settled(config, recorded)
    dtype = recorded["dtype"] if recorded and config.dtype == "auto" else config.dtype
    device = ranks.device(config.device)
    first_choice = ranks.from_first(lambda: choose(device, dtype))  # auto measures: one for all
    choice = first_choice if ranks.first else choose(device, first_choice.dtype_name)
    report.notice(f"student: {choice.reason}")
    origin = None if config.init is None else provenance(Path(config.init), store)
    if config.loss == SAMPLED:
        for opened, _ in stores:
            check_written(opened)
            check_same_teacher(Path(str(config.init)), opened)
    measured = [opened for _, opened in watched] + ([] if heldout is None else [heldout])
    to_fit = [opened for opened, _ in stores] + measured
    student = _student(config, store, to_fit, report)
    _check_statistics(config, student, ranks, report)
    tokenizer = student_tokenizer(store, report.notice)
    apply_kernels(config.kernels, student, choice.device)
    length = Length.of(config, recorded)
    facts = {
        "config": asdict(config),
        "length": length.to_dict(),
        "domain": store.identity.domain,
        "teachers": sorted({o.identity.teacher.weights_sha256 for o, _ in stores}),
        "store_digest": mixture_digest(stores),
        **plan_facts(config, stores, report.notice),
        "trust": trust_facts(config, [opened for opened, _ in stores]),
        "view": view_facts(store),
        "tokenizer_sha256": store.identity.tokenizer.sha256,
        "parameters": student.parameter_count,
        "trained": student.trained_count,
        "documents_apart": _documents_apart(student, store, report),
        "dtype": choice.dtype_name,
        "softlabels": softlabels.__version__,
        "torch": torch.__version__,
    }
    if store.identity.images is not None:
        facts["feed"] = feed_of(store.identity)
    if origin is not None:
        facts["init"] = origin
    if student.adapter is not None:
        facts["base_sha256"] = student.adapter.base.weights_sha256
    if teacher is not None:
        facts["teacher_states"] = teacher.facts()
    with FolderLock(run, report.notice) as lock:
        ranks.from_first(lambda: _begin(run, lock, facts, report, resume=resume))
        if ranks.several:
            report.notice(_topology(config, ranks))
        forgetting = Forgetting(run, watched, choice.device, batch_size=config.batch_size)
        if watched:
            report.notice(
                f"--forgetting: {len(watched)} stores are evaluated before the first step"
            )
            ranks.from_first(lambda: forgetting.before(student))
        student = student.train()
        if not (ranks.several and config.parallel == "fsdp"):  # which is shared out first
            student = student.to(choice.device)
        student.head_dtype = choice.dtype if choice.dtype != torch.float32 else None
        masks = frozenset(n for n, b in student.named_buffers() if not is_finite(b))
        config = replace(config, warmup=length.warmup)
        stream = make_stream(
            stores,
            batch_size=config.batch_size,
            seed=config.seed,
            order=config.order,
            lanes=config.lanes,
            **({} if teacher is None else {"teacher": teacher.to(choice.device)}),
            rank=ranks.rank,
            world_size=ranks.world_size,
        )
        folder = Loop(
            config=config,
            run=run,
            store_digest=facts["store_digest"],
            stream=stream,
            student=student,
            loss=loss,
            optimisation=Optimisation(student, choice, ranks, config),
            ema=None if config.ema is None else Ema(student, config.ema),
            heldout=None if heldout is None else HeldOut(heldout, patience=config.patience),
            ranks=ranks,
            device=choice.device,
            task=Task.of(store),
            tokenizer=tokenizer,
            length=length,
            report=report,
            masks=masks,
        ).train()
        if watched:
            for line in ranks.from_first(lambda: forgetting.after(folder)):
                report.notice(line)
        if followed := ranks.from_first(lambda: end_of(run, stream)):
            report.notice(followed)
        return folder


def _open_stores(config: RunConfig, report: Reporter) -> list[tuple[Store, Fraction]]:
    if config.follow:
        return open_followed(config, report.notice)
    return open_stores(
        config.store,
        vocab=config.vocab,
        inputs=config.inputs,
        images=config.images,
        cache=config.cache_options,
        demands=config.demands(),
    )


def _check_stores(
    config: RunConfig, loss: LossSchedule, stores: Sequence[Store], report: Reporter
) -> None:
    """Refuse stores without what the loss learns from, and say what there is to know of them."""
    for store in stores:
        if min(loss.alpha.start, loss.alpha.end) < 1 and store.unlabelled:
            known = (
                "" if store.finished else "; of the store that is followed this is its first shard"
            )
            raise PairingError(
                f"{store.path}: none of its rows has a label, and --alpha below 1 learns from labels, too; use "
                f"--alpha 1{known}"
            )
        if config.cosine > 0 and store.identity.hidden is None:
            raise PairingError(
                f"{store.path}: holds no hidden states for --cosine {config.cosine:g}; build it with --hidden int8, or "
                "leave --cosine out"
            )
    for notice in (*trust_notices(stores), *loss.notices(stores[0].identity.targets)):
        report.notice(notice)


def _student(config: RunConfig, store: Store, to_fit: Sequence[Store], report: Reporter) -> Student:
    """Make the student, and see that it can be fed all rows and numbers its ids as the stores do."""
    student = make_student(config.student_spec, seed=config.seed, task=Task.of(store))
    flag = f"--student {config.student}" if config.init is None else f"--init {config.init}"
    unknown = check_student(student, store, where=flag)
    if unknown is not None and config.init is None:  # a run says itself what it was trained with
        if not config.same_tokenizer:
            raise PairingError(
                f"{flag}: {unknown}, so nothing says that its ids mean what they mean in {store.path}; save its "
                "tokenizer beside its weights, or give --same-tokenizer if you know that it is the store's"
            )
        report.notice(f"--same-tokenizer: {unknown}; that it is the store's is on your word")
    for opened in to_fit:
        check_context(student, opened, where=flag)
    student.freeze(config.freeze)
    if renumbers(store):
        report.notice(
            f"--vocab {config.vocab}: the ids are renumbered on your word; the student's tokenizer is neither compared "
            "with the store's nor saved beside it"
        )
    return student


def _documents_apart(student: Student, store: Store, report: Reporter) -> bool | None:
    """Whether a causal LM keeps documents apart that share a row; people are told if not."""
    apart = student.keeps_documents_apart if store.identity.domain == CAUSAL.domain else None
    if apart is False:
        report.notice(SEE_EACH_OTHER.format(model=type(student.model).__name__))
    return apart


def _check_tokens(config: RunConfig, stores: Sequence[Store]) -> None:
    """Refuse --batch-tokens of which a row may have more, or where rows have no tokens."""
    most = config.batch_tokens
    for store in stores if most is not None else ():
        longest = store.identity.corpus.seq_len
        if store.identity.images is not None:
            raise ConfigError(
                f"--batch-tokens {most}: {store.path} is of images, which have no tokens; use --accumulate"
            )
        if most is not None and longest > most:
            raise ConfigError(
                f"--batch-tokens {most}: rows of {store.path} may have {longest:,} tokens, and are never cut; give "
                f"{longest} or more, or build the store with --seq-len {most}"
            )


def _check_statistics(config: RunConfig, student: Student, ranks: Ranks, report: Reporter) -> None:
    """Refuse to promise what batch normalisation cannot keep: an image's numbers depend on its micro-batch."""
    if not any(isinstance(m, torch.nn.modules.batchnorm._BatchNorm) for m in student.modules()):
        return
    if config.exact_ranks:
        raise ConfigError(
            f"--exact-ranks: --student {config.student} has batch normalisation, whose statistics are of the "
            "micro-batch that a process has; use a student without it, such as cnn:16x3"
        )
    if ranks.several or config.accumulate > 1:
        report.notice(
            "the student has batch normalisation: its statistics are of each micro-batch alone, the saved ones of the "
            "first process"
        )


def _begin(
    run: Path,
    lock: FolderLock,
    facts: dict[str, Any],
    report: Reporter,
    *,
    resume: bool,
) -> None:
    """Take the folder, and record the run or see that it is the same."""
    lock.acquire()
    recorded = read_run(run, resume=resume)  # once more: another may have begun one meanwhile
    if recorded:
        check_same_run(recorded, facts, run)
    else:
        write_json(run / "run.json", facts)
    mend_run(run, report.notice)


def _topology(config: RunConfig, ranks: Ranks) -> str:
    w = ranks.world_size
    each = config.micro_batches(w)
    text = f"{w} processes, each with {config.batch_size // w} of {config.batch_size} rows a step"
    if config.lanes and config.lanes % w:
        text += f"; --lanes {config.lanes} is no multiple of {w}, so they decode some of each other's shards, too"
    if each * w != config.accumulate or not config.exact_ranks:
        return f"{text}; agrees within rounding with other numbers of processes, see --exact-ranks"
    return text
