"""Export a student: write it, ask it and the PyTorch student the same, publish it only if they agree."""

from __future__ import annotations

import platform
import shutil
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

from msgspec.structs import asdict, replace

import softlabels
from softlabels.core.folder_record import describe_files, read_record, write_seal
from softlabels.core.folders import filling, publish_folder
from softlabels.core.progress import Reporter, Silent
from softlabels.core.records import sha256_of
from softlabels.errors import ConfigError, FormatError, IntegrityError, PairingError, RunError
from softlabels.format.identity import Identity
from softlabels.store.reader import Store
from softlabels.store.tokenizer_files import is_tokenizer_file
from trainers.data.mixing import feed_of
from trainers.data.tasks import Task
from trainers.exports import FORMATS
from trainers.exports.card import card
from trainers.exports.check import compare, verdict
from trainers.exports.config import ExportConfig
from trainers.exports.domains import exported, spread
from trainers.exports.duties import duties
from trainers.exports.formats import Job
from trainers.exports.merge import check_merge, source_of
from trainers.exports.record import (
    EXPORT,
    FORMAT,
    RECORD,
    VERSION,
    CheckRecord,
    ExportRecord,
    SourceRecord,
    read_export,
)
from trainers.exports.weights import weight_files
from trainers.run.finished import FinishedRun, open_finished
from trainers.run.record import RUN_RECORD
from trainers.students import load_student
from trainers.students.fake_quant import settle

CONFIGS = ("config.json", "generation_config.json", "preprocessor_config.json")
"""Names under which a model of transformers saves settings."""


def export(
    run: Path, out: Path, config: ExportConfig, reporter: Reporter | None = None
) -> ExportRecord:
    """Export a student of a finished run into a new folder, which holds all of it or is not there.

    Returns and raises as `trainers.export`.
    """
    report = reporter or Silent()
    if out.exists():
        raise ConfigError(f"--out {out}: is there already; choose another folder")
    form = FORMATS.load(config.format)
    finished = open_finished(run, config.weights)
    heldout = _heldout(finished, config)
    training = finished.training_stores(
        config.store, inputs=config.inputs, images=config.images, rows=form.calibrates
    )
    _check_feed(heldout, training[0])
    domain = exported(heldout.identity.domain)
    task = Task.saved(domain.name, finished.folder)
    student = load_student(finished.folder, task).eval()
    check_merge(student, form, merge=config.merge, what=str(run))
    model = student.model
    grids = settle(model)
    rows = spread(len(heldout), config.rows)
    examples = domain.examples(heldout, rows)
    calibration = (
        domain.examples(training[0], spread(len(training[0]), config.calibration_rows))
        if form.calibrates
        else ()
    )
    with (
        source_of(student, finished.folder, merge=config.merge) as folder,
        filling(out) as temporary,
    ):
        job = Job(
            model=load_student(folder, task).model.eval() if config.merge else model,
            folder=folder,
            domain=domain,
            samples=sorted(examples, key=domain.size)[-2:] * 2,
            calibration=calibration,
            grids=grids,
        )
        report.stage(f"write {form.name}", 1, "model")
        _copy_all_but_weights(folder, temporary)
        described = domain.describe(heldout, temporary)
        written = form.write(job, temporary)
        report.advance(1)
        report.stage("check", len(examples), "examples")
        runner = form.load(temporary, domain=domain, threads=None)
        found = compare(model, runner, domain, examples, advance=report.advance)
        tolerance = form.tolerance if config.tolerance is None else config.tolerance
        verdict(found, rule=form.rule, tolerance=tolerance, what=f"{run} as {form.name}")
        record = ExportRecord(
            format=FORMAT,
            version=VERSION,
            kind=form.name,
            domain=heldout.identity.domain,
            parameters=sum(p.numel() for p in job.model.parameters()),
            model=written.model,
            opset=written.opset,
            inputs=_axes(job),
            details=written.details | described,
            versions={
                "softlabels": softlabels.__version__,
                "python": platform.python_version(),
                **{name: version(name) for name in written.libraries},
            },
            source=_source(finished, training),
            check=CheckRecord(
                rule=form.rule,
                tolerance=tolerance,
                store_digest=heldout.digest,
                rows=len(rows),
                examples=len(examples),
                **asdict(found),
            ),
            files=describe_files(temporary, without=RECORD),
            digest="",
        )
        text = card(record, finished.facts["config"], form, domain, temporary)
        (temporary / "README.md").write_text(text, encoding="utf-8")
        files = describe_files(temporary, without=RECORD)
        write_seal(temporary, EXPORT, replace(record, files=files))
        record = read_export(temporary)
        publish_folder(temporary, out, report.notice)
    for duty in duties(record.source.licences):
        report.notice(f"before {out} is passed on: {duty}")
    return record


