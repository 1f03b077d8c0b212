"""merge: rows one after the other, bytes shared."""

from __future__ import annotations

import json

import numpy as np
import pytest

from softlabels.algebra.merge import merge
from softlabels.errors import ConfigError, FormatError, IntegrityError, PairingError, PlanError
from softlabels.making.repair import repair_store
from softlabels.store.reader import open_store
from softlabels.store.verify import verify_store
from tests.algebra.compare import content, same
from tests.fakes import Notices, TinyTeacher, build_tiny, write_corpus
from tests.store.made_up import files_of, reseal

KINDS = {
    "open": {},
    "zarr": {"container": "zarr"},
    "packed": {"profile": "packed"},
    "packed zarr": {"profile": "packed", "container": "zarr"},
    "sampled": {"estimator": "sampled", "temperature": (2.0,)},
    "packed sample": {"profile": "packed", "estimator": "sampled", "temperature": (2.0,)},
    "soft": {"positions": "entropy:0.3"},
}


def parts(folder, count=3, **changes):
    """Stores of one job over different texts."""
    made = []
    for i in range(count):
        corpus = write_corpus(folder / f"text{i}", documents=i + 1, repeat=1 + i % 2)
        store = folder / f"part{i}"
        build_tiny(store, corpus, shard_rows=3, **({"temperature": (1.0, 2.0)} | changes))
        made.append(store)
    return made


@pytest.mark.parametrize("kind", KINDS)
def test_rows_come_one_after_the_other_and_no_byte_is_copied(tmp_path, kind):
    sources = parts(tmp_path, **KINDS[kind])
    before = [files_of(s) for s in sources]
    manifest = merge(sources, tmp_path / "m")
    assert verify_store(tmp_path / "m").problems == []
    opened, merged = [open_store(s) for s in sources], open_store(tmp_path / "m")
    assert len(merged) == sum(len(s) for s in opened)
    row = documents = 0
    for store in opened:
        for stored in store:
            found = merged.row(row)
            assert found.index == row
            np.testing.assert_array_equal(found.row.input_ids, stored.row.input_ids)
            np.testing.assert_array_equal(found.row.documents, stored.row.documents + documents)
            np.testing.assert_array_equal(found.targets.ids, stored.targets.ids)
            np.testing.assert_array_equal(found.targets.gaps, stored.targets.gaps)
            np.testing.assert_array_equal(found.targets.log_odds, stored.targets.log_odds)
            row += 1
        documents += store.manifest.identity.corpus.documents
    for shard in manifest.shards:
        assert (tmp_path / "m" / shard.name).stat().st_nlink == 2
    assert [files_of(s) for s in sources] == before
    plain = "packed" not in kind
    packed = "packed-arrays" if "zarr" in kind else "packed"
    assert manifest.identity.encoding.profile == ("open-parts" if plain else packed)
    statistics = [s.manifest.statistics for s in opened]
    assert manifest.statistics.kept_ids == sum(s.kept_ids for s in statistics)
    assert manifest.cost.seconds == pytest.approx(sum(s.manifest.cost.seconds for s in opened))
    assert manifest.provenance.operation == "merge"
    assert [s.content_digest for s in manifest.provenance.sources] == [s.digest for s in opened]


def test_in_whatever_groups_the_content_is_the_same(tmp_path):
    a, b, c = parts(tmp_path)
    merge([a, b], tmp_path / "ab")
    merge([b, c], tmp_path / "bc")
    left = merge([tmp_path / "ab", c], tmp_path / "left")
    right = merge([a, tmp_path / "bc"], tmp_path / "right")
    flat = merge([a, b, c], tmp_path / "flat")
    assert left.content_digest == right.content_digest == flat.content_digest
    assert left.shards == right.shards == flat.shards
    same(content(tmp_path / "left"), content(tmp_path / "right"))


def test_dictionaries_of_all_parts_come_along(tmp_path):
    from tests.fixtures.make import _dictionary

    (tmp_path / "dictionary").write_bytes(_dictionary())
    a = parts(tmp_path / "1", 2, profile="packed", dictionary=str(tmp_path / "dictionary"))
    b = parts(tmp_path / "2", 2, profile="packed")
    manifest = merge([*b, *a], tmp_path / "m")
    assert [n for n in manifest.files if n.startswith("dict")] == ["dictionaries/00000.bin"]
    assert verify_store(tmp_path / "m").problems == []
    assert len(list(open_store(tmp_path / "m"))) == manifest.rows


def test_a_reader_that_does_not_know_it_refuses_by_name(tmp_path, monkeypatch):
    merge(parts(tmp_path, 2), tmp_path / "m")
    monkeypatch.setattr("softlabels.store.readable.READABLE", ("open", "packed"))
    with pytest.raises(FormatError, match=r"profile 'open-parts' is not known"):
        open_store(tmp_path / "m")


