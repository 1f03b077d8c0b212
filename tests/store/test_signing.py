"""Signatures: whatever is altered after signing is found by `verify --key`, before anybody trains."""

from __future__ import annotations

import base64
import hashlib
import json
import random
import shutil
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from softlabels.builder.config import MeasureConfig
from softlabels.builder.measure import measure
from softlabels.cli.main import main
from softlabels.errors import ConfigError, IntegrityError, MissingExtraError
from softlabels.format.files import LocalFiles
from softlabels.format.manifest import load_manifest
from softlabels.making.repair import repair_store
from softlabels.store.demand import Demand, read_vouched
from softlabels.store.signing import sign_store
from softlabels.store.verify import verify_store
from tests.fakes import TinyTeacher
from tests.store.keys import write_pair
from tests.store.made_up import files_of, reseal

pytest.importorskip("model_signing", reason="needs the extra `sign`")
serialization = pytest.importorskip("cryptography.hazmat.primitives.serialization")

MEASURE = MeasureConfig(teacher="fake:tiny")


@pytest.fixture(scope="module")
def keys(tmp_path_factory) -> tuple[Path, Path]:
    return write_pair(tmp_path_factory.mktemp("keys"), "maker")


@pytest.fixture(scope="module")
def signed_once(tmp_path_factory, built, keys) -> Path:
    store = Path(shutil.copytree(built, tmp_path_factory.mktemp("signed") / "store"))
    measure(store, MEASURE, teacher=TinyTeacher())
    sign_store(store, keys[0])
    return store


@pytest.fixture
def signed(signed_once, tmp_path) -> Path:
    return Path(shutil.copytree(signed_once, tmp_path / "signed"))


def check_signature(store: Path, key: Path) -> None:
    read_vouched(LocalFiles(store), Demand(key=key))


def verify(store: Path, key: Path, *more: str):
    return CliRunner().invoke(main, ["verify", str(store), "--key", str(key), *more])


def test_sign_and_verify(store, keys):
    result = CliRunner().invoke(main, ["sign", str(store), "--key", str(keys[0])])
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout == f"{store}: whole, and signed: {store / 'manifest.json.sig'}\n"
    good = verify(store, keys[1], "--json")
    assert good.exit_code == 0, good.output
    assert json.loads(good.stdout)["signed"] is True
    assert (
        f"{store}: signed by the key, without a name and version, whole; "
        in verify(store, keys[1]).stdout
    )
    assert verify_store(store).problems == []  # the signature is no stranger
    assert repair_store(store).actions == []
    assert repair_store(store).problems == []


# -- tampering ------------------------------------------------------------------------------------


def flip(path: Path, place: float = 0.5) -> None:
    data = bytearray(path.read_bytes())
    data[int(len(data) * place)] ^= 1
    path.write_bytes(data)


