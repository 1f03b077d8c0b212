"""`export.json`: what an export is, what it was made from, how it was checked, and the sha256 of each of its files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from softlabels.core.folder_record import Seal, SealedRecord, read_seal
from softlabels.core.records import Record
from softlabels.errors import FormatError, RunError

RECORD = "export.json"
FORMAT, VERSION = "softlabels-export", "1.0"


class Comparison(Record, frozen=True, kw_only=True):
    """How the export answered, beside the PyTorch student on the same rows."""

    outputs: int
    """Places whose distribution was compared."""
    labels: int
    largest_difference: float
    """Largest |Δ log p| over outputs and all ids, nats."""
    agreement: float
    """Share of outputs with the same most probable id."""
    nll: float
    nll_of_student: float
    accuracy: float
    accuracy_of_student: float
    loss_of_nll: float
    """By what share of the student's the negative log-likelihood is higher; below 0: it is lower."""
    loss_of_accuracy: float
    """By what share of the student's the accuracy is lower."""


class CheckRecord(Comparison, frozen=True, kw_only=True):
    """What it was asked, and what was demanded of the answers."""

    rule: str
    """`log-probability`: `largest_difference` must be within `tolerance`, in nats; `score`: both losses must be."""
    tolerance: float
    store_digest: str
    """Of the held-out store."""
    rows: int
    examples: int


class SourceRecord(Record, frozen=True, kw_only=True):
    """What was exported."""

    run_sha256: str
    """Of the run's `run.json`."""
    weights: str
    """`student`, `ema` or `best`."""
    weights_sha256: dict[str, str]
    """Of each weight file of the run that was read."""
    store_digest: str
    """What it was trained on."""
    tokenizer_sha256: str
    teachers: dict[str, str]
    """sha256 of each one's weights, by name."""
    corpora: list[str]
    licences: list[str]
    """Of the targets."""


class ExportRecord(SealedRecord, frozen=True, kw_only=True):
    """An export."""

    kind: str
    domain: str
    parameters: int
    """Of the student, tied ones once."""
    model: str
    """The file to open, or `.`: the folder."""
    opset: int | None
    inputs: dict[str, list[str]]
    """Of each input of the model, the names of its axes; an axis named in words may have any length."""
    details: dict[str, Any]
    """What else decided it, such as how it was quantised."""
    versions: dict[str, str]
    source: SourceRecord
    check: CheckRecord

    @property
    def model_bytes(self) -> int:
        """Bytes of the model alone, without tokenizer, card and so on."""
        return sum(f.bytes for name, f in self.files.items() if _is_model(name, self.model))


def _is_model(name: str, model: str) -> bool:
    return name.endswith(".safetensors") if model == "." else name.startswith(model)


EXPORT = Seal(
    RECORD,
    FORMAT,
    VERSION,
    ExportRecord,
    "copy it again from its source, or export the run again",
)


def read_export(folder: Path) -> ExportRecord:
    """Read an export's record and compare its files with it.

    Raises:
        RunError: not an export, or of a newer version.
        IntegrityError: the record or a file is missing or altered.
    """
    try:
        return read_seal(folder, EXPORT)
    except (FileNotFoundError, NotADirectoryError) as e:
        raise RunError(
            f"{folder}: not an export ({RECORD}: {e.strerror}); give a folder that `softtrain export --out` made"
        ) from e
    except FormatError as e:
        raise RunError(str(e)) from e
