"""What is demanded of a store (--key, --digest, --release) is checked where it is read, on the bytes that are used."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner

from softlabels import open_store
from softlabels.cli.main import main
from softlabels.core.records import FORMAT, FORMAT_VERSION
from softlabels.errors import ConfigError, FormatError, IntegrityError
from softlabels.format.files import LocalFiles
from softlabels.format.manifest import MANIFEST, load_manifest
from softlabels.format.part import PART, part_digest, read_part
from softlabels.format.release import Release, parse_release
from softlabels.store.demand import Demand, demands_for, read_vouched
from softlabels.store.signing import sign_store
from softlabels.store.verify import verify_store
from tests.store.keys import write_pair
from tests.store.made_up import reseal, write_sealed

pytest.importorskip("model_signing", reason="needs the extra `sign`")


@pytest.fixture(scope="module")
def keys(tmp_path_factory) -> tuple[Path, Path]:
    return write_pair(tmp_path_factory.mktemp("keys"), "maker")


@pytest.fixture(scope="module")
def signed_once(tmp_path_factory, built, keys) -> Path:
    store = Path(shutil.copytree(built, tmp_path_factory.mktemp("signed") / "store"))
    sign_store(store, keys[0], release="maker/austen@2.1")
    return store


@pytest.fixture
def signed(signed_once, tmp_path) -> Path:
    return Path(shutil.copytree(signed_once, tmp_path / "signed"))


def verify(store: Path, *more: str):
    return CliRunner().invoke(main, ["verify", str(store), *more])


# -- parts ----------------------------------------------------------------------------------------


def pretend_part(store: Path, shards: list[int], **lies: object) -> None:
    """Leave these shards, and write what `softlabels pull --share` would, with some figures of one's own."""
    manifest = load_manifest(store)
    for i, shard in enumerate(manifest.shards):
        if i not in shards:
            (store / shard.name).unlink()
            (store / f"commits/{i:05d}.json").unlink()
    whole = json.loads((store / MANIFEST).read_bytes())
    held = [manifest.shards[i] for i in shards]
    corpus = whole["identity"]["corpus"] | {
        "rows": sum(s.rows for s in held),
        "positions": sum(s.positions for s in held),
        "documents": 1,
        "tokens": held[0].rows,
    }
    statistics = whole["statistics"] | {
        "kept_ids": 1,
        "kept_mass": [0.5] * len(whole["statistics"]["kept_mass"]),
        "teacher_nll": 0.25,
    }
    record = {
        "format": FORMAT,
        "version": FORMAT_VERSION,
        "whole": manifest.digest,
        "shards": shards,
        "corpus": corpus,
        "statistics": statistics,
    }
    for place, value in lies.items():
        name, field = place.split("__")
        record[name] = record[name] | {field: value}
    write_sealed(store / PART, record)


def test_a_part_of_a_signed_store_is_refused_unless_it_is_named(signed, keys):
    pretend_part(signed, [1])
    found = verify(signed, "--key", str(keys[1]))
    assert found.exit_code == 1
    assert "is only a part of the store that was signed: 1 of 3 shards are there" in found.stderr
    with pytest.raises(IntegrityError, match="only a part of the store that was signed"):
        open_store(signed, key=keys[1])
    part = open_store(signed)
    assert part.digest in found.stderr
    opened = open_store(signed, key=keys[1], digest=part.digest[:16])
    assert [r.index for r in opened] == [0, 1, 2]
    whole = load_manifest(signed).content_digest
    with pytest.raises(IntegrityError, match="is only a part of the store of that digest: 1 of 3"):
        open_store(signed, digest=whole)


def test_a_part_is_called_a_part_and_its_figures_are_counted_again(signed, keys):
    pretend_part(signed, [1])
    digest = open_store(signed).digest
    found = verify(signed, "--key", str(keys[1]), "--digest", digest, "--json")
    report = json.loads(found.stdout)
    assert report["part"] == {"shards": 1, "of": 3}
    assert (found.exit_code, report["ok"]) == (1, False)
    lies = report["problems"]
    for field in (
        "corpus.fingerprint",
        "corpus.tokens",
        "statistics.kept_ids",
        "statistics.teacher_nll",
    ):
        assert any(f"says {field} " in p for p in lies), field
    reseal(signed / PART, **counted(signed))
    text = verify(signed)
    assert text.exit_code == 0, text.output
    assert ": a part: 1 of 3 shards, intact; " in text.stdout
    shown = CliRunner().invoke(main, ["inspect", str(signed)]).stdout
    assert "1 of 3 shards" in shown


