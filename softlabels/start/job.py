"""`softlabels init`: looks at corpus and teacher, chooses, and writes the files of a whole distillation.

The flow:
 1. corpus and teacher are found: files here, or names of the hub in the local cache;
 2. a part of the text is held out, unless there is a held-out corpus already;
 3. the beginning is tokenised with the teacher's tokenizer, its weights unread: tokens, lengths of documents;
 4. settings are chosen (`presets.py`), within the budget of disk and hours;
 5. a folder appears, whole, with what was chosen and why.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from softlabels.builder.config import BuildConfig
from softlabels.core.durable import explained
from softlabels.core.folders import filling, publish_folder
from softlabels.core.progress import Reporter
from softlabels.corpora import check_begin, open_corpora
from softlabels.errors import ConfigError
from softlabels.start.disk import free_bytes, likely_positions
from softlabels.start.lengths import Lengths, lengths_of
from softlabels.start.places import corpus_specs, teacher_spec
from softlabels.start.presets import Chosen, Known, Presets, choose, heldout, steps_of
from softlabels.start.sizing import MEASURED_VOCABULARY, speed_of
from softlabels.start.split import Split, split
from softlabels.start.written import toml
from softlabels.teachers.unloaded import UnloadedTeacher, unloaded

NO_HELDOUT = "none"
LONGEST = 2048
"""Tokens of the rows in which a beginning is looked at."""
HALF = 0.5
"""Share of the free disk that a store may take, where no budget is given."""


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What was typed or asked."""

    corpus: str
    teacher: str
    heldout: str | None = None
    """A corpus, `none`, or None: a part of the corpus."""
    student: str | None = None
    licence: str = "unknown"
    disk_gb: float | None = None
    """None: half of what is free."""
    hours: float | None = None
    tokens_per_second: float | None = None
    """Of the teacher; None: estimated from its size."""


@dataclass(frozen=True, kw_only=True)
class Begun:
    """What was found and chosen."""

    teacher: UnloadedTeacher | None
    lengths: Lengths | None
    split: Split
    presets: Presets
    commands: list[str]
    """What to run, in this order."""


def begin_job(asked: Asked, out: Path, report: Reporter) -> Begun:
    """Look, choose, and write `out`.

    Raises:
        ConfigError: `out` is there, and not an empty folder.
        CorpusError, TeacherError: corpus or teacher cannot be used; says the way out.
    """
    _refuse_taken(out)
    spec = teacher_spec(asked.teacher)
    specs, held = corpus_specs(asked.corpus)
    corpora = open_corpora(specs)
    check_begin(corpora, skip_empty=True)
    teacher = unloaded(spec, "causal-lm")
    parts = _parts(asked, specs, held)
    context = None if teacher is None else teacher.context
    longest = min(LONGEST, context or LONGEST)
    base = BuildConfig(teacher=spec, corpus=tuple(specs), seq_len=longest)
    lengths = None if teacher is None else lengths_of(base, corpora, teacher, report)
    if lengths is not None and lengths.trouble:
        raise ConfigError(lengths.trouble)
    tokens = lengths.all_tokens if lengths is not None else likely_positions(base, corpora)
    presets = choose(
        Known(
            tokens=tokens or 1e6,
            documents=lengths.of_documents if lengths is not None else (),
            vocab_size=MEASURED_VOCABULARY if teacher is None else teacher.record.vocab_size,
            context=context,
            teacher_parameters=(teacher and teacher.record.parameters) or None,
            tokens_per_second=asked.tokens_per_second or _speed(teacher),
            disk=HALF * free_bytes(out) if asked.disk_gb is None else asked.disk_gb * 1e9,
            hours=asked.hours,
        ),
        student=asked.student,
    )
    files, commands = _files(asked, spec, parts, presets, out)
    _write(out, files, parts, report)
    return Begun(teacher=teacher, lengths=lengths, split=parts, presets=presets, commands=commands)


def _refuse_taken(out: Path) -> None:
    with explained(out):
        if not out.exists() and not out.is_symlink():
            return
        if out.is_dir() and not out.is_symlink() and not any(out.iterdir()):
            if out.resolve() != Path.cwd():
                return
            raise ConfigError(
                f"--out {out}: is the folder you are in; name one that is not there yet"
            )
    raise ConfigError(
        f"--out {out}: is there already, and nothing is ever overwritten; choose a folder that is not there yet"
    )


