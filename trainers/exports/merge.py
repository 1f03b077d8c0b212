"""`--merge`: a student's adapter added to its base, as one model.

Merged is what the student computed with: a base of few bits becomes the float32 numbers that its bits stand for. The
export's check compares the merged model with base and adapter side by side.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from softlabels.errors import ConfigError
from softlabels.store.tokenizer_files import is_tokenizer_file
from trainers.exports.formats import Format
from trainers.students import Student
from trainers.students.adapters import Base, peft
from trainers.students.hf import load_base


def check_merge(student: Student, form: Format, *, merge: bool, what: str) -> None:
    """Refuse to merge where there is no adapter, and a format that cannot have one beside its base.

    Raises:
        ConfigError: says whether to give --merge.
    """
    if student.adapter is None and merge:
        raise ConfigError(f"--merge: {what} has no adapter; leave it out")
    if student.adapter is not None and not (merge or form.takes_adapters):
        raise ConfigError(
            f"--format {form.name}: {what} is an adapter beside its base; give --merge, which exports both as one model"
        )


@contextmanager
def source_of(student: Student, folder: Path, *, merge: bool) -> Iterator[Path]:
    """The folder to export from: the student's own, or one with the merged model, gone afterwards."""
    if not merge or student.adapter is None:
        yield folder
        return
    with TemporaryDirectory(prefix="softtrain-merge-") as scratch:
        path = Path(scratch)
        for file in (p for p in folder.rglob("*") if p.is_file()):
            name = file.relative_to(folder).as_posix()
            if is_tokenizer_file(name):
                (path / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(file, path / name)
        _merged(student.adapter.base, folder).save_pretrained(path)
        yield path


def _merged(base: Base, folder: Path) -> Any:
    where = f"--merge: {folder}"
    model = load_base(base, where=where)
    if base.quant is not None:
        model = model.dequantize()
    return peft(where).PeftModel.from_pretrained(model, str(folder)).merge_and_unload()
