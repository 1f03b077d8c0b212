"""The cache: its limit, who may remove what, what processes that share it do, and what dead ones leave."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import threading
import time
from pathlib import Path
from typing import BinaryIO

import pytest

from softlabels.errors import ConfigError, IntegrityError, StoreError
from softlabels.store.remote.cache import CacheOptions, Cancelled, FileCache

RUNNING = threading.Event()


def content(i: int, size: int = 1000) -> bytes:
    return bytes([i]) * size


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def hold(cache: FileCache, data: bytes, log: list[int] | None = None) -> BinaryIO | None:
    def fetch(sink: BinaryIO, begun: int) -> None:
        if log is not None:
            log.append(begun)
        sink.write(data[begun:])

    return cache.hold(digest(data), len(data), fetch, RUNNING, where="there")


def use(cache: FileCache, i: int, log: list[int] | None = None) -> None:
    held = hold(cache, content(i), log)
    assert held is not None
    with held:
        assert held.read() == content(i)


def names(folder: Path) -> set[str]:
    return {p.name for p in folder.iterdir() if p.name != "lock"}


def test_a_file_is_fetched_once(tmp_path):
    cache, log = FileCache(tmp_path / "c", 10_000), []
    for _ in range(3):
        use(cache, 1, log)
    use(FileCache(tmp_path / "c", 10_000), 1, log)
    assert log == [0]


def test_a_file_that_another_finishes_after_one_has_looked_for_it_is_not_fetched_again(
    tmp_path, monkeypatch
):
    cache, log = FileCache(tmp_path, 10_000), []
    looked = cache._open

    def look(sha256: str, size: int) -> BinaryIO | None:
        found = looked(sha256, size)
        if not log:
            use(FileCache(tmp_path, 10_000), 1, log)
        return found

    monkeypatch.setattr(cache, "_open", look)
    use(cache, 1, log)
    assert log == [0]


def test_the_least_recently_used_goes_first_and_the_limit_holds(tmp_path):
    cache = FileCache(tmp_path, 3000)
    for i in (1, 2, 3):
        use(cache, i)
        os.utime(tmp_path / digest(content(i)), (i, i))
    use(cache, 1)  # now the newest
    use(cache, 4)
    assert names(tmp_path) == {digest(content(i)) for i in (1, 3, 4)}
    assert cache.bytes() == 3000


def test_what_is_held_is_never_removed(tmp_path):
    cache = FileCache(tmp_path, 2000)
    first, second = hold(cache, content(1)), hold(cache, content(2))
    assert first
    assert second
    assert hold(cache, content(3)) is None  # no room, and nothing was removed
    assert names(tmp_path) == {digest(content(1)), digest(content(2))}
    first.close()
    use(cache, 3)
    assert second.read() == content(2)
    assert names(tmp_path) == {digest(content(2)), digest(content(3))}
    second.close()


def test_larger_than_the_limit_is_not_kept(tmp_path):
    assert hold(FileCache(tmp_path / "c", 999), content(1)) is None
    assert not (tmp_path / "c").exists()


def test_a_part_left_by_a_dead_process_is_gone_on_with(tmp_path):
    cache, log = FileCache(tmp_path, 5000), []
    data = content(1)
    (tmp_path / "lock").touch()
    (tmp_path / f"{digest(data)}.{len(data)}.part").write_bytes(data[:400])
    use(cache, 1, log)
    assert log == [400]


def test_a_part_of_other_bytes_is_begun_anew(tmp_path):
    cache, log = FileCache(tmp_path, 5000), []
    data = content(1)
    (tmp_path / "lock").touch()
    (tmp_path / f"{digest(data)}.{len(data)}.part").write_bytes(b"?" * 400)
    use(cache, 1, log)
    assert log == [400, 0]


def test_parts_count_for_the_limit_with_what_is_to_come(tmp_path):
    cache = FileCache(tmp_path, 2000)
    (tmp_path / "lock").touch()
    (tmp_path / f"{digest(content(9))}.1500.part").write_bytes(b"x")
    assert cache.bytes() == 1500
    use(cache, 1)  # its writer is dead: it goes
    assert names(tmp_path) == {digest(content(1))}


def test_wrong_bytes_are_never_published(tmp_path):
    cache = FileCache(tmp_path, 5000)
    with pytest.raises(IntegrityError, match=r"^there: sha256 is .* the record says"):
        cache.hold(
            digest(content(1)), 1000, lambda sink, _: sink.write(content(2)), RUNNING, where="there"
        )
    assert names(tmp_path) == set()


def test_a_file_torn_by_a_crash_of_the_machine_is_fetched_again(tmp_path):
    cache, log = FileCache(tmp_path, 5000), []
    use(cache, 1, log)
    (tmp_path / digest(content(1))).write_bytes(content(1)[:10])
    use(cache, 1, log)
    assert log == [0, 0]


def test_who_waits_for_a_fetcher_gets_the_file_though_the_fetcher_holds_it(tmp_path):
    cache = FileCache(tmp_path, 5000)
    begun, go_on, kept = threading.Event(), threading.Event(), []

    def slow(sink: BinaryIO, _: int) -> None:
        begun.set()
        go_on.wait(10)
        sink.write(content(1))

    thread = threading.Thread(
        target=lambda: kept.append(
            cache.hold(digest(content(1)), 1000, slow, RUNNING, where="there")
        )
    )
    thread.start()
    begun.wait(10)
    threading.Timer(0.2, go_on.set).start()
    use(cache, 1)  # while the first still holds it
    thread.join()
    kept[0].close()


def test_waiting_for_another_fetcher_can_be_given_up(tmp_path):
    cache = FileCache(tmp_path, 5000)
    begun, go_on = threading.Event(), threading.Event()

    def slow(sink: BinaryIO, _: int) -> None:
        begun.set()
        go_on.wait(10)
        sink.write(content(1))

    def first() -> None:
        held = cache.hold(digest(content(1)), 1000, slow, RUNNING, where="there")
        assert held is not None
        held.close()

    thread = threading.Thread(target=first)
    thread.start()
    begun.wait(10)
    stop = threading.Event()
    threading.Timer(0.1, stop.set).start()
    with pytest.raises(Cancelled):
        cache.hold(digest(content(1)), 1000, slow, stop, where="there")
    go_on.set()
    thread.join()
    assert names(tmp_path) == {digest(content(1))}


def _many(folder: str, seed: int, counted: str) -> None:
    cache = FileCache(Path(folder), 6000)
    for step in range(60):
        i = (seed * 7 + step * 3) % 11
        data = content(i)

        def fetch(sink: BinaryIO, begun: int, data: bytes = data) -> None:
            time.sleep(0.001)
            sink.write(data[begun:])

        held = cache.hold(digest(data), len(data), fetch, threading.Event(), where="there")
        if held is not None:
            with held:
                assert held.read() == data
        with cache._alone():  # nobody makes room, though a file may get its name meanwhile
            assert (
                sum({e.inode(): 1000 for e in os.scandir(folder) if e.name != "lock"}.values())
                <= 6000
            )
    Path(counted, str(seed)).touch()


@pytest.mark.slow
def test_several_processes_share_it(tmp_path):
    (tmp_path / "done").mkdir()
    context = multiprocessing.get_context("spawn")
    workers = [
        context.Process(target=_many, args=(str(tmp_path / "c"), s, str(tmp_path / "done")))
        for s in range(4)
    ]
    for w in workers:
        w.start()
    for w in workers:
        w.join(60)
    assert len(list((tmp_path / "done").iterdir())) == 4
    assert FileCache(tmp_path / "c", 6000).bytes() <= 6000
    for name in names(tmp_path / "c"):
        assert digest((tmp_path / "c" / name).read_bytes()) == name


def test_where_it_is_and_how_large(tmp_path, monkeypatch):
    monkeypatch.setenv("SOFTLABELS_CACHE", "/somewhere")
    monkeypatch.setenv("SOFTLABELS_CACHE_GIB", "0.5")
    assert CacheOptions().resolved() == (Path("/somewhere"), 2**29)
    assert CacheOptions(folder="x", gib=2).resolved() == (Path("x"), 2**31)
    monkeypatch.setenv("SOFTLABELS_CACHE_GIB", "much")
    with pytest.raises(ConfigError, match="SOFTLABELS_CACHE_GIB=much: expected a number"):
        CacheOptions().resolved()
    with pytest.raises(ConfigError, match="--cache-gib -1: expected"):
        CacheOptions(gib=-1).resolved()
    monkeypatch.delenv("SOFTLABELS_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert "softlabels" in str(CacheOptions(gib=1).resolved()[0])


def test_a_folder_that_cannot_be_written_is_a_sentence(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StoreError, match=r"the cache cannot be used; .*--cache"):
        hold(FileCache(tmp_path / "file" / "c", 5000), content(1))


# -- whose files they are ---------------------------------------------------------------------------

STRANGERS = ["weights.safetensors", "0" * 63, "0" * 65, "F" * 64, f"{'0' * 64}.part"]
STRANGERS += [f"{'0' * 64}.x.part", f"{'0' * 64}.9.part~", ".lock", "lock.old"]


def test_strangers_neither_count_nor_go(tmp_path):
    for name in STRANGERS:
        (tmp_path / name).write_bytes(b"mine" * 500)
        os.utime(tmp_path / name, (0, 0))
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / ("0" * 64)).write_bytes(b"mine")
    (tmp_path / ("1" * 64)).mkdir()
    (tmp_path / ("2" * 64)).symlink_to(tmp_path / "weights.safetensors")
    (tmp_path / f"{'3' * 64}.9000.part").symlink_to("nowhere")
    before = {p: (p.lstat().st_ino, p.lstat().st_mtime_ns) for p in tmp_path.rglob("*")}
    cache = FileCache(tmp_path, 2000)
    for i in range(9):
        use(cache, i)
    assert {p: (p.lstat().st_ino, p.lstat().st_mtime_ns) for p in before} == before
    assert names(tmp_path) - {p.name for p in before} == {digest(content(i)) for i in (7, 8)}
    assert cache.bytes() == 2000


def test_files_of_another_program_with_such_names_are_refused(tmp_path):
    """Hubs and registries call their files by their sha256, too."""
    blob = tmp_path / digest(content(9))
    blob.write_bytes(content(9))
    torn = tmp_path / digest(content(1))
    torn.write_bytes(content(1)[:5])
    cache = FileCache(tmp_path, 1500)
    for work in (lambda: use(cache, 1), lambda: use(cache, 2), lambda: cache.drop(blob.name)):
        with pytest.raises(
            StoreError, match=r"no `lock`, so it may be another program's; .*--cache"
        ):
            work()
    assert (blob.read_bytes(), torn.read_bytes()) == (content(9), content(1)[:5])
    assert names(tmp_path) == {blob.name, torn.name}
    (tmp_path / "lock").touch()  # the way out, where it was a cache
    use(cache, 2)


def test_a_cache_of_an_earlier_version_goes_on(tmp_path):
    """It has an empty `lock`, and files that were used at any time."""
    (tmp_path / "lock").touch()
    for i in (1, 2):
        (tmp_path / digest(content(i))).write_bytes(content(i))
        os.utime(tmp_path / digest(content(i)), (i, i))
    cache, log = FileCache(tmp_path, 2000), []
    use(cache, 2, log)
    assert log == []
    use(cache, 3)
    assert names(tmp_path) == {digest(content(i)) for i in (2, 3)}


@pytest.mark.parametrize("kind", ["text", "link"])
def test_another_ones_lock_is_refused(tmp_path, kind):
    (tmp_path / "pid").write_text("17")
    if kind == "text":
        (tmp_path / "lock").write_text("17")
    else:
        (tmp_path / "lock").symlink_to("pid")
    with pytest.raises(StoreError, match=r"lock: is not the empty file .*--cache"):
        use(FileCache(tmp_path, 5000), 1)
    assert (tmp_path / "lock").read_text() == "17"
    assert names(tmp_path) == {"pid"}


@pytest.mark.parametrize("kind", ["symlink_to", "hardlink_to"])
def test_nothing_is_appended_to_a_link(tmp_path, kind):
    mine = tmp_path / "mine"
    mine.write_bytes(b"mine")
    cache = tmp_path / "c"
    cache.mkdir()
    (cache / "lock").touch()
    part = cache / f"{digest(content(1))}.1000.part"
    getattr(part, kind)(mine)
    with pytest.raises(StoreError, match=r"part: (is a link|has a second name), .*move it away"):
        use(FileCache(cache, 5000), 1)
    assert mine.read_bytes() == b"mine"
    assert part.exists()


def test_a_link_in_the_place_of_a_file_is_neither_read_nor_replaced(tmp_path):
    mine = tmp_path / "mine"
    mine.write_bytes(content(1)[:9])
    cache = tmp_path / "c"
    cache.mkdir()
    (cache / "lock").touch()
    (cache / digest(content(1))).symlink_to(mine)
    with pytest.raises(StoreError, match=r"is no file of the cache's; move it away"):
        use(FileCache(cache, 5000), 1)
    assert mine.read_bytes() == content(1)[:9]
    assert (cache / digest(content(1))).is_symlink()
