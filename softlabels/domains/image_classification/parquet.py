"""`image-parquet:GLOB`: encoded images in Parquet, as `datasets` and others write them."""

from __future__ import annotations

import bisect
import glob
from collections import OrderedDict
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from softlabels.domains.image_classification.files import decode
from softlabels.domains.image_classification.pixels import Pixels
from softlabels.errors import CorpusError

HELD = 4
"""Row groups in memory: a trainer's rows come from a few places at a time."""


class ImageParquet:
    """Columns `image` and perhaps `label`, of all files in order of name."""

    def __init__(self, argument: str) -> None:
        paths = sorted(glob.glob(argument, recursive=True))
        if not paths:
            raise CorpusError(f"image-parquet:{argument}: no such file")
        self._files: dict[str, Any] = {}
        self._groups: list[tuple[str, int]] = []
        self._ends: list[int] = []
        for path in paths:
            self._open(path)
        if not self._ends or self._ends[-1] == 0:
            raise CorpusError(f"image-parquet:{argument}: holds no image")
        self._held: OrderedDict[int, list[dict[str, Any]]] = OrderedDict()

    def _open(self, path: str) -> None:
        try:
            file = pq.ParquetFile(path)
        except (OSError, pa.ArrowException) as e:
            raise CorpusError(f"{path}: not a Parquet file that can be read ({e})") from e
        schema = file.schema_arrow
        kind = schema.field("image").type if "image" in schema.names else None
        encoded: Any = kind
        if _has_bytes(kind):
            encoded = schema.field("image").type.field("bytes").type
        if encoded is None or not (
            pa.types.is_binary(encoded) or pa.types.is_large_binary(encoded)
        ):
            raise CorpusError(
                f"{path}: expected a column 'image' of encoded bytes, or of a struct with 'bytes'; it has "
                f"{', '.join(f'{f.name}: {f.type}' for f in schema)}"
            )
        self._files[path] = file
        for group in range(file.num_row_groups):
            self._groups.append((path, group))
            before = self._ends[-1] if self._ends else 0
            self._ends.append(before + file.metadata.row_group(group).num_rows)

    def __len__(self) -> int:
        return self._ends[-1]

    def _row(self, number: int) -> dict[str, Any]:
        which = bisect.bisect_right(self._ends, number)
        if which not in self._held:
            path, group = self._groups[which]
            file = self._files[path]
            names = [n for n in ("image", "label") if n in file.schema_arrow.names]
            try:
                self._held[which] = file.read_row_group(group, columns=names).to_pylist()
            except (OSError, pa.ArrowException) as e:
                raise CorpusError(f"{path}: row group {group} cannot be read ({e})") from e
            while len(self._held) > HELD:
                self._held.popitem(last=False)
        self._held.move_to_end(which)
        return self._held[which][number - (self._ends[which - 1] if which else 0)]

    def image(self, number: int) -> Pixels:
        """Decoded anew each time."""
        image = self._row(number)["image"]
        data = image.get("bytes") if isinstance(image, dict) else image
        if not data:
            raise CorpusError(
                f"{self.where(number)}: has no bytes; a file that names image files elsewhere has to be "
                "written again with their bytes"
            )
        return decode(data, self.where(number))

    def label(self, number: int) -> str | int | None:
        """As it is there."""
        label: str | int | None = self._row(number).get("label")
        return label

    def where(self, number: int) -> str:
        """File, row group and row."""
        which = bisect.bisect_right(self._ends, number)
        path, group = self._groups[which]
        return f"{path}: row group {group}, row {number - (self._ends[which - 1] if which else 0)}"


def _has_bytes(kind: Any) -> bool:
    return kind is not None and pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0
