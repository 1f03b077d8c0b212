"""Stores at addresses: the same rows, every byte checked, no more fetched than read, patience with the network."""

from __future__ import annotations

import http.server
import os
import subprocess
import sys
import threading
import time
from functools import partial
from pathlib import Path
from typing import ClassVar

import numpy as np
import polars as pl
import pytest

import softlabels
from softlabels.errors import ConfigError, FormatError, IntegrityError, RemoteError
from softlabels.store.reader import open_store
from softlabels.store.remote.cache import CacheOptions
from softlabels.store.remote.client import Client
from softlabels.store.remote.files import RemoteFiles
from softlabels.store.verify import verify_store
from tests.store.s3 import Proxy, delete, environment, put, s3_server, upload

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def server():
    with s3_server() as url:
        yield url


@pytest.fixture
def proxy(server, tmp_path, monkeypatch):
    """A proxy before the server; the process uses it, and an empty cache."""
    with Proxy(server) as proxy:
        for name, value in environment(proxy.url, tmp_path / "cache").items():
            monkeypatch.setenv(name, value)
        yield proxy


@pytest.fixture
def url(built, server, request):
    return upload(built, server, request.node.name.replace("[", "-").replace("]", ""))


def same_rows(a, b) -> bool:
    return len(a) == len(b) and all(
        np.array_equal(x.row.input_ids, y.row.input_ids)
        and np.array_equal(x.targets.gaps, y.targets.gaps)
        for x, y in zip(a, b, strict=True)
    )


def test_the_same_rows_as_from_the_folder(built, url, proxy):
    store = open_store(url)
    assert str(store.path) == url
    assert store.digest == open_store(built).digest
    assert same_rows(store, open_store(built))
    assert store.file("README.md") == (built / "README.md").read_bytes()


def test_one_row_costs_one_shard_once(built, url, proxy):
    open_store(url).row(7)
    (path,) = proxy.gets("/data/")
    assert "train-00002-of-00003" in path
    open_store(url).row(7)
    assert len(proxy.gets("/data/")) == 1
    assert proxy.received < (built / "manifest.json").stat().st_size * 2 + 20_000 + max(
        p.stat().st_size for p in (built / "data").iterdir()
    )


def test_a_table_of_an_address_costs_the_shards_it_needs(built, url, proxy):
    wanted = pl.col("row") == 7
    table = softlabels.scan(url).filter(wanted).collect()
    assert len(table)
    assert table.equals(softlabels.scan(built).filter(wanted).collect())
    (path,) = proxy.gets("/data/")
    assert "train-00002-of-00003" in path


def test_a_copy_that_rotted_in_the_cache_is_fetched_again(built, url, proxy, tmp_path):
    store = open_store(url)
    sha = store.manifest.shards[2].sha256
    store.row(7)
    path = tmp_path / "cache" / sha
    data = bytearray(path.read_bytes())
    data[50] ^= 1
    path.write_bytes(data)
    assert same_rows([open_store(url).row(7)], [open_store(built).row(7)])
    assert len(proxy.gets("/data/")) == 2


@pytest.mark.parametrize("gib", [0, 1e-7])
def test_without_room_in_the_cache(built, url, proxy, tmp_path, gib):
    store = open_store(url, cache=CacheOptions(folder=str(tmp_path / "c"), gib=gib))
    assert same_rows(store, open_store(built))
    assert not (tmp_path / "c").exists()


