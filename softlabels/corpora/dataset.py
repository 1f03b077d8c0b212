"""`dataset:PATH`: a Hugging Face dataset as `save_to_disk` left it, read as Parquet is; a column is `PATH#COLUMN`.

Of a dataset with several splits, give the folder of one: `dataset:PATH/train`. The Arrow files are mapped, not
loaded, in the order that the dataset's own state names; the `datasets` library is not needed.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa

from softlabels.core.rows import Location
from softlabels.corpora import BytesRead, Corpus, Document
from softlabels.corpora.parquet import columns_of, documents_in, split_column, without_first
from softlabels.errors import CorpusError

STATE, SPLITS = "state.json", "dataset_dict.json"


class SavedDataset(Corpus):
    """Every row is one document."""

    def __init__(self, argument: str) -> None:
        self.spec = f"dataset:{argument}"
        path, self._column = split_column(argument)
        self._folder = Path(path)
        self.paths = [self._folder]
        if (self._folder / SPLITS).is_file():
            splits = sorted(p.parent.name for p in self._folder.glob(f"*/{STATE}"))
            raise CorpusError(
                f"--corpus dataset:{path}: has splits {', '.join(splits)}; choose one, e.g. dataset:{path}/{splits[0]}"
                if splits
                else f"--corpus dataset:{path}: has no split"
            )
        if not (self._folder / STATE).is_file():
            raise CorpusError(
                f"--corpus dataset:{path}: no {STATE} there; expected a folder that Dataset.save_to_disk made"
            )

        self.read: BytesRead = BytesRead.of(p for p in self._files() if p.is_file())

    def documents(self) -> Iterator[Document]:
        """One document per row."""
        return self.documents_from(Location())

    def documents_from(self, location: Location) -> Iterator[Document]:
        """From a row on; batches before it are passed over by their heads."""
        begin = location
        for number, file in enumerate(self._files()[location.file :], location.file):
            try:
                with pa.memory_map(str(file)) as source:
                    reader = pa.ipc.open_stream(source)
                    columns = columns_of(reader.schema, self._column, str(file))
                    batches = (b.select(columns.names) for b in without_first(reader, begin.row))
                    yield from documents_in(batches, columns, str(file), begin)
                    begin = Location(file=number + 1)
                    self.read.done += file.stat().st_size
            except (OSError, pa.ArrowException) as e:
                raise CorpusError(f"{file}: cannot be read as an Arrow stream ({e})") from e

    def _files(self) -> list[Path]:
        where = self._folder / STATE
        try:
            state = json.loads(where.read_text(encoding="utf-8"))
            names = [str(f["filename"]) for f in state["_data_files"]]
        except (OSError, ValueError, KeyError, TypeError) as e:
            raise CorpusError(f"{where}: does not name the dataset's files ({e})") from e
        if state.get("_indices_files"):
            raise CorpusError(
                f"{where}: rows are a choice among those of its files; flatten it (Dataset.flatten_indices) and save "
                "again"
            )
        for name in names:
            if Path(name).name != name:
                raise CorpusError(f"{where}: names {name!r}, which does not lie in the folder")
        return [self._folder / name for name in names]
