from __future__ import annotations

import dataclasses
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pytest

from softlabels.builder.config import BuildConfig
from softlabels.core.settings import check_at_least, field_help, from_sources, out_from
from softlabels.errors import ConfigError
from trainers.run.config import RunConfig

BUILD = {"teacher": "hf:t", "corpus": ("text:*.txt",)}
RUN = {"store": "s", "student": "hf:t"}


@pytest.fixture
def toml(tmp_path):
    def write(text: str):
        path = tmp_path / "c.toml"
        path.write_text(text, encoding="utf-8")
        return path

    return write


# -- sources --------------------------------------------------------------------------------------


def test_flags_win_over_toml_and_toml_over_defaults(toml):
    path = toml('teacher = "hf:a"\ncorpus = ["text:a"]\nk = 3\nseed = 5\n')
    config = BuildConfig.from_sources(path, {"seed": 6, "teacher": "hf:b"})
    assert (config.teacher, config.k, config.seed) == ("hf:b", 3, 6)
    assert config.corpus == ("text:a",)
    assert config.shard_rows == BuildConfig(**BUILD).shard_rows


def test_a_flag_that_was_not_given_wins_over_nothing(toml):
    path = toml(
        'teacher = "hf:a"\ncorpus = ["text:a"]\nestimator = "topk"\ntemperature = [1.0, 2.0]\n'
    )
    not_given = {f.name: None for f in dataclasses.fields(BuildConfig)}
    not_given |= {"corpus": (), "temperature": ()}
    assert BuildConfig.from_sources(path, not_given) == BuildConfig.from_sources(path, {})


def test_zero_and_false_are_given(toml):
    path = toml('teacher = "hf:a"\ncorpus = ["text:a"]\nseed = 5\nskip_empty = true\n')
    config = BuildConfig.from_sources(path, {"seed": 0, "skip_empty": False})
    assert (config.seed, config.skip_empty) == (0, False)


def test_a_repeatable_flag_replaces_the_list(toml):
    path = toml('teacher = "hf:a"\ncorpus = ["text:a", "text:b"]\n')
    assert BuildConfig.from_sources(path, {"corpus": ("text:c",)}).corpus == ("text:c",)


def test_no_toml_is_needed():
    assert BuildConfig.from_sources(None, BUILD) == BuildConfig(**BUILD)
    assert RunConfig.from_sources(None, RUN) == RunConfig(**RUN)


@pytest.mark.parametrize(("cls", "values"), [(BuildConfig, BUILD), (RunConfig, RUN)])
def test_what_is_recorded_makes_the_same_config(cls, values):
    import json

    config = cls(**values)
    recorded = json.loads(json.dumps(asdict(config)))
    assert cls.from_sources(None, recorded) == config


@pytest.mark.parametrize("cls", [BuildConfig, RunConfig])
def test_configs_are_frozen_keyword_only_and_documented(cls):
    with pytest.raises(TypeError):
        cls("a", "b")
    config = cls(**(BUILD if cls is BuildConfig else RUN))
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.seed = 1
    assert set(field_help(cls)) == {f.name for f in dataclasses.fields(cls)}


def test_an_integer_will_do_for_a_number(toml):
    config = RunConfig.from_sources(toml("lr = 1\nclip = 2\n"), RUN)
    assert (config.lr, config.clip) == (1.0, 2.0)


# -- refusals -------------------------------------------------------------------------------------


def test_an_unknown_key_is_refused_with_the_known_ones(toml):
    with pytest.raises(
        ConfigError, match=r"c\.toml: unknown key 'zzz'; known: out, for, teacher, corpus, "
    ):
        BuildConfig.from_sources(toml("zzz = 1"), BUILD)


@pytest.mark.parametrize(
    ("written", "meant"), [("sead", "seed"), ("seq-len", "seq_len"), ("K", "k")]
)
def test_a_key_that_is_nearly_one(toml, written, meant):
    said = rf"c\.toml: unknown key '{written}'; did you mean '{meant}'\?"
    with pytest.raises(ConfigError, match=said):
        BuildConfig.from_sources(toml(f"{written} = 1"), BUILD)


def test_an_impossible_value_names_file_and_key_where_the_file_has_it(toml):
    path = toml("shard_rows = 0\nseed = 1\n")
    with pytest.raises(
        ConfigError, match=r"c\.toml: key 'shard_rows': --shard-rows 0: expected at least 1"
    ):
        BuildConfig.from_sources(path, BUILD)
    with pytest.raises(ConfigError, match=r"^--shard-rows -1: expected at least 1"):
        BuildConfig.from_sources(path, BUILD | {"shard_rows": -1})


