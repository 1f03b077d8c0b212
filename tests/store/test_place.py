"""The six verbs over a folder and over a bucket; a service that ignores preconditions is refused."""

from __future__ import annotations

import pytest

from softlabels.core.records import FILE_LIMIT
from softlabels.errors import ConfigError, IntegrityError, RemoteError
from softlabels.format.files import Recorded
from softlabels.making.place import TRIED, FolderPlace
from softlabels.making.place.finish import PlacePages
from softlabels.store.remote.bucket import BucketPlace, probe
from softlabels.store.remote.client import Client
from softlabels.store.remote.push import probe as probe_push
from tests.store.memory_place import MemoryPlace
from tests.store.places import check_place
from tests.store.s3 import Proxy, environment, s3_server


@pytest.fixture(scope="module")
def server():
    with s3_server() as url:
        yield url


@pytest.fixture
def bucket(server, tmp_path, monkeypatch, request):
    """Address of a prefix of its own."""
    for name, value in environment(server, tmp_path / "cache").items():
        monkeypatch.setenv(name, value)
    return f"s3://bucket/{request.node.name}"


def test_a_folder_is_a_place(tmp_path):
    check_place(lambda: FolderPlace(tmp_path))


def test_a_bucket_is_a_place(bucket):
    check_place(lambda: BucketPlace(bucket), threads=4)


def test_a_service_that_obeys_preconditions_passes_the_probe(bucket):
    place = BucketPlace(bucket)
    probe(place)
    assert place.client.list() == {}


def test_a_service_that_ignores_them_is_refused_in_a_sentence(bucket, monkeypatch):
    def overwrites(client, name, content):
        client.put(name, content)
        return "a version"

    place = BucketPlace(bucket)
    for verb, header in (("put_new", "If-None-Match"), ("put_if", "If-Match")):
        with monkeypatch.context() as m:
            m.setattr(Client, verb, lambda c, name, content, *_: overwrites(c, name, content))
            with pytest.raises(
                RemoteError, match=rf"ignores preconditions .* {header}, or build in"
            ):
                probe(place)
        assert place.client.list() == {}


@pytest.mark.parametrize("url", ["hf://datasets/a/b", "https://host/store"])
def test_what_cannot_be_written_file_by_file_is_refused(url):
    with pytest.raises(ConfigError, match="a store cannot be built there"):
        BucketPlace(url)


def test_an_answer_that_was_lost_is_not_taken_for_anothers(bucket, monkeypatch):
    """The request was carried out; made again, it meets its own doing."""
    real = Client.put_new

    def lost(client, name, content):
        assert real(client, name, content) is not None
        client.repeats += 1
        return real(client, name, content)

    monkeypatch.setattr(Client, "put_new", lost)
    place = BucketPlace(bucket)
    version = place.create("claims/00000000.json", b"mine")
    assert place.read("claims/00000000.json", limit=9) == (b"mine", version)


def test_a_service_that_ignores_preconditions_is_refused_where_a_store_was_begun(
    bucket, monkeypatch
):
    place = BucketPlace(bucket)
    for _ in range(2):  # the first makes the file by which it is tried out
        probe(place, True)
    assert list(place.client.list() or ()) == [TRIED]

    def overwrites(client: Client, name: str, content: bytes, *_: object) -> str:
        client.put(name, content)
        return "a version"

    for verb, header in (("put_new", "If-None-Match"), ("put_if", "If-Match")):
        with monkeypatch.context() as m:
            m.setattr(Client, verb, overwrites)
            with pytest.raises(
                RemoteError, match=rf"ignores preconditions .* {header}, or build in"
            ):
                probe(place, True)


def test_a_service_that_tells_no_etags_is_refused_at_once_and_its_probe_removed(
    server, bucket, tmp_path, monkeypatch
):
    with Proxy(server) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        proxy.without = b"ETag"
        place = BucketPlace(bucket)
        for how in (lambda: probe(place), lambda: probe_push(Client(bucket))):
            with pytest.raises(RemoteError, match=r"tells no version \(ETag\) .*; use a service"):
                how()
            assert place.client.list() == {}
        with pytest.raises(RemoteError, match=r"tells no version \(ETag\)"):
            probe(place, True)
        assert sum(r.startswith("PUT") for r in proxy.requests) == 3, "none is tried again"


def test_a_page_is_not_read_beyond_any_file(monkeypatch):
    place, limits = MemoryPlace(), []

    def read(name: str, *, limit: int) -> tuple[bytes, str]:
        limits.append(limit)
        raise FileNotFoundError(name)

    monkeypatch.setattr(place, "read", read)
    with pytest.raises(IntegrityError, match="missing"):
        PlacePages(place).checked(Recorded("pages/a", "0" * 64, 2**60))
    assert limits == [FILE_LIMIT]