def _heldout(finished: FinishedRun, config: ExportConfig) -> Store:
    path = config.heldout or finished.facts["config"].get("heldout")
    if path is None:
        raise ConfigError(
            f"--heldout is missing, and {finished.run} has none of its own: give a store of rows to check the export on"
        )
    images = config.heldout_images
    if not images and config.heldout is None:
        images = tuple(finished.facts["config"].get("heldout_images") or ())
    opened = finished.open_store(path, vocab=config.vocab, images=images, flag="--heldout-images")
    if finished.was_trained_on(opened):
        raise RunError(
            f"{path}: is the very store that {finished.run} was trained on; give one of held-out rows"
        )
    return opened


def _check_feed(heldout: Store, training: Store) -> None:
    found, expected = (feed_of(s.identity) for s in (heldout, training))
    if found != expected:
        raise PairingError(
            f"{heldout.path}: its images are fed at size, mean and deviation {found}, the run's at {expected}; build "
            "it with the run's teacher and --image-size"
        )


def _copy_all_but_weights(source: Path, to: Path) -> None:
    """Configuration and tokenizer; nothing that anyone put beside them."""
    weights = {p.name for p in weight_files(source)}
    for name in sorted(_saved_files(source) - weights):
        (to / name).parent.mkdir(exist_ok=True)
        shutil.copyfile(source / name, to / name)


def _saved_files(source: Path) -> set[str]:
    """What the run saved: what its record lists; of an earlier version's, what has a name of such a file."""
    try:
        return set(read_record(source).files)
    except (FileNotFoundError, FormatError, IntegrityError):
        there = {p.relative_to(source).as_posix() for p in source.rglob("*") if p.is_file()}
        return {name for name in there if name in CONFIGS or is_tokenizer_file(name)}


def _axes(job: Job) -> dict[str, list[str]]:
    laid = job.domain.lay(job.samples[:1])
    return {
        name: [job.domain.axes[name].get(i, str(n)) for i, n in enumerate(laid.inputs[name].shape)]
        for name in job.domain.inputs
    }


def _source(finished: FinishedRun, training: Sequence[Store]) -> SourceRecord:
    identities = [s.identity for s in training]
    return SourceRecord(
        run_sha256=sha256_of(finished.run / RUN_RECORD),
        weights=finished.weights,
        weights_sha256={p.name: sha256_of(p) for p in weight_files(finished.folder)},
        store_digest=finished.named_store(training)["store_digest"],
        tokenizer_sha256=finished.facts["tokenizer_sha256"],
        teachers={i.teacher.name: i.teacher.weights_sha256 for i in identities},
        corpora=list(dict.fromkeys(map(_corpus, identities))),
        licences=list(dict.fromkeys(s.manifest.licence for s in training)),
    )


def _corpus(identity: Identity) -> str:
    """What it is, and how large."""
    corpus = identity.corpus
    amount = f"{corpus.documents:,} documents, {corpus.tokens:,} tokens"
    if identity.images is not None:
        amount = f"{corpus.documents:,} images, {corpus.rows:,} views"
    return f"{', '.join(corpus.specs)} ({amount})"