def shard_everywhere(store: Path) -> None:
    """Another shard, with the records that belong to it: what only a signature finds."""
    manifest = load_manifest(store)
    one, other = manifest.shards[0], manifest.shards[1]
    data = (store / other.name).read_bytes()
    (store / one.name).write_bytes(data)
    facts = {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
    reseal(store / "commits/00000.json", **facts)
    reseal(store / "manifest.json", **{f"shards__0__{k}": v for k, v in facts.items()})


def swap_files(store: Path) -> None:
    a, b = (store / s.name for s in load_manifest(store).shards[:2])
    x, y = a.read_bytes(), b.read_bytes()
    a.write_bytes(y)
    b.write_bytes(x)


def swap_records(store: Path) -> None:
    """Of shards of equal size, so that the manifest stays valid in itself."""
    raw = json.loads((store / "manifest.json").read_bytes())
    a, b = raw["shards"][:2]
    assert a["rows"] == b["rows"]
    for name in ("name", "sha256", "bytes", "positions"):
        a[name], b[name] = b[name], a[name]
    reseal(store / "manifest.json", shards=raw["shards"])
    load_manifest(store)


def card_figure(store: Path) -> None:
    card = store / "README.md"
    text = card.read_text(encoding="utf-8")
    assert "| mass of the kept ids | 0." in text
    card.write_text(text.replace("kept ids | 0.", "kept ids | 1."), encoding="utf-8")


def card_figure_resealed(store: Path) -> None:
    card_figure(store)
    data = (store / "README.md").read_bytes()
    files = json.loads((store / "manifest.json").read_bytes())["files"]
    files["README.md"] = {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
    reseal(store / "manifest.json", files=files)
    assert verify_store(store).problems == []  # without the key nothing is wrong with it


def fidelity(store: Path) -> None:
    reseal(store / "manifest.json", fidelity__temperatures__0__kl__mean=0.0)


def licence(store: Path) -> None:
    reseal(store / "manifest.json", identity__licence="MIT")


def not_signed(store: Path) -> None:
    (store / "manifest.json.sig").unlink()


TAMPERING = {
    "a shard's byte": lambda s: flip(s / load_manifest(s).shards[1].name),
    "a shard and its records": shard_everywhere,
    "shards swapped": swap_files,
    "order of shards": swap_records,
    "manifest's byte": lambda s: flip(s / "manifest.json"),
    "fidelity": fidelity,
    "licence": licence,
    "card figure": card_figure,
    "card figure and manifest": card_figure_resealed,
    "tokenizer": lambda s: flip(s / "tokenizer/tokenizer.json"),
    "commit": lambda s: flip(s / "commits/00001.json"),
    "plan": lambda s: flip(s / "plan.json"),
    "signature's first byte": lambda s: flip(s / "manifest.json.sig", 0.0),
    "signature's middle": lambda s: flip(s / "manifest.json.sig", 0.5),
    "signature empty": lambda s: (s / "manifest.json.sig").write_bytes(b""),
    "signature of other bytes": lambda s: (s / "manifest.json.sig").write_bytes(b"{}"),
    "not signed": not_signed,
    "a file too many": lambda s: (s / "data/evil.py").write_text("print()"),
}


@pytest.mark.parametrize("what", TAMPERING)
def test_tampering_is_found(signed, keys, what):
    assert verify(signed, keys[1]).exit_code == 0
    TAMPERING[what](signed)
    result = verify(signed, keys[1])
    assert result.exit_code == 1
    assert "error: " in result.stderr
    assert "Traceback" not in result.output


def says_the_same(one: bytes, other: bytes) -> bool:
    """Whether both decode to the same: of the last character before a base64's padding some bits mean nothing."""
    try:
        return decoded(json.loads(one)) == decoded(json.loads(other))
    except ValueError:
        return False


def decoded(value):
    if isinstance(value, dict):
        return {
            k: base64.b64decode(v) if k in ("payload", "sig") else decoded(v)
            for k, v in value.items()
        }
    return [decoded(v) for v in value] if isinstance(value, list) else value


def test_every_byte_of_the_signature_counts(signed, keys):
    path = signed / "manifest.json.sig"
    whole = path.read_bytes()
    rng = random.Random(0)
    for i in range(len(whole)):
        data = bytearray(whole)
        data[i] ^= 1 << rng.randrange(8)
        if says_the_same(data, whole):
            continue
        path.write_bytes(data)
        with pytest.raises(IntegrityError, match="is no signature of this"):
            check_signature(signed, keys[1])
    path.write_bytes(whole)
    check_signature(signed, keys[1])


def test_another_key_and_another_store(signed, store, keys, tmp_path):
    private, public = write_pair(tmp_path, "other")
    with pytest.raises(IntegrityError, match=r"is no signature of this manifest\.json by the key"):
        check_signature(signed, public)
    sign_store(store, private)
    shutil.copy(store / "manifest.json.sig", signed)
    for key in (public, keys[1]):
        with pytest.raises(IntegrityError, match="is no signature of this"):
            check_signature(signed, key)


# -- signing --------------------------------------------------------------------------------------


def test_a_damaged_store_is_not_signed(store, keys):
    flip(store / load_manifest(store).shards[2].name)
    before = files_of(store)
    with pytest.raises(IntegrityError, match="A damaged store is not signed"):
        sign_store(store, keys[0])
    assert files_of(store) == before


def test_measuring_a_signed_store_asks_for_a_new_signature(signed, keys):
    told = []

    class Reporter:
        notice = staticmethod(told.append)
        stage = advance = staticmethod(lambda *_: None)

    measure(
        signed,
        MeasureConfig(teacher="fake:tiny", seed=5),
        teacher=TinyTeacher(),
        reporter=Reporter(),
    )
    assert "must be renewed: `softlabels sign`" in told[-1]
    with pytest.raises(IntegrityError, match="renewed"):
        check_signature(signed, keys[1])
    sign_store(signed, keys[0])  # replaces the old one
    check_signature(signed, keys[1])


def test_an_encrypted_key(store, tmp_path):
    private, public = write_pair(tmp_path, "secret", b"word")
    with pytest.raises(ConfigError, match="cannot be used as a private key"):
        sign_store(store, private)
    arguments = ["sign", str(store), "--key", str(private), "--ask-password"]
    assert CliRunner().invoke(main, arguments, input="wrong\n").exit_code == 2
    assert CliRunner().invoke(main, arguments, input="word\n").exit_code == 0
    check_signature(store, public)


@pytest.mark.parametrize("what", ["missing", "no PEM", "the public one", "Ed25519"])
def test_bad_keys(store, keys, tmp_path, what):
    key = tmp_path / "key"
    if what == "no PEM":
        key.write_text("secret")
    elif what == "the public one":
        key = keys[1]
    elif what == "Ed25519":
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

        key.write_bytes(
            Ed25519PrivateKey.generate().private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            )
        )
    result = CliRunner().invoke(main, ["sign", str(store), "--key", str(key)])
    assert result.exit_code == 2
    assert "cannot be used as a private key" in result.stderr
    with pytest.raises(ConfigError, match="cannot be used as a public key"):
        check_signature(store, keys[0] if what == "the public one" else key)


def test_not_installed(store, keys, monkeypatch):
    monkeypatch.setitem(sys.modules, "model_signing", None)
    with pytest.raises(MissingExtraError, match=r"\[sign\]'"):
        sign_store(store, keys[0])
    with pytest.raises(MissingExtraError, match=r"\[sign\]'"):
        check_signature(store, keys[1])


def test_not_a_store(tmp_path, keys):
    assert verify(tmp_path, keys[1]).exit_code == 1
