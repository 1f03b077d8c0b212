"""`softlabels check`: all that would stop a build, or make its store worth nothing, before the teacher is loaded.

The flow:
 1. the corpora are opened; how their fields are read is said;
 2. all of the text is read once: broken, empty, garbled and repeated documents;
 3. the beginning is packed into rows by the build's own row maker, with the teacher's tokenizer, weights unread;
 4. lengths are compared with the contexts of teacher and student;
 5. held-out text is compared with what is trained on;
 6. licence, disk.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from softlabels.builder.config import BuildConfig
from softlabels.core.progress import Reporter
from softlabels.core.registry import split_spec
from softlabels.corpora import CORPORA, Corpus, open_corpora
from softlabels.corpora.overlap import refuse_overlap
from softlabels.errors import ConfigError, SoftLabelsError
from softlabels.making.licences import UNKNOWN, require_spdx
from softlabels.start import fields, lengths, texts
from softlabels.start.disk import bytes_each, free_bytes, likely_positions
from softlabels.start.findings import Finding, fine, look, mend
from softlabels.start.lengths import Lengths
from softlabels.start.shared import overlap
from softlabels.start.sizing import MEASURED_VOCABULARY
from softlabels.start.student import findings_of_student
from softlabels.teachers.unloaded import UnloadedTeacher, unloaded


@dataclass(frozen=True, kw_only=True)
class Checked:
    """What a check came to."""

    findings: list[Finding]
    lengths: Lengths | None
    teacher: UnloadedTeacher | None


def check_job(
    config: BuildConfig,
    out: Path | None,
    report: Reporter,
    *,
    heldout: Sequence[str] = (),
    student: str | None = None,
) -> Checked:
    """Check a build.

    Args:
        out: folder of the store; None: not chosen yet.
        heldout: corpora that are to be held out.
        student: as of `softtrain run --student`.

    Raises:
        ConfigError: an impossible held-out corpus or student.
    """
    try:
        teacher = unloaded(config.teacher, config.domain)
    except SoftLabelsError as e:
        return Checked(findings=[mend("teacher", str(e), "as it says")], lengths=None, teacher=None)
    findings = [_about(teacher, config)]
    if not all(split_spec(s, flag="--corpus")[0] in CORPORA for s in config.corpus):
        findings.append(fine("records", "images are looked at by the build itself"))
        return Checked(findings=findings, lengths=None, teacher=teacher)
    try:
        corpora = open_corpora(config.corpus)
        if out is not None:
            refuse_overlap(corpora, config.corpus, out)
    except SoftLabelsError as e:
        findings.append(mend("corpus", str(e), "as it says"))
        return Checked(findings=findings, lengths=None, teacher=teacher)
    findings += fields.fields_of(corpora)
    reading = texts.read_all(corpora, report)
    findings += texts.findings_of(reading, skip_empty=config.skip_empty)
    if teacher is not None and not teacher.chats and reading.kinds["conversation"]:
        findings.append(
            mend(
                "fields",
                "there are conversations, and the teacher's tokenizer has no chat template",
                "take a teacher that was made to chat, or records with prompt and completion",
            )
        )
    packed = None
    if teacher is not None and reading.documents and not reading.broken_count:
        packed = lengths.lengths_of(config, corpora, teacher, report)
        findings += lengths.findings_of(packed, config, teacher)
    if student is not None:
        vocab = MEASURED_VOCABULARY if teacher is None else teacher.record.vocab_size
        rows = config.seq_len if packed is None else min(config.seq_len, packed.longest)
        findings += findings_of_student(student, rows=rows, vocab_size=vocab)
    if heldout:
        findings.append(overlap(corpora, open_corpora(heldout), report))
    findings.append(_licence(config, teacher))
    findings.append(_disk(config, corpora, out, packed, teacher))
    return Checked(findings=findings, lengths=packed, teacher=teacher)


def _about(teacher: UnloadedTeacher | None, config: BuildConfig) -> Finding:
    if teacher is None:
        spec = config.teacher if isinstance(config.teacher, str) else config.teacher[0]
        return fine("teacher", f"{spec}: nothing is known of it before it is loaded")
    if not teacher.weights_bytes:
        return mend(
            "teacher", f"{teacher.record.spec} holds no weights", "fetch the whole model again"
        )
    size = teacher.record.parameters
    parameters = f"{size / 1e6:,.0f}M parameters, " if size else ""
    return fine(
        "teacher",
        f"{teacher.record.name}: {parameters}{teacher.record.vocab_size:,} ids, context "
        f"{teacher.context or 'unlimited'}{', chats' if teacher.chats else ''}; its weights were not loaded",
    )


def _licence(config: BuildConfig, teacher: UnloadedTeacher | None) -> Finding:
    own = teacher and teacher.licence
    card = f"; the teacher's card says {own}" if own else ""
    if config.licence.lower() == UNKNOWN:
        return look(
            "licence",
            f"the targets have no licence{card}",
            "licence = 'CC-BY-4.0' (or what text and teacher allow); a store without one is not shared",
        )
    try:
        return fine("licence", f"{require_spdx(config.licence)}{card}")
    except ConfigError as e:
        return mend("licence", str(e), "name one of SPDX")
    except SoftLabelsError:  # the library that knows them is not installed
        return fine("licence", f"{config.licence}, not compared with the list of SPDX{card}")


def _disk(
    config: BuildConfig,
    corpora: Sequence[Corpus],
    out: Path | None,
    packed: Lengths | None,
    teacher: UnloadedTeacher | None,
) -> Finding:
    vocab = MEASURED_VOCABULARY if teacher is None else teacher.record.vocab_size
    positions = packed.all_positions if packed is not None else likely_positions(config, corpora)
    if positions is None:
        return fine("disk", "the size of the corpus is not known before it is read")
    need, free = positions * bytes_each(config, vocab), free_bytes(out or Path())
    said = f"the store takes about {need / 1e6:,.1f} MB, {free / 1e9:,.1f} GB are free"
    if need > free:
        return mend("disk", said, "another disk, profile = 'packed', a smaller k, or limit_rows")
    return fine("disk", said)
