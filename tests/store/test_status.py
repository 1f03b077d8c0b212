"""How far a store is, seen from outside; and which shards a numbered builder takes first."""

import json
import os
import time

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from softlabels.builder.build import build
from softlabels.cli.main import main
from softlabels.core.progress import Silent
from softlabels.errors import ConfigError, FormatError
from softlabels.making import leases as leases_module
from softlabels.making.claims import EXPIRY, Claims
from softlabels.making.share import Share
from softlabels.making.status import status_of
from tests.fakes import TinyTeacher, build_tiny, config_of, write_corpus
from tests.store.made_up import files_of


class Enough(Exception):
    """Somebody stopped the build."""


class Stopping(TinyTeacher):
    """A teacher that is stopped after some batches, and remembers what it was shown."""

    def __init__(self, most: int = 10**9) -> None:
        super().__init__()
        self.most, self.shown = most, []

    def logits(self, rows):
        if len(self.shown) >= self.most:
            raise Enough
        self.shown.append(rows[0].digest())
        yield from super().logits(rows)


CHANGES = {"shard_rows": 2, "batch_tokens": 64, "limit_rows": 16}  # a row a batch, eight shards


@pytest.fixture
def begun(tmp_path):
    """A store of eight shards, of which three are done."""
    corpus = write_corpus(tmp_path / "corpus")
    with pytest.raises(Enough):
        build_tiny(tmp_path / "store", corpus, teacher=Stopping(7), **CHANGES)
    return tmp_path / "store"


def test_what_is_done_and_what_is_held(begun):
    before = files_of(begun)
    for i, path in enumerate(sorted((begun / "commits").iterdir())):
        os.utime(path, (time.time() - 30 + 10 * i,) * 2)  # one in ten seconds
    claims = Claims(begun)
    working, stale = claims.take([5]), claims.take([6])
    assert working is not None
    assert stale is not None
    long_ago = time.time() - EXPIRY - 60
    os.utime(stale.path, (long_ago, long_ago))
    status = status_of(begun)
    assert (status.complete, status.shards, status.shards_done) == (False, 8, 3)
    each = status.positions_done / 3
    assert status.positions_per_second == pytest.approx(each / 10, rel=0.2)
    left = (status.positions - status.positions_done) / status.positions_per_second
    assert status.seconds_left == pytest.approx(left)
    held = {h.shard: h for h in status.held}
    assert {5: "working", 6: "stale"}.items() <= {i: h.state for i, h in held.items()}.items()
    assert held[5].pid == os.getpid()
    assert held[5].silent < 60 < EXPIRY < held[6].silent
    said = CliRunner().invoke(main, ["status", str(begun)]).output
    assert "3 of 8 done" in said
    assert "1 at work" in said
    assert f"shard 6: process {os.getpid()} of" in said
    working.release()
    stale.release()
    claims.close()
    assert files_of(begun).keys() - before.keys() == set(), "it writes nothing"


def test_a_dead_builder_is_told_from_one_at_work(begun):
    claims = Claims(begun)
    claim = claims.take([5])
    assert claim is not None
    other = json.loads(claim.path.read_text()) | {"pid": 2**22 + 1}
    claim.path.write_text(json.dumps(other))
    status = status_of(begun)
    assert {h.shard: h.state for h in status.held}[5] == "dead"
    assert status.working == 0
    assert status.seconds_left is None, "nobody is at work"
    said = CliRunner().invoke(main, ["status", str(begun)]).output
    assert "none is at work" in said
    assert "any builder takes over" in said