def test_a_file_that_counts_from_elsewhere_is_refused(tmp_path):
    merge(parts(tmp_path, 2), tmp_path / "m")
    reseal(tmp_path / "m/manifest.json", shards__2__counts_from=1)
    with pytest.raises(IntegrityError, match="its rows are not 1 to"):
        list(open_store(tmp_path / "m"))
    reseal(tmp_path / "m/manifest.json", identity__encoding__profile="open")
    with pytest.raises(FormatError, match="counts its rows from"):
        open_store(tmp_path / "m")


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"k": 6}, "targets k is 6, that of"),
        ({"temperature": (1.0,)}, "targets temperatures"),
        ({"estimator": "sampled", "temperature": (1.0,)}, "targets estimator"),
        ({"values": "float32"}, "encoding values"),
        ({"profile": "packed", "values": "float16"}, "profile is 'packed'"),
        ({"container": "zarr"}, "encoding container"),
        ({"teacher": TinyTeacher(seed=1)}, "teacher weights_sha256"),
        ({"teacher": TinyTeacher(salt="x")}, "tokenizer sha256"),
        ({"licence": "MIT"}, "licence is 'MIT'"),
        ({"seed": 5}, "targets seed"),
    ],
)
def test_stores_of_another_job_are_refused_before_anything_is_written(tmp_path, changes, what):
    (a,) = parts(tmp_path, 1)
    (b,) = parts(tmp_path / "other", 1, **changes)
    with pytest.raises(PairingError, match=what):
        merge([a, b], tmp_path / "m")
    assert not (tmp_path / "m").exists()


def test_rows_that_are_there_twice_are_counted(tmp_path):
    notices = Notices()
    (a,) = parts(tmp_path, 1)
    merge([a, a], tmp_path / "m", reporter=notices)
    rows = len(open_store(a))
    assert notices.lines == [
        f"{rows} of {2 * rows} rows have the same inputs as another one; all are kept"
    ]


def test_two_licences_need_a_third(tmp_path):
    (a,) = parts(tmp_path, 1)
    (b,) = parts(tmp_path / "other", 1, licence="MIT")
    assert merge([a, b], tmp_path / "m", licence="MIT AND unknown").identity.licence == (
        "MIT AND unknown"
    )


@pytest.mark.parametrize("damage", ["shard", "missing", "fingerprint"])
def test_damaged_sources_are_refused_before_anything_is_written(tmp_path, damage):
    a, b = parts(tmp_path, 2)
    shard = sorted((b / "data").iterdir())[-1]
    if damage == "shard":
        data = bytearray(shard.read_bytes())
        data[len(data) // 2] ^= 1
        shard.write_bytes(data)
    elif damage == "missing":
        shard.unlink()
    else:
        reseal(b / "manifest.json", identity__corpus__fingerprint="0" * 64)
    with pytest.raises(IntegrityError):
        merge([a, b], tmp_path / "m")
    assert not (tmp_path / "m").exists()


def test_running_it_again_changes_nothing_and_another_job_is_refused(tmp_path):
    a, b, c = parts(tmp_path)
    first = merge([a, b], tmp_path / "m")
    before = files_of(tmp_path / "m")
    assert merge([a, b], tmp_path / "m") == first
    assert files_of(tmp_path / "m") == before
    with pytest.raises(
        PlanError,
        match=r"was planned from part0 .* and part1 .*, this merge is from part0 .* and part2 ",
    ):
        merge([a, c], tmp_path / "m")
    with pytest.raises(PlanError, match="is the source itself"):
        merge([a, b], a)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/notes.txt").write_text("x")
    with pytest.raises(PlanError, match=r"notes\.txt"):
        merge([a, b], tmp_path / "mine")
    with pytest.raises(ConfigError, match="two stores"):
        merge([a], tmp_path / "n")


def test_a_build_does_not_go_on_with_it(tmp_path):
    merge(parts(tmp_path, 2), tmp_path / "m")
    with pytest.raises(PlanError, match="was begun by `softlabels merge`"):
        build_tiny(tmp_path / "m", f"text:{tmp_path}/text0/*.txt")


def test_across_file_systems_files_are_copied(tmp_path, monkeypatch):
    import errno

    sources = parts(tmp_path, 2)

    def refuse(path, source):
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    monkeypatch.setattr("softlabels.making.commit.publish_link", refuse)
    manifest = merge(sources, tmp_path / "m")
    assert verify_store(tmp_path / "m").problems == []
    assert {(tmp_path / "m" / s.name).stat().st_nlink for s in manifest.shards} == {1}


def test_manifests_of_builds_say_nothing_of_it(tmp_path):
    (a,) = parts(tmp_path, 1)
    raw = json.loads((a / "manifest.json").read_bytes())
    assert "provenance" not in raw
    assert not {"counts_from", "documents_from"} & raw["shards"][0].keys()


@pytest.mark.parametrize("kind", ["open", "packed"])
def test_a_lost_shard_is_withdrawn_by_repair_and_made_again(tmp_path, kind):
    sources = parts(tmp_path, **KINDS[kind])
    merge(sources, tmp_path / "m")
    digest = open_store(tmp_path / "m").digest
    assert repair_store(tmp_path / "m").whole
    lost = tmp_path / "m" / open_store(tmp_path / "m").manifest.shards[1].name
    lost.unlink()
    (tmp_path / "m/commits/00002.json").unlink()
    done = repair_store(tmp_path / "m")
    assert done.rebuild == [lost.relative_to(tmp_path / "m").as_posix()]
    assert done.command == "merge"
    merge(sources, tmp_path / "m")
    assert open_store(tmp_path / "m").digest == digest
    assert verify_store(tmp_path / "m").problems == []


def test_inspect_says_what_it_was_made_from(tmp_path):
    from click.testing import CliRunner

    from softlabels.cli.main import main

    merge(parts(tmp_path, 2, licence="MIT"), tmp_path / "m", licence="Apache-2.0")
    shown = CliRunner().invoke(main, ["inspect", str(tmp_path / "m")]).stdout
    assert "made by  merge of part0 (" in shown
    assert "licence Apache-2.0" in shown
