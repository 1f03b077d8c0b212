"""What a store records is enough to plan the same job again, from the command that its report prints."""

from __future__ import annotations

import json
import shlex
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, get_type_hints

import msgspec
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from softlabels.builder.config import BuildConfig
from softlabels.builder.plan import survey
from softlabels.builder.recorded import config_of
from softlabels.cli.main import main
from softlabels.console.options import _click_type, _group
from softlabels.core.progress import Silent
from softlabels.core.settings import flags_of
from softlabels.domains import DOMAINS
from softlabels.errors import ConfigError
from softlabels.making.plan import shard_rows_of
from softlabels.report.store_page import build_command
from softlabels.store.reader import open_store
from softlabels.teachers import ImageInput
from softlabels.teachers.ensemble import Ensemble
from tests.domains.fakes import TinyTextTeacher
from tests.domains.pictures import CLASSES, IMAGES
from tests.fakes import TinyTeacher, build_tiny, write_corpus
from trainers.cli import main as softtrain
from trainers.run.config import RunConfig

FIXTURES = Path(__file__).parent / "fixtures"
STORES = [p.parent for p in sorted(FIXTURES.rglob("manifest.json"))]
LINES = {
    "masked-lm": [{"text": f"the film number {i} was good"} for i in range(4)],
    "sequence-classification": [{"text": "a film " * i, "label": i % 3} for i in range(1, 9)],
    "token-classification": [{"words": ["good", "film"], "labels": [2, 1]}] * 4,
}
DENSE = {"estimator": "dense", "k": 3}
PACKED = {"profile": "packed", "container": "zarr"}
TEXT = "causal-lm"
JOBS: list[tuple[str, dict[str, Any]]] = [
    (TEXT, {}),
    (TEXT, {"estimator": "topk", "k": 5, "temperature": (1.0, 2.0, 0.1), "seq_len": 48}),
    (TEXT, {"estimator": "topp", "k": 30, "top_p": 0.9}),
    (TEXT, {"estimator": "topp", "k": 30, "top_p": 1 / 3, "min_k": 2, "seed": 2**62}),
    (TEXT, {"estimator": "rs", "k": 9, "temperature": (1.7,), "position_summary": False}),
    (TEXT, {"estimator": "systematic", "k": 11, "mean_k": 6.5, **PACKED}),
    (TEXT, {"estimator": "dense", "k": 300, "values": "float32", "licence": "it's mine; MIT"}),
    (TEXT, {"positions": "entropy:.25", "limit_rows": 7, "shard_rows": 3, **PACKED}),
    (TEXT, {"values": "nat64", "dictionary": "none", "skip_empty": True, **PACKED}),
    ("masked-lm", {"hidden": "int8", "views": 3, "seed": 5}),
    ("masked-lm", {"mask_share": 0.3, "mask_targets": "attended", "hidden": "float16"}),
    ("sequence-classification", {"truncate": True, "seq_len": 8, "skip_empty": True, **DENSE}),
    ("token-classification", {"container": "zarr", **DENSE}),
    ("image-classification", {"limit_rows": 6, "k": 4, "estimator": "topk"}),
    (
        "image-classification",
        {"limit_rows": 6, "views": 2, "augment": "crop:2,flip", "check_every": 3, "image_size": 24},
    ),
]


def parsed(command: str) -> BuildConfig:
    """What the command line's own parser makes of it."""
    words = shlex.split(command)
    assert words[:2] == ["softlabels", "build"]
    assert words[-2:] == ["--out", "STORE"]
    context = main.commands["build"].make_context("build", words[2:])
    names = {f.name for f in fields(BuildConfig)}
    return BuildConfig.from_sources(None, {k: v for k, v in context.params.items() if k in names})


def teacher_of(domain: str) -> Any:
    if domain == TEXT:
        return TinyTeacher()
    if domain == "image-classification":
        looks = TinyTeacher(vocab_size=len(CLASSES))
        looks.classes, looks.images = (
            CLASSES,
            ImageInput(size=28, mean=(100.0,) * 3, std=(50.0,) * 3),
        )
        return looks
    return TinyTextTeacher(None if domain == "masked-lm" else ("bad", "neither", "good"))


def corpus_of(domain: str, folder: Path, *, empty: bool) -> str:
    if domain == "image-classification":
        return IMAGES
    if domain == TEXT:
        if empty:
            (folder / "4.txt").write_text("")
        return write_corpus(folder)
    lines = LINES[domain] + [{"text": ""}] * empty
    path = folder / "lines.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return f"jsonl:{path}"


def planned(config: BuildConfig) -> Any:
    """Identity and shards of a build."""
    return survey(
        config,
        DOMAINS.load(config.domain).maker.open(config),
        teacher_of(config.domain),
        Silent(),
    )


@pytest.mark.parametrize(("domain", "changes"), JOBS)
def test_the_command_plans_the_same_job(domain, changes, tmp_path):
    corpus = corpus_of(domain, tmp_path, empty=changes.get("skip_empty", False))
    config = BuildConfig(teacher="fake:tiny", corpus=(corpus,), domain=domain, **changes)
    identity, shards = planned(config)
    recorded = config_of(identity, shard_rows=config.shard_rows)
    words = flags_of(BuildConfig, recorded.to_dict())
    again = parsed(shlex.join(["softlabels", "build", *words, "--out", "STORE"]))
    assert again == recorded
    assert planned(replace(again, corpus=config.corpus)) == (identity, shards)


