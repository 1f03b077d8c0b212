"""Leases: where a plan is cut, and which shards a builder knows to be left."""

import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from softlabels.builder.build import build
from softlabels.core.progress import Silent
from softlabels.making import builder as builder_module
from softlabels.making import leases as leases_module
from softlabels.making.claims import Claims, claim_files
from softlabels.making.leases import FEWEST, LONGEST, Lease, Ledger, cut
from tests.fakes import TinyTeacher, build_tiny, config_of
from tests.store.made_up import files_of


@given(st.integers(0, 5000), st.integers(0, 40))
def test_leases_are_all_shards_in_order_and_no_longer_than_the_end_allows(shards, singles):
    leases = cut(shards, singles)
    assert [i for lease in leases for i in lease] == list(range(shards))
    assert all(len(lease) == 1 for lease in leases if lease.start < singles)
    sizes = [len(lease) for lease in leases if lease.start >= singles]
    assert sizes == sorted(sizes, reverse=True)
    for lease in leases:
        left = shards - lease.start
        assert len(lease) in range(1, LONGEST + 1)
        assert len(lease) == 1 or len(lease) * FEWEST <= left, "no builder of 32 is left idle"
    assert set(sizes[-min(31, len(sizes)) :]) <= {1}, "who ends last has one shard"


def test_a_long_plan_is_cut_into_few():
    leases = cut(100_000)
    assert len(leases) < 100_000 / 6
    assert sum(len(lease) for lease in leases if len(lease) >= 8) > 0.7 * 100_000


@given(st.integers(0, 400), st.integers(0, 9), st.lists(st.integers(0, 420)), st.data())
def test_the_ledger_knows_what_is_left(shards, singles, made, data):
    ledger, left = Ledger(shards, singles), set(range(shards))
    for index in made:
        ledger.done(index)
        left.discard(index)
    for index in data.draw(st.lists(st.sampled_from(made))) if made else []:
        if index < shards:
            ledger.undone(index)
            left.add(index)
    assert len(ledger) == len(left)
    assert [i for i in range(shards + 20) if i in ledger] == sorted(left)
    first = sorted(i for i in left if i < singles)
    whole = [lease for lease in cut(shards, singles) if left.intersection(lease)]
    assert ledger.open() == (first or [lease.start for lease in whole])
    assert all(ledger.lease(lease.start) == lease for lease in whole)


def test_a_lease_is_released_when_the_last_of_its_shards_is_written(tmp_path):
    claim = Claims(tmp_path).take([8])
    assert claim is not None
    with Lease(claim, range(8, 12)) as lease:
        first, last = lease.part(8), lease.part(11)
        with first:
            first.renew()
            assert first.index == 8
        assert claim.in_force()
    assert claim.in_force()
    with last:
        assert claim.in_force()
    assert claim_files(tmp_path) == []


# -- builds with leases ----------------------------------------------------------------------------


@pytest.fixture
def long_leases(monkeypatch):
    """Of four shards each, and two at the end of twelve."""
    monkeypatch.setattr(leases_module, "FEWEST", 2)
    monkeypatch.setattr(leases_module, "LONGEST", 4)
    monkeypatch.setattr(leases_module, "SPREAD", 8)
    return [list(lease) for lease in cut(12)]


@pytest.fixture
def corpus(tmp_path) -> str:
    """Text in which no row occurs twice."""
    (tmp_path / "words.txt").write_text(" ".join(f"w{i}" for i in range(600)), encoding="utf-8")
    return f"text:{tmp_path}/words.txt"


CHANGES = {"shard_rows": 2, "batch_tokens": 64, "limit_rows": 24}


def test_a_builder_with_leases_makes_the_store_of_one_without(
    tmp_path, corpus, long_leases, monkeypatch
):
    assert [len(lease) for lease in long_leases] == [4, 4, 2, 1, 1]
    taken = []

    class Counted(Claims):
        def take(self, indices, *, in_order=False):
            if (claim := super().take(indices, in_order=in_order)) is not None:
                taken.append(claim.index)
            return claim

    monkeypatch.setattr(builder_module, "Claims", Counted)
    build_tiny(tmp_path / "leased", corpus, **CHANGES)
    assert taken == [0, 4, 8, 10, 11, 12], "a claim for each lease, and one on the manifest"
    monkeypatch.setattr(leases_module, "LONGEST", 1)
    build_tiny(tmp_path / "single", corpus, **CHANGES)
    assert files_of(tmp_path / "leased").keys() == files_of(tmp_path / "single").keys()
    for name, content in files_of(tmp_path / "single").items():
        if name.startswith("data/"):
            assert files_of(tmp_path / "leased")[name] == content


@pytest.mark.parametrize(
    ("cheap", "stretch", "second"), [(2**20, 1, 4), (2**20, 2, 12), (-1, 1, 12)]
)
def test_a_builder_goes_back_after_a_stretch_where_that_is_cheap(
    tmp_path, corpus, long_leases, monkeypatch, cheap, stretch, second
):
    """Its first is that of shard 8, for others hold those before; they let go of them while it works."""
    monkeypatch.setattr(builder_module, "CHEAP", cheap)
    monkeypatch.setattr(leases_module, "STRETCH", stretch)
    monkeypatch.setattr(
        leases_module,
        "cut",
        lambda shards, singles=0: [range(i, i + 4) for i in range(0, shards, 4)],
    )
    changes = CHANGES | {"limit_rows": 32}  # 16 shards
    held, taken = [], []

    class Counted(Claims):
        def take(self, indices, *, in_order=False):
            if not taken:
                held.extend(Claims(tmp_path / "s").take([i]) for i in (0, 4))
            if (claim := super().take(indices, in_order=in_order)) is not None:
                taken.append(claim.index)
                if len(taken) == 1:
                    held[1].release()
                else:
                    held[0].release()
            return claim

    monkeypatch.setattr(builder_module, "Claims", Counted)
    build_tiny(tmp_path / "s", corpus, **changes)
    assert taken[:2] == [8, second]
    assert sorted(taken) == [0, 4, 8, 12, 16]


def test_what_is_left_of_a_dead_builders_lease_is_made_by_the_next(tmp_path, corpus, long_leases):
    class Stopped(Exception):
        pass

    class Stopping(TinyTeacher):
        shown = 0

        def logits(self, rows):
            self.shown += len(rows)
            if self.shown > most:
                raise Stopped
            yield from super().logits(rows)

    most = 12  # rows: six shards, so two of the second lease
    with pytest.raises(Stopped):
        build_tiny(tmp_path / "s", corpus, teacher=Stopping(), **CHANGES)
    assert claim_files(tmp_path / "s") == [], "an error lets go of the lease"
    assert len(list((tmp_path / "s/commits").iterdir())) == 6
    most, again = 10**9, Stopping()
    build_tiny(tmp_path / "s", corpus, teacher=again, **CHANGES)
    assert again.shown == 24 - 12


def test_two_builders_with_leases_do_nothing_twice(tmp_path, corpus, long_leases):
    """In one process: the second begins when the first is at its second shard, and takes the next lease."""
    shown, lock = [], threading.Lock()

    class Logged(TinyTeacher):
        def logits(self, rows):
            with lock:
                shown.append(rows[0].digest())
                second = len(shown) == 3
            if second:
                other.start()
                while len(shown) < 12:
                    other.join(0.01)
            yield from super().logits(rows)

    def work(out=tmp_path / "s"):
        build(config_of(corpus, **CHANGES), out, teacher=Logged(), reporter=Silent())

    other = threading.Thread(target=work)
    work()
    other.join()
    assert len(shown) == len(set(shown)) == 24