@pytest.mark.parametrize(("ahead", "state"), [(600.0, "working"), (73 * 365.25 * 86400, "stale")])
def test_a_claim_from_the_future_is_not_at_work_for_ever(begun, ahead, state):
    """A folder's clock may be ahead by some minutes; a store that was copied may hold any times."""
    claims = Claims(begun)
    claim, other = claims.take([5]), claims.take([6])
    assert claim is not None
    assert other is not None
    elsewhere = json.loads(claim.path.read_text()) | {"host": "elsewhere", "boot": "another"}
    claim.path.write_text(json.dumps(elsewhere))
    then = time.time() + ahead
    os.utime(claim.path, (then, then))
    if state == "working":
        os.utime(other.path, (then, then))
    held = {h.shard: h for h in status_of(begun).held}
    assert (held[5].state, held[6].state) == (state, "working")
    assert (held[5].silent < 0) == (state == "stale")
    said = CliRunner().invoke(main, ["status", str(begun)]).output
    assert ("of elsewhere, stale, last seen in the future" in said) == (state == "stale")
    assert f"{1 if state == 'stale' else 2} at work" in said


def test_a_lease_is_held_until_all_of_it_is_done(begun, monkeypatch):
    monkeypatch.setattr(leases_module, "FEWEST", 1)
    monkeypatch.setattr(leases_module, "LONGEST", 3)
    claims = Claims(begun)
    lease, end = claims.take([0]), claims.take([8])
    assert lease is not None
    assert end is not None
    assert [(h.shard, h.shards) for h in status_of(begun).held] == [(8, 0)], "0 to 2 are done"
    lease.release()
    claims.take([3])
    assert [(h.shard, h.shards) for h in status_of(begun).held] == [(3, 3), (8, 0)]
    said = CliRunner().invoke(main, ["status", str(begun)]).output
    assert "shards 3 to 5: process" in said
    assert "the manifest: process" in said


def test_a_finished_store_and_none(begun, tmp_path):
    build_tiny(begun, write_corpus(tmp_path / "corpus"), **CHANGES)
    done = json.loads(CliRunner().invoke(main, ["status", str(begun), "--json"]).output)
    assert (done["complete"], done["shards_done"], done["held"]) == (True, 8, [])
    with pytest.raises(FormatError, match="holds no plan"):
        status_of(tmp_path / "corpus")


# -- shares ------------------------------------------------------------------------------------------


@given(st.integers(0, 200), st.integers(1, 20))
def test_shares_are_all_shards_each_once(shards, builders):
    dealt = [i for b in range(builders) for i in Share(b, builders).of(shards)]
    assert dealt == list(range(shards))
    sizes = [len(Share(b, builders).of(shards)) for b in range(builders)]
    assert max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize("text", ["4/4", "1", "1/", "-1/4", "1/0", "a/b", "1/4/2", ""])
def test_what_is_no_share_is_refused(text, tmp_path):
    with pytest.raises(ConfigError, match=r"--shards .*: expected I/N"):
        Share.parse(text)
    assert Share.parse(" 3/16 ") == Share(3, 16)


def test_a_builder_takes_its_part_first_then_what_is_left(tmp_path):
    """And the store is that of one builder without a number, though another works beside it."""
    words = " ".join(f"w{i}" for i in range(600))  # no row twice
    (tmp_path / "words.txt").write_text(words, encoding="utf-8")
    corpus = f"text:{tmp_path}/words.txt"
    whole = Stopping()
    build_tiny(tmp_path / "plain", corpus, teacher=whole, **CHANGES)
    rows = whole.shown
    teacher = Stopping()
    other = Claims(tmp_path / "store")

    class Beside(Silent):
        """Another builder holds a shard of the part from the beginning on."""

        def stage(self, name, total, unit, done=0):
            if name == "teach":
                self.claim = other.take([3])
                assert self.claim is not None

        def advance(self, amount, note=None):
            if len(teacher.shown) == 14:
                self.claim.release()

    config = config_of(corpus, **CHANGES)
    build(config, tmp_path / "store", teacher=teacher, reporter=Beside(), share=Share(1, 4))
    order = [rows.index(seen) // 2 for seen in teacher.shown[::2]]
    assert order[0] == 2, "of shards 2 and 3 the one that is free"
    assert sorted(order) == list(range(8))
    assert order[-1] == 3
    assert files_of(tmp_path / "store").keys() == files_of(tmp_path / "plain").keys()
    digests = [
        json.loads((tmp_path / s / "manifest.json").read_text())["content_digest"]
        for s in ("store", "plain")
    ]
    assert digests[0] == digests[1]
