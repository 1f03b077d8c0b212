"""A corpus that is named by its path alone: which kind its suffix, or what a folder holds, says that it is.

`book.txt` is `text:book.txt`. What cannot be told for certain is refused, with what to type instead.
"""

from __future__ import annotations

import glob
from pathlib import Path

from softlabels.corpora import CORPORA
from softlabels.errors import ConfigError

SUFFIXES = {
    **dict.fromkeys((".txt", ".md", ".rst", ".text"), "text"),
    **dict.fromkeys((".jsonl", ".ndjson"), "jsonl"),
    ".parquet": "parquet",
    ".npy": "ids",
}
COMPRESSED = (".gz", ".zst", ".bz2", ".xz", ".zip")
SAVED = ("state.json", "dataset_dict.json")
"""Files that `Dataset.save_to_disk` writes."""


def spelled_out(spec: str) -> str:
    """`KIND:ARGUMENT` of what a user gave as `--corpus`, spelt so or not.

    Raises:
        ConfigError: a path whose kind cannot be told; says what to type.
    """
    kind, colon, _ = spec.partition(":")
    if not spec or (colon and (kind in CORPORA or not _is_path(spec))):
        return spec
    path, hash_, column = spec.partition("#")
    pattern = Path(path)
    if pattern.is_dir():
        return _folder(pattern) + hash_ + column
    suffix = pattern.suffix.lower()
    if suffix in SUFFIXES:
        if not glob.glob(path, recursive=True):
            raise ConfigError(f"--corpus {spec}: no such file (looked in {Path.cwd()})")
        return f"{SUFFIXES[suffix]}:{spec}"
    raise ConfigError(f"--corpus {spec}: {_explained(pattern, suffix)}")


def _is_path(spec: str) -> bool:
    """Whether a colon in it is part of a file's name, as in `notes: part 1.txt`."""
    return Path(spec.partition("#")[0]).exists()


def _folder(folder: Path) -> str:
    if any((folder / name).is_file() for name in SAVED):
        return f"dataset:{folder}"
    found: dict[str, str] = {}
    for path in sorted(p for p in folder.iterdir() if p.is_file()):
        kind = SUFFIXES.get(path.suffix.lower())
        if kind is not None:
            found.setdefault(path.suffix, kind)
    if len(found) == 1:
        ((suffix, kind),) = found.items()
        return f"{kind}:{folder}/*{suffix}"
    if found:
        choices = " or ".join(f"--corpus '{kind}:{folder}/*{s}'" for s, kind in found.items())
        raise ConfigError(
            f"--corpus {folder}: the folder holds files of several kinds; say {choices}"
        )
    raise ConfigError(
        f"--corpus {folder}: the folder holds no {', '.join(SUFFIXES)} of its own; for files in folders below it, say "
        f"--corpus 'text:{folder}/**/*.txt'"
    )


def _explained(path: Path, suffix: str) -> str:
    if suffix in COMPRESSED:
        return f"is compressed; unpack it first, then name {path.stem}"
    if suffix == ".json":
        return (
            f"one JSON value is not read; write a record a line (jq -c '.[]' {path} > {path.stem}.jsonl) and name "
            f"that, or, if its lines are records already, say --corpus jsonl:{path}"
        )
    if suffix in (".csv", ".tsv"):
        return (
            "tables of text are not read; save it as Parquet (in Python: pandas.read_csv(…).to_parquet(…)) and name "
            "its column: --corpus parquet:FILE#COLUMN"
        )
    if not path.exists() and not glob.glob(str(path), recursive=True):
        return f"no such file or folder (looked in {Path.cwd()}); expected a path, or KIND:PATH, e.g. text:book.txt"
    return f"its kind cannot be told from its name; for plain text say --corpus 'text:{path}'"