@pytest.mark.parametrize("gib", [0, 1])
def test_a_flipped_bit_there_is_found_before_it_is_decoded(
    built, url, proxy, server, tmp_path, gib
):
    name = "data/train-00001-of-00003.parquet"
    data = bytearray((built / name).read_bytes())
    data[len(data) // 2] ^= 4
    put(server, f"{url.removeprefix('s3://bucket/')}/{name}", bytes(data))
    store = open_store(url, cache=CacheOptions(folder=str(tmp_path / "c"), gib=gib))
    store.row(0)
    with pytest.raises(IntegrityError, match=r"^s3://.*train-00001.*sha256 is .*the record says"):
        store.row(3)
    (problem,) = verify_store(url).problems
    assert problem.startswith(f"{url}/{name}: sha256 is")


@pytest.mark.parametrize(
    ("change", "message"),
    [(lambda d: d[:-9], "bytes"), (None, "missing")],
    ids=["torn", "missing"],
)
def test_a_shard_that_is_torn_or_missing_there(built, url, proxy, server, change, message):
    name = "data/train-00001-of-00003.parquet"
    place = f"{url.removeprefix('s3://bucket/')}/{name}"
    if change is None:
        delete(server, place)
    else:
        put(server, place, change((built / name).read_bytes()))
    with pytest.raises(IntegrityError, match=rf"train-00001.*{message}"):
        open_store(url).row(3)


def test_verify_reads_past_the_cache_and_finds_strangers(built, url, proxy, server):
    assert verify_store(url).problems == []
    list(open_store(url))
    put(server, f"{url.removeprefix('s3://bucket/')}/data/foreign.bin", b"x")
    shards = len(proxy.gets("/data/"))
    (problem,) = verify_store(url).problems
    assert (
        problem
        == f"{url}/data/foreign.bin: no record of the store names it; look at it, and move it to where it belongs"
    )
    assert len(proxy.gets("/data/")) == shards + 3


def test_no_store_there(proxy):
    with pytest.raises(FormatError, match=r"^s3://bucket/nothing: not a store"):
        open_store("s3://bucket/nothing")


def test_a_transfer_that_breaks_off_goes_on_where_it_was(built, server, proxy, tmp_path):
    data = os.urandom(3 * 2**20)
    put(server, "large", data)
    client, sink = Client("s3://bucket"), (tmp_path / "sink").open("w+b")
    proxy.break_after = 2 * 2**20
    with sink:
        client.fetch("large", sink, 0, len(data), threading.Event())
        sink.seek(0)
        assert sink.read() == data
    assert len(proxy.gets("large")) == 2
    assert proxy.received < 1.5 * len(data)  # a second whole answer would be 5/3


def test_a_place_that_is_away_ends_in_one_sentence(proxy):
    client = Client("s3://bucket/store", patience=0.5)
    proxy.cut()
    with pytest.raises(
        RemoteError, match=r"^s3://bucket/store/x: nothing came for 0.5 seconds \(.*\)"
    ):
        client.read("x", limit=10)


def test_a_place_that_comes_back_is_waited_for(built, url, proxy):
    store = open_store(url)
    proxy.cut()
    threading.Timer(1.0, proxy.mend).start()
    assert same_rows(store, open_store(built))


def test_giving_up_ends_reads_that_wait(built, url, proxy):
    store = open_store(url)
    proxy.cut()
    threading.Timer(0.5, store.give_up).start()
    with pytest.raises(RemoteError, match="given up"):
        store.read_shard(0)
    start = time.perf_counter()
    store.ahead([0, 1])
    for shard in (0, 1):  # those that begin later do not wait, either
        with pytest.raises(RemoteError, match="given up"):
            store.read_shard(shard)
    assert time.perf_counter() - start < 5
    proxy.mend()
    store.go_on()
    assert same_rows(store, open_store(built))


@pytest.mark.parametrize("gib", [0, 1])
def test_giving_up_ends_a_read_of_what_was_asked_for_ahead(url, proxy, gib):
    store = open_store(url, cache=CacheOptions(gib=gib))
    proxy.cut()
    store.ahead([0, 1])
    threading.Timer(0.5, store.give_up).start()
    start = time.perf_counter()
    with pytest.raises(RemoteError, match="given up"):
        store.read_shard(0)
    assert time.perf_counter() - start < 10


@pytest.mark.slow
def test_a_process_ends_though_the_network_is_away(url, proxy, tmp_path):
    code = f"""
import softlabels
store = softlabels.open_store({url!r})
print("open", flush=True)
input()
store.ahead([0, 1, 2])
"""
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "open\n"
    proxy.cut()
    process.communicate("\n", timeout=30)
    assert process.returncode == 0


def test_a_forked_child_is_told_so(url, proxy):
    store = open_store(url)
    read, write = os.pipe()
    if (child := os.fork()) == 0:
        try:
            store.read_shard(0)
        except RemoteError as e:
            os.write(write, str(e).encode())
        finally:
            os._exit(0)
    os.close(write)
    os.waitpid(child, 0)
    assert b"multiprocessing_context='spawn'" in os.read(read, 1000)
    os.close(read)


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("ftp://x/y", r"ftp:// is not known; expected a folder, or one of s3://"),
        ("s3://", r"s3://: names no bucket"),
        ("https://x/y?token=secret", r"^https://x…: an address of a store holds no '\?'"),
        ("https://me:secret@x/y", r"^https://x…: .*credentials come from the environment"),
        ("hf://owner/store", r"expected hf://datasets/OWNER/NAME"),
    ],
)
def test_addresses_that_are_none(address, message):
    with pytest.raises(ConfigError, match=message) as e:
        open_store(address)
    assert "secret" not in str(e.value)


