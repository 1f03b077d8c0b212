"""The functions of the package: `trainers.train`, `trainers.evaluate`, `trainers.export`; the commands call them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from softlabels.core.keywords import Reported, keywords
from softlabels.core.progress import Reporter, Silent
from trainers.evaluation.config import EvalConfig
from trainers.exports.config import ExportConfig
from trainers.generation.config import GenerateConfig
from trainers.run.config import RunConfig

if TYPE_CHECKING:
    from trainers.evaluation.evaluations import Evaluation
    from trainers.exports.record import ExportRecord
    from trainers.generation.texts import Generated

__all__ = ["evaluate", "export", "generate", "train"]


@dataclass(frozen=True, kw_only=True)
class _Train(Reported, RunConfig):
    out: Path | str
    """Folder of the run; made if absent."""
    resume: bool = False
    """Go on from the newest checkpoint, to the bit."""


@keywords(_Train, RunConfig)
def train(config: RunConfig, *, out: Path | str, resume: bool, progress: Reporter | None) -> Path:
    """Train a student from a store.

    Returns:
        The folder of the finished student, in that of the run.

    Raises:
        ConfigError: a setting that cannot be; the message begins with the flag. The processes of torchrun cannot share
            batch or devices.
        RunError: the folder holds a run already, or another one; a step failed.
        PairingError, TokenizerError: loss, student and store do not go together.
    """
    from trainers.run.setup import train

    return train(config, out, resume=resume, reporter=progress)


@dataclass(frozen=True, kw_only=True)
class _Evaluate(Reported, EvalConfig):
    run: Path | str
    """Folder of a finished run."""


@keywords(_Evaluate, EvalConfig)
def evaluate(config: EvalConfig, *, run: Path | str, progress: Reporter | None) -> Evaluation:
    """Evaluate a finished run's student on the rows of a held-out store, and keep what is found in RUN/evaluations.

    Returns:
        Scores with intervals, groups, reliability and blind spots, and where they were kept.

    Raises:
        RunError: not a run, not finished, or it has no such weights.
        PairingError, TokenizerError: run and store do not go together.
    """
    from trainers.evaluation.assess import evaluate_and_keep

    return evaluate_and_keep(Path(run), config, progress or Silent())


@dataclass(frozen=True, kw_only=True)
class _Export(Reported, ExportConfig):
    run: Path | str
    """Folder of a finished run."""
    out: Path | str
    """Folder to make."""


@keywords(_Export, ExportConfig)
def export(
    config: ExportConfig, *, run: Path | str, out: Path | str, progress: Reporter | None
) -> ExportRecord:
    """Export a finished run's student into a folder that holds all it needs, if it gives the same answers there.

    Returns:
        What `export.json` says.

    Raises:
        ConfigError: `out` is there already; the training store is not where it was.
        RunError: not a finished run, or without those weights.
        TokenizerError, PairingError: the held-out store is not of the run's tokenizer or vocabulary, or its images
            are made otherwise.
        ExportError: the export does not give the student's answers.
        MissingExtraError: a library is missing.
    """
    from trainers.exports.student import export

    return export(Path(run), Path(out), config, progress)


@dataclass(frozen=True, kw_only=True)
class _Generate(Reported, GenerateConfig):
    run: Path | str
    """Folder of a finished run of a causal LM."""
    out: Path | str
    """File to write: `FILE.jsonl` (texts) or `FILE.parquet` (the very ids)."""


@keywords(_Generate, GenerateConfig)
def generate(
    config: GenerateConfig, *, run: Path | str, out: Path | str, progress: Reporter | None
) -> Generated:
    """Sample sequences from a finished run's student: a corpus for `softlabels.build`.

    Returns:
        How many there are, and how they ended.

    Raises:
        RunError: not a finished run, or without a tokenizer.
        ConfigError: `out` is there, or of another kind; sequences longer than the student's positions.
        CorpusError: a bad prompt, or none.
        TokenizerError: prompts of another tokenizer.
        PairingError: a prompt beyond the student's vocabulary.
    """
    from trainers.generation.texts import generate

    return generate(Path(run), Path(out), config, progress or Silent())
