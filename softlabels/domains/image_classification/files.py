"""`images:FOLDER`, and decoding."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np

from softlabels.domains.image_classification.pixels import Pixels
from softlabels.errors import CorpusError, MissingExtraError

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".ppm", ".pgm", ".tif", ".tiff", ".webp")
MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr")
"""Pillow's modes of 8 bits a channel or less."""


def decode(data: bytes, where: str) -> Pixels:
    """The pixels `[H, W, 3] uint8` of an encoded image; of several frames the first.

    Raises:
        CorpusError: it is none, is torn, or has more than 8 bits a channel.
        MissingExtraError: Pillow is not installed.
    """
    try:
        from PIL import Image
    except ImportError as e:
        raise MissingExtraError("Pillow", "vision", "decoding images") from e
    try:
        with Image.open(io.BytesIO(data)) as image:
            mode = image.mode
            pixels = np.asarray(image.convert("RGB")) if mode in MODES else None
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as e:
        raise CorpusError(f"{where}: cannot be decoded as an image ({e}); remove it") from e
    if pixels is None:
        raise CorpusError(
            f"{where}: has more than 8 bits a channel (mode {mode}); convert it to 8 bits first"
        )
    return pixels


class ImageFolder:
    """Image files below a folder; the folder right below it that a file is in is its class."""

    def __init__(self, argument: str) -> None:
        self._folder = folder = Path(argument)
        if not folder.is_dir():
            raise CorpusError(f"images:{argument}: no such folder")
        paths = [p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file()]
        self._paths = sorted(paths, key=lambda p: p.relative_to(folder).as_posix())
        if not paths:
            raise CorpusError(f"images:{argument}: no image files ({', '.join(SUFFIXES)}) there")
        flat = [p for p in self._paths if p.parent == folder]
        if flat and len(flat) < len(paths):
            raise CorpusError(
                f"images:{argument}: has images both beside its folders (such as {flat[0].name}) and in them; put each "
                "into the folder of its class, or all in one folder without any"
            )
        self._labelled = not flat

    def __len__(self) -> int:
        return len(self._paths)

    def image(self, number: int) -> Pixels:
        """Decoded anew each time."""
        path = self._paths[number]
        try:
            data = path.read_bytes()
        except OSError as e:
            raise CorpusError(f"{path}: cannot be read ({e.strerror})") from e
        return decode(data, str(path))

    def label(self, number: int) -> str | None:
        """The name of its folder."""
        if not self._labelled:
            return None
        return self._paths[number].relative_to(self._folder).parts[0]

    def where(self, number: int) -> str:
        """Its path."""
        return str(self._paths[number])
