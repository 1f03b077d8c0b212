"""`export.json`: what an export is, what it was made from, how it was checked, and the sha256 of each of its files."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import msgspec

from softlabels.errors import IntegrityError, RunError
from softlabels.store.records import canonical

__all__ = [
    "RECORD",
    "CheckRecord",
    "ExportRecord",
    "FileRecord",
    "SourceRecord",
    "describe_files",
    "read_export",
    "write_export",
]

RECORD = "export.json"
FORMAT, VERSION = "softlabels-export", "1.0"
BLOCK = 2**20


class _Record(msgspec.Struct, frozen=True, kw_only=True):
    pass


class FileRecord(_Record, frozen=True, kw_only=True):
    """One file of the export."""

    sha256: str
    bytes: int


class CheckRecord(_Record, frozen=True, kw_only=True):
    """How the export answered on real rows, beside the PyTorch student on the same rows."""

    rule: str
    """`log-probability`: `largest_difference` must be within `tolerance`, in nats; `score`: both losses must be."""
    tolerance: float
    store_digest: str
    """Of the held-out store."""
    rows: int
    examples: int
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


class SourceRecord(_Record, frozen=True, kw_only=True):
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


class ExportRecord(_Record, frozen=True, kw_only=True):
    """An export."""

    format: str
    version: str
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
    files: dict[str, FileRecord]
    """All but this record."""
    digest: str
    """Over all of the above."""

    @property
    def model_bytes(self) -> int:
        """Bytes of the model alone, without tokenizer, card and so on."""
        return sum(f.bytes for name, f in self.files.items() if _is_model(name, self.model))


def _is_model(name: str, model: str) -> bool:
    return name.endswith(".safetensors") if model == "." else name.startswith(model)


def describe_files(folder: Path) -> dict[str, FileRecord]:
    """Size and sha256 of each file of a flat folder."""
    found = {}
    for path in sorted(folder.iterdir()):
        with path.open("rb") as f:
            digest = hashlib.file_digest(f, "sha256").hexdigest()
        found[path.name] = FileRecord(sha256=digest, bytes=path.stat().st_size)
    return found


def write_export(folder: Path, record: ExportRecord) -> ExportRecord:
    """Write the record with its digest."""
    sealed = msgspec.structs.replace(record, digest=_digest(msgspec.to_builtins(record)))
    (folder / RECORD).write_bytes(canonical(sealed))
    return sealed


def _digest(builtins: dict[str, Any]) -> str:
    rest = {name: value for name, value in builtins.items() if name != "digest"}
    return hashlib.sha256(canonical(rest)).hexdigest()


def read_export(folder: Path, *, contents: bool = True) -> ExportRecord:
    """Read an export's record and compare its files with it.

    Args:
        folder: of the export.
        contents: False to look at sizes only.

    Raises:
        RunError: not an export, or of a newer version.
        IntegrityError: the record or a file is missing or altered.
    """
    path = folder / RECORD
    remedy = "copy it again from its source, or export the run again"
    try:
        data = path.read_bytes()
    except OSError as e:
        raise RunError(
            f"{folder}: not an export ({RECORD}: {e.strerror}); give a folder that `softtrain export --out` made"
        ) from e
    try:
        raw = msgspec.json.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError) as e:
        raise IntegrityError(f"{path}: not valid JSON ({e}); {remedy}") from e
    if not isinstance(raw, dict) or raw.get("format") != FORMAT:
        raise RunError(f'{path}: its "format" is not {FORMAT!r}; give an export\'s folder')
    if str(raw.get("version")).split(".")[0] != VERSION.split(".")[0]:
        raise RunError(
            f"{path}: version {raw.get('version')}, this softlabels reads {VERSION}; upgrade softlabels"
        )
    if raw.get("digest") != _digest(raw):
        raise IntegrityError(f"{path}: its digest does not match its content: altered; {remedy}")
    try:
        record = msgspec.convert(raw, ExportRecord)
    except msgspec.ValidationError as e:
        raise RunError(f"{path}: not a valid record of an export: {e}") from e
    for name, file in record.files.items():
        if name in (".", "..") or "/" in name or "\\" in name:
            raise IntegrityError(
                f"{path}: {name!r} is not the name of a file of an export; {remedy}"
            )
        _compare(folder / name, file, contents=contents, remedy=remedy)
    return record


def _compare(path: Path, file: FileRecord, *, contents: bool, remedy: str) -> None:
    try:
        size = path.stat().st_size
        if size != file.bytes:
            raise IntegrityError(f"{path}: {size} bytes, {RECORD} says {file.bytes}; {remedy}")
        if contents:
            with path.open("rb") as f:
                found = hashlib.file_digest(f, "sha256").hexdigest()
            if found != file.sha256:
                raise IntegrityError(
                    f"{path}: sha256 is {found}, {RECORD} says {file.sha256}: altered; {remedy}"
                )
    except IntegrityError:
        raise
    except OSError as e:
        raise IntegrityError(f"{path}: cannot be read ({e.strerror}); {remedy}") from e