def test_where_a_command_writes_may_stand_in_the_file(toml, tmp_path):
    path = toml('out = "there"\n')
    assert out_from(path, None) == Path("there")
    assert out_from(path, tmp_path) == tmp_path, "the flag wins"
    assert "out" not in BuildConfig.from_sources(path, BUILD).to_dict()
    for text, said in (
        ("seed = 1", "^--out is missing"),
        ("out = 3", r"c\.toml: key 'out': 3, expected the path of a folder"),
        ('out = "s3://b/x"', r"c\.toml: key 'out': 's3://b/x': .* in a local folder only"),
    ):
        with pytest.raises(ConfigError, match=said):
            out_from(toml(text), None)
    with pytest.raises(ConfigError, match=r"^--out is missing"):
        out_from(None, None)


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ('k = "five"', "k"),
        ("k = 5.5", "k"),
        ("k = true", "k"),
        ('corpus = "text:a"', "corpus"),
        ("temperature = 1.0", "temperature"),
        ('temperature = ["1"]', "temperature"),
        ("teacher = 3", "teacher"),
        ("skip_empty = 1", "skip_empty"),
    ],
)
def test_a_wrong_type_is_refused_by_file_and_key(toml, text, key):
    flags = {k: v for k, v in BUILD.items() if k != key}
    with pytest.raises(ConfigError, match=rf"c\.toml: key '{key}': expected `.*`, got `"):
        BuildConfig.from_sources(toml(text), flags)


@pytest.mark.parametrize("missing", ["teacher", "corpus"])
def test_a_missing_field_is_refused_by_flag_and_key(missing):
    flags = {k: v for k, v in BUILD.items() if k != missing}
    with pytest.raises(ConfigError, match=rf"^--{missing} is missing \(or '{missing}' in the conf"):
        BuildConfig.from_sources(None, flags)


def test_a_missing_field_is_named_as_its_flag_is_spelt():
    @dataclass(frozen=True, kw_only=True)
    class Config:
        two_words: int

    with pytest.raises(ConfigError, match=r"^--two-words is missing \(or 'two_words' in"):
        from_sources(Config, None, {})


@pytest.mark.parametrize("data", [b"k = ", b"\xff", b"k = 1\nk = 2\n"])
def test_toml_that_cannot_be_parsed_is_refused(tmp_path, data):
    path = tmp_path / "c.toml"
    path.write_bytes(data)
    with pytest.raises(ConfigError, match=r"c\.toml: "):
        BuildConfig.from_sources(path, BUILD)


def test_toml_that_is_not_there_is_refused(tmp_path):
    for path in (tmp_path / "no.toml", tmp_path):
        with pytest.raises(ConfigError, match=str(path)):
            BuildConfig.from_sources(path, BUILD)


# -- bounds ---------------------------------------------------------------------------------------

INF, NAN = float("inf"), float("nan")
OUT_OF_BOUNDS: list[tuple[type, str, Any]] = [
    (BuildConfig, "seq_len", 1),
    (BuildConfig, "shard_rows", 0),
    (BuildConfig, "batch_tokens", 0),
    (BuildConfig, "limit_rows", 0),
    (BuildConfig, "head_mib", 0),
    (BuildConfig, "seed", -1),
    (BuildConfig, "seed", 2**63),
    (BuildConfig, "corpus", ()),
    (BuildConfig, "estimator", "best"),
    (BuildConfig, "values", "int8"),
    (BuildConfig, "profile", "squeezed"),
    (BuildConfig, "container", "tar"),
    (RunConfig, "loss", "l2"),
    (RunConfig, "temperature", 0.0),
    (RunConfig, "temperature", INF),
    (RunConfig, "temperature", NAN),
    (RunConfig, "alpha", -0.1),
    (RunConfig, "alpha", 1.1),
    (RunConfig, "alpha", NAN),
    (RunConfig, "alpha_schedule", "linear:2"),
    (RunConfig, "temperature_schedule", "linear:-1"),
    (RunConfig, "weight", "none"),
    (RunConfig, "label_smoothing", 1.0),
    (RunConfig, "label_smoothing", NAN),
    (RunConfig, "z_loss", -1.0),
    (RunConfig, "z_loss", INF),
    (RunConfig, "steps", 0),
    (RunConfig, "batch_size", 0),
    (RunConfig, "accumulate", 0),
    (RunConfig, "accumulate", 3),
    (RunConfig, "lr", 0.0),
    (RunConfig, "lr", NAN),
    (RunConfig, "warmup", -1),
    (RunConfig, "min_lr", 1.5),
    (RunConfig, "min_lr", NAN),
    (RunConfig, "weight_decay", -1.0),
    (RunConfig, "weight_decay", NAN),
    (RunConfig, "beta1", 1.0),
    (RunConfig, "beta1", -0.1),
    (RunConfig, "beta2", 2.0),
    (RunConfig, "clip", -1.0),
    (RunConfig, "clip", INF),
    (RunConfig, "seed", -1),
    (RunConfig, "seed", 2**63),
    (RunConfig, "dtype", "float16"),
    (RunConfig, "chunk_mib", 0),
    (RunConfig, "log_every", 0),
    (RunConfig, "checkpoint_every", 0),
    (RunConfig, "keep_last", 0),
    (RunConfig, "threads", 0),
]