def counted(store: Path) -> dict[str, dict]:
    """What an honest part.json says."""
    import msgspec

    from softlabels.format.part import Counting

    manifest = load_manifest(store)
    part = read_part(LocalFiles(store), manifest)
    opened, counting = open_store(store), Counting()
    for i in range(len(opened.manifest.shards)):
        counting.add(*opened.read_counted(i))
    corpus = counting.corpus(manifest.identity.corpus)
    assert part is not None
    return {
        "corpus": msgspec.to_builtins(corpus),
        "statistics": msgspec.to_builtins(counting.statistics),
    }


@pytest.mark.parametrize(
    ("lies", "named"),
    [
        ({"corpus__tokens": 10**9}, "tokens 1,000,000,000"),
        ({"corpus__documents": 10**6}, "documents"),
        ({"statistics__kept_mass": [1e9, 1e9]}, "a kept mass of"),
        ({"statistics__teacher_nll": -1.0}, "a loss of -1"),
        ({"statistics__kept_ids": 10**12}, "kept ids"),
        ({"statistics__labelled": 10**12}, "labelled positions"),
    ],
)
def test_figures_that_no_part_can_have_are_refused_at_opening(store, lies, named):
    pretend_part(store, [0], **lies)
    with pytest.raises(FormatError, match=named):
        open_store(store)


def test_what_the_manifest_says_is_not_taken_from_the_part(store):
    pretend_part(store, [0, 2], corpus__seq_len=7, corpus__specs=["text:lie"])
    corpus, whole = open_store(store).manifest.identity.corpus, load_manifest(store)
    assert (corpus.seq_len, corpus.specs) == (
        whole.identity.corpus.seq_len,
        whole.identity.corpus.specs,
    )
    part = read_part(LocalFiles(store), whole)
    assert part is not None
    assert open_store(store).digest == part_digest(whole, part) != whole.content_digest


# -- one read -------------------------------------------------------------------------------------


class Swapping(LocalFiles):
    """A folder whose manifest is another's as soon as it was read once."""

    other: Path = Path()
    reads = 0

    def record(self, name: str) -> bytes:
        if name == MANIFEST:
            type(self).reads += 1
            if self.reads > 1:
                return (self.other / name).read_bytes()
        return super().record(name)


def test_what_is_used_is_what_was_verified(signed, store, keys, monkeypatch):
    """Exchanged after the check, the manifest does not count."""
    monkeypatch.setattr(Swapping, "other", store)
    monkeypatch.setattr(Swapping, "reads", 0)
    reseal(store / MANIFEST, identity__licence="evil")
    monkeypatch.setattr("softlabels.store.reader.files_of", lambda url, cache: Swapping(signed))
    opened = open_store(signed, key=keys[1])
    assert Swapping.reads == 1
    assert opened.manifest.identity.licence == load_manifest(signed).identity.licence


# -- digest ---------------------------------------------------------------------------------------


def test_a_digest(store):
    digest = open_store(store).digest
    assert open_store(store, digest=digest).vouched.digest == digest
    open_store(store, digest=digest[:16])
    with pytest.raises(IntegrityError, match=f"its content digest is {digest}, demanded was"):
        open_store(store, digest="0" * 16)
    for bad in (digest[:15], digest.upper(), digest + "0", "x" * 16, digest[:16] + "\n"):
        with pytest.raises(ConfigError, match="expected 16 to 64"):
            open_store(store, digest=bad)
    assert verify(store, "--digest", "0" * 64).exit_code == 1


