"""Arrays of an `.npz` file that anyone may have made: what it unpacks to is bounded before it is unpacked."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

ALWAYS = 2**30
"""Bytes that any file may unpack to."""
RATIO = 100
"""How many times its own size a larger one may; a deflated byte can stand for a thousand."""


def read_npz(path: str | Path, names: Sequence[str]) -> dict[str, npt.NDArray[Any]]:
    """Those of these arrays that are there; `ValueError` if it cannot be read, or would take too much memory."""
    most = max(ALWAYS, RATIO * Path(path).stat().st_size)
    try:
        with zipfile.ZipFile(path) as archive:
            size = sum(e.file_size for e in archive.infolist() if e.filename[:-4] in names)
        if size > most:
            raise ValueError(
                f"would unpack to {size} bytes, more than {RATIO} times its size; write it with np.savez"
            )
        with np.load(path, allow_pickle=False) as file:
            found = {name: file[name] for name in names if name in file.files}
    except MemoryError as e:
        raise ValueError(f"says that it holds more than memory does: {e}") from e
    except (
        EOFError,
        zipfile.BadZipFile,
        zlib.error,
        AttributeError,
        TypeError,
        NotImplementedError,
    ) as e:
        raise ValueError(str(e)) from e
    # Of an entry that is no array numpy hands out the bytes.
    if strangers := [n for n, a in found.items() if not isinstance(a, np.ndarray)]:
        raise ValueError(f"its entry {strangers[0]!r} is no array")
    return found