@pytest.mark.parametrize(("cls", "name", "value"), OUT_OF_BOUNDS)
def test_every_bound_names_its_flag_and_the_value(cls, name, value):
    """Alike from Python and from flags or TOML."""
    values = BUILD if cls is BuildConfig else RUN
    flag = "--" + name.replace("_", "-")
    with pytest.raises(ConfigError) as direct:
        cls(**values | {name: value})
    assert str(direct.value).startswith(flag)
    if value != ():  # what is empty was not given
        assert str(value) in str(direct.value)
        with pytest.raises(ConfigError) as sourced:
            cls.from_sources(None, values | {name: value})
        assert str(sourced.value) == str(direct.value)


def test_bounds_of_the_estimator_name_their_flags(tmp_path):
    from tests.fakes import build_tiny, write_corpus

    corpus = write_corpus(tmp_path / "c", documents=1, repeat=1)
    for flag, changes in {
        "--k 0": {"k": 0},
        "--k 301": {"k": 301},
        "--temperature": {"temperature": (1.0, 1.0)},
        "--temperature 0": {"temperature": (0.0, 1.0)},
        "--temperature nan": {"temperature": (NAN, 1.0)},
        "--temperature [2.0]": {"temperature": (2.0,)},
        "--temperature [1.0, 2.0]": {"temperature": (1.0, 2.0), "estimator": "sampled"},
    }.items():
        with pytest.raises(ConfigError) as error:
            build_tiny(tmp_path / "out", corpus, **changes)
        assert str(error.value).startswith(flag)
        assert not (tmp_path / "out").exists(), "nothing was begun"


@pytest.mark.parametrize(
    ("cls", "name", "value"),
    [(BuildConfig, "seq_len", 2), (BuildConfig, "seed", 2**63 - 1), (RunConfig, "warmup", 0)]
    + [(RunConfig, "alpha", a) for a in (0.0, 1.0)]
    + [(RunConfig, "accumulate", 8), (RunConfig, "beta1", 0.0), (RunConfig, "clip", 0.0)],
)
def test_the_bounds_themselves_are_allowed(cls, name, value):
    config = cls(**(BUILD if cls is BuildConfig else RUN) | {name: value})
    assert getattr(config, name) == value


def test_check_at_least():
    @dataclass
    class Config:
        one: int | None = 1
        two_words: int | None = None

    check_at_least(Config(), one=1, two_words=5)
    with pytest.raises(ConfigError, match=r"^--two-words 4: expected at least 5$"):
        check_at_least(Config(two_words=4), one=1, two_words=5)


def test_warmup_defaults_to_a_twentieth():
    assert RunConfig(**RUN, steps=1000).warmup_steps == 50
    assert RunConfig(**RUN, steps=5).warmup_steps == 1
    assert RunConfig(**RUN, steps=5, warmup=0).warmup_steps == 0


def test_out_in_a_file_is_no_place_in_a_store(toml, tmp_path):
    (tmp_path / "manifest.json").write_text('{"format": "softlabels"}', encoding="utf-8")
    with pytest.raises(ConfigError, match=r"key 'out': .*run: lies in the store "):
        out_from(toml(f'out = "{tmp_path}/run"'), None)
    (tmp_path / "manifest.json").write_text('{"format": "another"}', encoding="utf-8")
    assert out_from(toml(f'out = "{tmp_path}/run"'), None) == tmp_path / "run"