@pytest.mark.parametrize("path", STORES, ids=lambda p: p.name)
def test_the_report_of_a_built_store_prints_its_command(path):
    store = open_store(path)
    given_dictionary = store.manifest.identity.encoding.dictionary_shards == 0
    if store.manifest.provenance is not None:
        return
    config = parsed(build_command(store))
    assert config == config_of(
        store.manifest.identity,
        shard_rows=shard_rows_of(path, store.manifest),
        **({"dictionary": str(path)} if given_dictionary else {}),
    )
    identity = store.manifest.identity
    assert config.domain == identity.domain
    assert config.stored_values == identity.encoding.values
    assert (config.estimator, config.k) == (identity.targets.estimator, identity.targets.k)
    assert list(config.temperature) == identity.targets.temperatures


def test_an_ensembles_members_are_told_from_its_name():
    members = [TinyTeacher(seed=i) for i in range(3)]
    for i, m in enumerate(members):
        m.record = msgspec.structs.replace(m.record, spec=f"hf:a, b=1({i})")
    corpus = ("text:*.txt",)
    for average, weights in (("probs", [0.5, 0.25, 0.25]), ("logits", [1 / 3] * 3)):
        ensemble = Ensemble(members, weights, average)
        config = BuildConfig(teacher="hf:x", corpus=corpus)
        identity = msgspec.structs.replace(
            open_store(FIXTURES / "topk-open-parquet-v1.1").manifest.identity,
            teacher=ensemble.record,
        )
        config = config_of(identity)
        assert config.average == average
        assert config.teacher == tuple(
            f"{m.record.spec}={w:.6g}" for m, w in zip(members, weights, strict=True)
        )
        words = flags_of(BuildConfig, config.to_dict())
        assert parsed(shlex.join(["softlabels", "build", *words, "--out", "STORE"])) == config


def test_a_store_of_other_stores_names_them_and_no_build(tmp_path):
    store = FIXTURES / "subset-open-v1.2"
    page = tmp_path / "x.html"
    done = CliRunner().invoke(main, ["report", str(store), "--out", str(page)])
    assert done.exit_code == 0, done.output
    said = page.read_text(encoding="utf-8")
    assert (
        "subset of topk-open-zarr-v1.1 (6 rows), k 3, temperature 1, where row &lt;&gt; 1" in said
    )
    assert "softlabels build" not in said


def test_an_imported_store_names_the_import(tmp_path):
    build_tiny(tmp_path / "s", write_corpus(tmp_path / "c"), limit_rows=2)
    store = open_store(tmp_path / "s")
    identity = store.manifest.identity
    engine, specs = "axolotl files, imported", ["axolotl:rows.parquet"]
    store.manifest = msgspec.structs.replace(
        store.manifest,
        identity=msgspec.structs.replace(
            identity,
            teacher=msgspec.structs.replace(identity.teacher, engine=engine),
            corpus=msgspec.structs.replace(identity.corpus, specs=specs),
        ),
    )
    words = shlex.split(build_command(store))
    assert words[:4] == ["softlabels", "import", "axolotl", "rows.parquet"]
    found = main.commands["import"].make_context("import", words[2:]).params
    assert (found["teacher"], found["values"], found["shard_rows"]) == ("fake:tiny", "float16", 8)


def test_what_cannot_be_built_here_is_said_on_the_page(tmp_path, monkeypatch):
    build_tiny(tmp_path / "s", write_corpus(tmp_path / "c"), limit_rows=2)

    def refuse(*_: object, **__: object) -> None:
        raise ConfigError("--estimator 'theirs': expected one of ours")

    monkeypatch.setattr("softlabels.report.store_page.config_of", refuse)
    page = tmp_path / "x.html"
    done = CliRunner().invoke(main, ["report", str(tmp_path / "s"), "--out", str(page)])
    assert done.exit_code == 0, done.output
    said = page.read_text(encoding="utf-8")
    assert "No command is known that builds it again: --estimator &#39;theirs&#39;" in said
    assert "softlabels build" not in said


# -- flags -----------------------------------------------------------------------------------------


def values_of(cls: type) -> st.SearchStrategy[dict[str, Any]]:
    """Values of some fields; a config need not fit together to be spelled."""
    hints = get_type_hints(cls, include_extras=True)
    kinds = {
        bool: st.booleans(),
        int: st.integers(-(2**63), 2**63),
        float: st.floats(allow_nan=False),
        str: st.text(st.characters(codec="utf-8", exclude_characters="\0")),
    }
    optional = {}
    for field in fields(cls):
        kind, multiple = _click_type(_group(hints[field.name])[1])
        one = kinds[kind]
        optional[field.name] = st.lists(one, min_size=1, max_size=3).map(tuple) if multiple else one
    return st.fixed_dictionaries({}, optional=optional)


@pytest.mark.parametrize(
    ("cls", "command"),
    [(BuildConfig, main.commands["build"]), (RunConfig, softtrain.commands["run"])],
)
def test_flags_are_read_as_they_were_meant(cls, command):
    @settings(max_examples=25)
    @given(values_of(cls))
    def check(values: dict[str, Any]) -> None:
        words = flags_of(cls, json.loads(json.dumps(values)))
        found = command.make_context(command.name, words).params
        for field in fields(cls):
            got = found[field.name]
            expected = values.get(field.name)
            if expected in (field.default, None) or expected == (field.default,):
                assert got in (None, ())
            else:
                assert got == expected

    check()
