"""Images from folders, Parquet, arrays and idx files: the same pixels from each, and every bad file has a sentence."""

from __future__ import annotations

import gzip
import io

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from softlabels.domains.image_classification.sources import open_images
from softlabels.errors import ConfigError, CorpusError, MissingExtraError
from tests.domains.pictures import IMAGES, SAMPLE

FLAG = "--corpus"


@pytest.fixture(scope="module")
def sample():
    with np.load(SAMPLE) as file:
        return file["images"][:12], file["labels"][:12]


def png(image: np.ndarray) -> bytes:
    sink = io.BytesIO()
    Image.fromarray(image).save(sink, "PNG")
    return sink.getvalue()


def write_idx(folder, images, labels, *, packed=True):
    for name, array in (("images-idx3", images), ("labels-idx1", labels)):
        head = bytes([0, 0, 8, array.ndim])
        data = head + b"".join(n.to_bytes(4, "big") for n in array.shape) + array.tobytes()
        path = folder / f"few-{name}-ubyte{'.gz' if packed else ''}"
        path.write_bytes(gzip.compress(data) if packed else data)


def write_kind(kind, folder, images, labels):
    if kind == "images":
        for i, (image, label) in enumerate(zip(images, labels, strict=True)):
            (folder / "set" / f"class{label}").mkdir(parents=True, exist_ok=True)
            (folder / "set" / f"class{label}" / f"{i:03}.png").write_bytes(png(image))
        return f"images:{folder / 'set'}"
    if kind == "arrays":
        np.savez_compressed(folder / "few.npz", images=images[..., None], labels=labels)
        return f"arrays:{folder / 'few.npz'}"
    if kind.startswith("idx"):
        write_idx(folder, images, labels, packed=kind == "idx.gz")
        return f"idx:{folder / 'few'}"
    encoded = [png(i) for i in images]
    if kind == "parquet-struct":
        encoded = [{"bytes": e, "path": None} for e in encoded]
    for part in (0, 1):  # two files of two row groups, and a column to be left alone
        half = slice(6 * part, 6 * part + 6)
        table = pa.table(
            {"image": encoded[half], "label": labels[half].tolist(), "note": ["x"] * 6}
        )
        pq.write_table(table, folder / f"{part}.parquet", row_group_size=4)
    return f"image-parquet:{folder}/*.parquet"


@pytest.mark.parametrize("kind", ["images", "arrays", "idx", "idx.gz", "parquet", "parquet-struct"])
def test_every_kind_gives_the_same_images(kind, tmp_path, sample):
    images, labels = sample
    source = open_images(write_kind(kind, tmp_path, images, labels), flag=FLAG)
    assert len(source) == 12
    order = np.lexsort((np.arange(12), labels)) if kind == "images" else np.arange(12)
    for place in [7, 0, 11, 3, *range(12)]:
        wanted = order[place]
        image = source.image(place)
        assert image.dtype == np.uint8
        np.testing.assert_array_equal(image, np.repeat(images[wanted][..., None], 3, axis=2))
        label = f"class{labels[wanted]}" if kind == "images" else labels[wanted]
        assert source.label(place) == label
        assert source.where(place)


def test_several_sources_are_one_after_another(sample):
    both = open_images([IMAGES, IMAGES], flag=FLAG)
    assert len(both) == 240
    np.testing.assert_array_equal(both.image(125), both.image(5))
    assert both.label(239) == both.label(119)
    assert both.where(120) == both.where(0)


def test_colours_stay_what_they_are(tmp_path):
    image = np.random.default_rng(0).integers(0, 256, (5, 7, 3), np.uint8)
    (tmp_path / "a.png").write_bytes(png(image))
    source = open_images(f"images:{tmp_path}", flag=FLAG)
    np.testing.assert_array_equal(source.image(0), image)
    assert source.label(0) is None


def test_labels_below_zero_are_not_known(tmp_path, sample):
    np.savez(tmp_path / "a.npz", images=sample[0], labels=np.where(sample[1] > 4, -1, 1))
    source = open_images(f"arrays:{tmp_path / 'a.npz'}", flag=FLAG)
    assert {source.label(i) for i in range(12)} == {None, 1}


def refused(spec, message, error=CorpusError):
    with pytest.raises(error, match=message):
        open_images(spec, flag=FLAG).image(0)


def test_bad_specs_and_folders(tmp_path, sample):
    refused("text:a", "--corpus text:a: images come from one of arrays:", ConfigError)
    refused("arrays", "expected NAME:ARGUMENT", ConfigError)
    refused(f"images:{tmp_path / 'none'}", "no such folder")
    refused(f"images:{tmp_path}", "no image files")
    (tmp_path / "a.png").write_bytes(b"not an image")
    refused(f"images:{tmp_path}", r"a\.png: cannot be decoded as an image")
    (tmp_path / "a.png").write_bytes(png(sample[0][0])[:-40])
    refused(f"images:{tmp_path}", r"a\.png: cannot be decoded")
    Image.fromarray(np.zeros((4, 4), np.uint16)).save(tmp_path / "a.png")
    refused(f"images:{tmp_path}", "more than 8 bits a channel")
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "b.png").write_bytes(png(sample[0][0]))
    refused(f"images:{tmp_path}", "both beside its folders")


def test_bad_arrays(tmp_path, sample):
    images, labels = sample
    path = tmp_path / "a.npz"
    refused(f"arrays:{path}", "not an .npz file")
    path.write_bytes(b"PK")
    refused(f"arrays:{path}", "not an .npz file")
    for arrays, message in (
        ({"labels": labels}, "has no array 'images'"),
        ({"images": images.astype(np.float32)}, "its images are float32"),
        ({"images": images[..., None].repeat(2, axis=3)}, "C 1 or 3"),
        ({"images": images, "labels": labels[:3]}, r"its labels are .* \[3\]"),
        ({"images": images, "labels": labels * 0.5}, "its labels are float64"),
    ):
        np.savez(path, **arrays)
        refused(f"arrays:{path}", message)


def test_bad_idx_files(tmp_path, sample):
    refused(f"idx:{tmp_path / 'few'}", "give what comes before -images")
    write_idx(tmp_path, *sample, packed=False)
    path = tmp_path / "few-images-idx3-ubyte"
    path.write_bytes(path.read_bytes()[:-1])
    refused(f"idx:{tmp_path / 'few'}", "not an idx file of 3 dimensions")
    path.unlink()
    (tmp_path / "few-images-idx3-ubyte.gz").write_bytes(b"\x1f\x8btorn")
    refused(f"idx:{tmp_path / 'few'}", "cannot be read")


def test_bad_parquet(tmp_path):
    refused(f"image-parquet:{tmp_path}/*.parquet", "no such file")
    path = tmp_path / "a.parquet"
    path.write_bytes(b"PAR1")
    refused(f"image-parquet:{path}", "not a Parquet file")
    pq.write_table(pa.table({"image": [1, 2]}), path)
    refused(f"image-parquet:{path}", "expected a column 'image' of encoded bytes.*image: int64")
    pq.write_table(pa.table({"image": [{"bytes": None, "path": "a.png"}] * 2}), path)
    refused(f"image-parquet:{path}", "of encoded bytes|has no bytes")


def test_without_pillow_arrays_can_be_read(tmp_path, sample, monkeypatch):
    (tmp_path / "a.png").write_bytes(png(sample[0][0]))
    monkeypatch.setitem(__import__("sys").modules, "PIL", None)
    assert len(open_images(IMAGES, flag=FLAG).image(0)) == 28
    refused(f"images:{tmp_path}", r"needs Pillow.*\[vision\]'", MissingExtraError)
