"""Arrays that somebody else made: a file of a few bytes does not take the machine's memory."""

from __future__ import annotations

import io
import zipfile

import numpy as np
import pytest

from softlabels.core import npz
from softlabels.domains.image_classification.arrays import ImageArrays
from softlabels.errors import CorpusError
from softlabels.interchange.arrays import read


def declared(path, name, shape, dtype, data=b"", **how):
    """A file with one array that says it has this shape."""
    head = io.BytesIO()
    about = {"descr": np.dtype(dtype).str, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(head, about)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr(f"{name}.npy", head.getvalue() + data, **how)
    return path


def refused(path):
    """By both that read such files, in our words."""
    with pytest.raises(CorpusError, match=r"a\.npz") as e:
        ImageArrays(str(path))
    with pytest.raises(CorpusError, match=r"a\.npz"):
        next(read(path))
    return str(e.value)


def test_a_shape_that_no_memory_holds(tmp_path):
    path = declared(tmp_path / "a.npz", "images", (2**55, 8, 8), np.uint8)
    assert "says that it holds more than memory does" in refused(path)


def test_zeros_that_unpack_to_more_than_a_file_of_its_size_may(tmp_path, monkeypatch):
    monkeypatch.setattr(npz, "ALWAYS", 10_000)
    path = declared(tmp_path / "a.npz", "images", (2000, 8, 8), np.uint8, bytes(128_000))
    assert path.stat().st_size * 100 < 128_000
    assert "would unpack to 128128 bytes, more than 100 times its size" in refused(path)
    monkeypatch.setattr(npz, "ALWAYS", 200_000)
    assert len(ImageArrays(str(path))) == 2000


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_other_ways_to_compress(tmp_path, method):
    path = declared(
        tmp_path / "a.npz", "images", (2, 8, 8), np.uint8, bytes(128), compress_type=method
    )
    assert len(ImageArrays(str(path))) == 2


def test_a_file_within_a_file(tmp_path):
    inner = declared(tmp_path / "inner.npz", "images", (2, 8, 8), np.uint8, bytes(128))
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as file:
        file.writestr("images.npy", inner.read_bytes())
    assert "its entry 'images' is no array" in refused(tmp_path / "a.npz")