def test_gs_is_googles(monkeypatch, tmp_path):
    pytest.importorskip("obstore", reason="needs obstore: pip install -e '.[dev]'")
    from obstore.store import GCSStore

    assert isinstance(RemoteFiles("gs://bucket/x").client._store, GCSStore)


# -- web servers ------------------------------------------------------------------------------------


class _Quiet(http.server.SimpleHTTPRequestHandler):
    seen: ClassVar[list[tuple[str, str | None]]] = []

    def do_GET(self) -> None:
        self.seen.append((self.path, self.headers.get("Authorization")))
        super().do_GET()

    def log_message(self, *_: object) -> None:
        pass


class _Hub(_Quiet):
    """What the Hub does with a large file: leads elsewhere."""

    elsewhere = ""

    def do_GET(self) -> None:
        self.seen.append((self.path, self.headers.get("Authorization")))
        name = self.path.removeprefix("/datasets/owner/name/resolve/main/")
        if name == self.path or not (Path(self.directory) / name).exists():
            self.send_error(404)
            return
        self.send_response(302)
        self.send_header("Location", f"{self.elsewhere}/{name}")
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_HEAD = do_GET


@pytest.fixture
def web(built):
    """Serves `built` as a plain web server does: whole files only, and no list."""
    yield from _served(_Quiet, built)


def _served(kind, folder):
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(kind, directory=str(folder)))
    kind.seen = []
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_a_plain_web_server(built, web, tmp_path, monkeypatch):
    pytest.importorskip("obstore", reason="needs obstore: pip install -e '.[dev]'")
    monkeypatch.setenv("SOFTLABELS_CACHE", str(tmp_path / "cache"))
    assert same_rows(open_store(web), open_store(built))
    report = verify_store(web)
    assert report.problems == []
    assert not report.listed


def test_without_ranges_a_broken_transfer_begins_anew(built, web, tmp_path):
    pytest.importorskip("obstore", reason="needs obstore: pip install -e '.[dev]'")
    name = "data/train-00001-of-00003.parquet"
    data = (built / name).read_bytes()
    with (tmp_path / "sink").open("w+b") as sink:
        sink.write(b"?" * 100)
        Client(web).fetch(name, sink, 100, len(data), threading.Event())
        sink.seek(0)
        assert sink.read() == data


def test_the_hub_and_who_asks(built, web, tmp_path, monkeypatch):
    pytest.importorskip("obstore", reason="needs obstore: pip install -e '.[dev]'")
    import huggingface_hub.constants as hub

    monkeypatch.setenv("SOFTLABELS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_TOKEN", "secret")
    _Hub.elsewhere = web
    for endpoint in _served(_Hub, built):
        monkeypatch.setattr(hub, "ENDPOINT", endpoint)
        template = endpoint + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(hub, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        assert same_rows(open_store("hf://datasets/owner/name"), open_store(built))
        asked = list(_Hub.seen)
    assert {a for _, a in asked} == {"Bearer secret"}
    assert {a for _, a in _Quiet.seen} == {None}  # the place that it leads to is not told


# -- the command line -------------------------------------------------------------------------------


def test_inspect_and_verify_take_addresses(url, proxy):
    from click.testing import CliRunner

    from softlabels.cli.main import main

    shown = CliRunner().invoke(main, ["inspect", url, "--row", "0"])
    assert shown.exit_code == 0, shown.output
    assert "row 0:" in shown.output
    checked = CliRunner().invoke(main, ["verify", url])
    assert checked.exit_code == 0
    assert f"{url}: whole" in checked.output
    refused = CliRunner().invoke(main, ["card", url])
    assert refused.exit_code == 2
    assert "in a local folder only" in refused.output