def test_one_for_each_store():
    two = demands_for(2, key="k", digest=["0" * 16, "1" * 16], release=[])
    assert [d.digest for d in two] == ["0" * 16, "1" * 16]
    assert {d.key for d in two} == {"k"}
    with pytest.raises(ConfigError, match="--digest: 1 given for 2 stores"):
        demands_for(2, key=None, digest=["0" * 16], release=[])
    with pytest.raises(ConfigError, match="--release: 2 given for 1 stores"):
        demands_for(1, key="k", digest=[], release=["a", "b"])


# -- release --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("demanded", "problem"),
    [
        ("maker/austen", None),
        ("maker/austen@2", None),
        ("maker/austen@2.1", None),
        ("maker/austen@2.1.0", None),
        (
            "maker/austen@2.10",
            "is signed as maker/austen@2.1, demanded was maker/austen@2.10 or later: it is an older",
        ),
        ("maker/austen@3", "an older one of the same maker"),
        ("maker/bronte@1", "another store of the same maker"),
    ],
)
def test_an_older_store_of_the_same_maker_is_told(signed, keys, demanded, problem):
    result = verify(signed, "--key", str(keys[1]), "--release", demanded)
    if problem is None:
        assert result.exit_code == 0, result.output
        assert "signed by the key, as maker/austen@2.1, whole" in result.stdout
    else:
        assert result.exit_code == 1
        assert problem in result.stderr


def test_a_release_is_signed_not_claimed(signed, keys):
    """A newer version written into an old store does not count."""
    raw = json.loads((signed / MANIFEST).read_bytes())
    write_sealed(signed / MANIFEST, raw | {"release": {"name": "maker/austen", "version": "9"}})
    assert open_store(signed).manifest.release == Release(name="maker/austen", version="9")
    with pytest.raises(IntegrityError, match="is no signature of this"):
        open_store(signed, key=keys[1], release="maker/austen@9")
    with pytest.raises(ConfigError, match="needs --key"):
        open_store(signed, release="maker/austen@9")
    shown = CliRunner().invoke(main, ["inspect", str(signed)]).stdout
    assert "maker/austen@9, by its own account" in shown


def test_a_release_leaves_the_content_as_it_is(signed, built):
    assert open_store(signed).digest == open_store(built).digest
    assert verify_store(signed).problems == []
    assert "maker/austen" in (signed / "README.md").read_text(encoding="utf-8")


def test_an_old_signature_has_no_release(store, keys):
    sign_store(store, keys[0])
    assert read_vouched(LocalFiles(store), Demand(key=keys[1])).manifest.release is None
    assert verify(store, "--key", str(keys[1])).exit_code == 0
    with pytest.raises(IntegrityError, match="is signed without a name and version"):
        open_store(store, key=keys[1], release="maker/austen")


def test_signing_again_keeps_the_release(signed, keys):
    assert sign_store(signed, keys[0]) == Release(name="maker/austen", version="2.1")
    assert sign_store(signed, keys[0], release="maker/austen@3") is not None
    open_store(signed, key=keys[1], release="maker/austen@3")


@pytest.mark.parametrize("bad", ["", "@1", "a@", "a@1.", "a@x", "a@01", "a b@1", "a@1\n", "a@1@2"])
def test_bad_releases(bad):
    with pytest.raises(ConfigError, match="--release"):
        parse_release(bad, versioned=False)


def test_signing_needs_a_version():
    with pytest.raises(ConfigError, match="expected NAME@VERSION"):
        parse_release("maker", versioned=True)


# -- commands -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "command",
    [
        ["verify"],
        ["inspect"],
        ["inspect", "--row", "0"],
        ["report", "--out", "OUT"],
        ["export", "topk", "--out", "OUT"],
        ["measure", "--teacher", "hf:nowhere"],
    ],
    ids=lambda c: " ".join(c),
)
def test_every_command_that_reads_takes_a_key(store, keys, tmp_path, command):
    verb, *more = [str(tmp_path / "out") if word == "OUT" else word for word in command]
    asked = [verb, str(store), *more]
    for flags in (["--key", str(keys[1])], ["--digest", "0" * 16]):
        result = CliRunner().invoke(main, [*asked, *flags])
        assert result.exit_code == 1, result.output
        assert "not signed" in result.stderr or "demanded was 0000" in result.stderr
    assert not (tmp_path / "out").exists()
