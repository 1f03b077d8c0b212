"""`image-classification`: one class for a view of an image; rows are `ImageRow` with one position.

A row names its view, and some hold a check of its pixels, none the pixels: they are made again from the image, to the
bit, once the row knows where the images lie (`ImageRow.bound`).

    sources.py   images by number, from folders, Parquet, arrays or idx files
    recipe.py    `crop:4,flip,mixup:0.2`: how views differ from their image
    draws.py     all that is random about a view, from (seed, image, view) alone
    pixels.py    the arithmetic, exact on every machine
    views.py     all of these together

NumPy only; Pillow decodes JPEG, PNG and the like, and is not needed for arrays.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from softlabels.core.rows import UNLABELLED, Int32, Int64, OneDocument, PaddedRows
from softlabels.domains import Domain
from softlabels.domains.image_classification.pixels import Pixels
from softlabels.domains.image_classification.views import ImageViews, is_checked
from softlabels.errors import IntegrityError, PairingError
from softlabels.format.columns import Column
from softlabels.format.identity import Identity

NAME = "image-classification"
CHECKS = 2**8


@dataclass(frozen=True, kw_only=True, eq=False)
class ImageRow(OneDocument):
    """A view of an image."""

    view: int
    """Which of its views, from 0."""
    label: int
    """Its class; `UNLABELLED` where it is not known, or where two classes are mixed in it."""
    check: int | None
    """The first byte of the digest of its pixels; None: it is not one of the views that are checked."""
    views: ImageViews | None = None
    """What makes its pixels; None where nobody said where the images lie."""
    n = size = 1

    def bound(self, views: ImageViews) -> ImageRow:
        """The row, with its pixels to be had."""
        return replace(self, views=views)

    def renumbered(self, documents: int) -> Self:
        """Always an `IntegrityError`: an image's number decides how its views are drawn."""
        raise IntegrityError(
            f"a shard of images is numbered on by {documents} (documents_from), but an image's number decides its views"
        )

    @property
    def positions(self) -> Int64:
        """`[1]`: 0."""
        return np.zeros(1, np.int64)

    @property
    def labels(self) -> Int32:
        """`[1] int32`."""
        return np.array([self.label], np.int32)

    @property
    def context(self) -> Int32:
        """`[1] int32`: the label, or 0."""
        return np.array([max(self.label, 0)], np.int32)

    @property
    def inputs(self) -> dict[str, npt.NDArray[Any]]:
        """`document`, `view`, `labels`, each `[1]`, and, if it is bound, `pixels [3, S, S] float32`."""
        numbers: dict[str, npt.NDArray[Any]] = {
            "document": self.documents,
            "view": np.array([self.view], np.int32),
            "labels": self.labels,
        }
        if self.views is not None:
            numbers["pixels"] = self.views.feed([self.pixels()])[0]
        return numbers

    def pixels(self) -> Pixels:
        """`[S, S, 3] uint8`, the very ones that the teacher saw.

        Raises:
            PairingError: it does not know where the images lie.
            CorpusError: the images there, or what is made of them, are others.
        """
        if self.views is None:
            raise PairingError(
                f"image {self.document}, view {self.view}: a store of images holds no pixels; say where they lie: "
                "--images arrays:FILE.npz or the like, in Python open_store(…, images=…)"
            )
        return self.views.checked(self.document, self.view, self.check)

    @property
    def title(self) -> str:
        """`image 3, view 1`."""
        return f"image {self.document}, view {self.view}"

    def before(self, position: int) -> Int32:
        """None."""
        return np.zeros(0, np.int32)

    def place(self, position: int) -> str:
        """`view 1`."""
        return f"view {self.view}"

    def digest(self) -> bytes:
        """16 bytes that name these inputs (docs/format.md)."""
        h = hashlib.sha256(b"softlabels image-classification row 1\n")
        for number in (self.document, self.view, self.label, self.check or 0):
            h.update(number.to_bytes(8, "little", signed=True))
        return h.digest()[:16]

    @staticmethod
    def pad(rows: Sequence[ImageRow]) -> PaddedRows:
        """`pixel_values [B, 3, S, S] float32`."""
        pixels = [r.pixels() for r in rows]
        views = rows[0].views
        assert views is not None, "pixels() refuses rows without"
        return PaddedRows.of(rows, {"pixel_values": views.feed(pixels)}, width=1)


class ImageClassification(Domain):
    """A view of an image is a row."""

    name = NAME
    numbers = (
        ("document", np.int64),
        ("view", np.int32),
        ("label", np.int32),
        ("check", np.int32),
    )
    packed_digest_bytes = 0
    """It would name what the row holds, as the shard's digest does; the check names what it does not hold: pixels."""
    classified = True
    student = "--images IMAGES --student cnn:16x3"
    transformers = "AutoModelForImageClassification"

    def rows_of(
        self, columns: Mapping[str, Column], identity: Identity, *, where: str
    ) -> list[ImageRow]:
        """The rows of these columns; `IntegrityError` if one has a check where there is none."""
        every = (identity.images and identity.images.check_every) or 1
        rows = []
        for record in self.records(columns):
            row = ImageRow(**record)
            if not is_checked(row.document, row.view, every):
                if row.check:
                    raise IntegrityError(
                        f"{where}: image {row.document}, view {row.view} has the check {row.check}, but is none of the "
                        f"views that are checked (check_every is {every})"
                    )
                row = replace(row, check=None)
            rows.append(row)
        return rows

    def check(self, row: ImageRow, identity: Identity, *, where: str) -> None:
        """Images and views that there are, a class of the teacher."""
        record = identity.images
        if record is None:
            raise IntegrityError(f"{where}: the manifest says nothing of the images (no `images`)")
        for what, value, least, end in (
            ("image", row.document, 0, record.images),
            ("view", row.view, 0, record.views),
            ("label", row.label, UNLABELLED, identity.teacher.vocab_size),
            ("check", row.check or 0, 0, CHECKS),
        ):
            if not least <= value < end:
                raise IntegrityError(f"{where} has {what} {value}, outside {least}..{end - 1}")


DOMAIN = ImageClassification()