def _parts(asked: Asked, specs: list[str], held: list[str]) -> Split:
    if asked.heldout == NO_HELDOUT:
        return Split(train=specs, heldout=[], why="nothing is held out, as you said")
    if asked.heldout is not None:
        own, _ = corpus_specs(asked.heldout)
        open_corpora(own)
        return Split(train=specs, heldout=own, why="as you said")
    if held:
        return Split(train=specs, heldout=held, why="the data set's own split")
    return split(specs)


def _speed(teacher: UnloadedTeacher | None) -> float | None:
    if teacher is None or not teacher.record.parameters:
        return None
    import torch

    return speed_of(teacher.record.parameters, "gpu" if torch.cuda.is_available() else "cpu")


def _files(
    asked: Asked, teacher: str, parts: Split, presets: Presets, out: Path
) -> tuple[dict[str, str], list[str]]:
    """Texts of the files, by name, and the commands that use them."""

    def at(name: str) -> str:
        return (out / name).as_posix()

    def placed(specs: Sequence[str]) -> list[str]:
        """Corpora that are written beside the job, with its folder."""
        return [
            f"{kind}:{at(path)}" if path in parts.written else f"{kind}:{path}"
            for kind, _, path in (spec.partition(":") for spec in specs)
        ]

    shared = [
        Chosen(key="teacher", value=teacher, why=""),
        Chosen(
            key="licence",
            value=asked.licence,
            why="of the targets, an SPDX expression such as CC-BY-4.0: what text and teacher allow",
        ),
    ]
    job = [
        shared[0],
        Chosen(key="corpus", value=placed(parts.train), why=""),
        Chosen(key="out", value=at("store"), why=""),
        None,
        *presets.job,
        None,
        shared[1],
    ]
    run = [
        Chosen(key="store", value=[at("store")], why=""),
        Chosen(key="out", value=at("run"), why=""),
        None,
        *presets.run,
    ]
    files = {"job.toml": toml("softlabels build", at("job.toml"), job)}
    check = f"softlabels check {at('job.toml')}"
    builds = [f"softlabels build {at('job.toml')}"]
    if parts.heldout:
        kept = [
            shared[0],
            Chosen(key="corpus", value=placed(parts.heldout), why=f"held out: {parts.why}"),
            Chosen(key="out", value=at("heldout"), why=""),
            None,
            Chosen(key="seq_len", value=presets.seq_len, why="as the store that is trained on"),
            Chosen(
                key="estimator", value="topk", why="exact heads: a student's distance is measured"
            ),
            Chosen(key="k", value=50, why=""),
            Chosen(key="profile", value="packed", why=""),
            None,
            shared[1],
        ]
        files["heldout.toml"] = toml("softlabels build", at("heldout.toml"), kept)
        check += f" --heldout {at('heldout.toml')}"
        builds.append(f"softlabels build {at('heldout.toml')}")
        where = Chosen(key="heldout", value=at("heldout"), why="the best student so far is kept")
        run += [None, where, *heldout(max(10, steps_of(presets) // 10))]
    files["run.toml"] = toml("softtrain run", at("run.toml"), run)
    report = f"softtrain report {at('run')}"
    if parts.heldout:
        report += f" --store {at('heldout')}"
    if asked.student is not None:
        check += f" --student '{asked.student}'"
    commands = [
        check,
        *builds,
        f"softtrain run {at('run.toml')}",
        f"{report} --out {at('report.html')}",
    ]
    return files, commands


def _write(out: Path, files: dict[str, str], parts: Split, report: Reporter) -> None:
    """Everything or nothing: the folder appears when all is in it."""
    with filling(out) as temporary:
        for name, chunks in parts.written.items():
            with (temporary / name).open("wb") as f:
                for chunk in chunks():
                    f.write(chunk)
        for name, text in files.items():
            (temporary / name).write_text(text, encoding="utf-8")
        if out.exists():
            out.rmdir()  # an empty folder; anything else is an error, and stays
        publish_folder(temporary, out, report.notice)
