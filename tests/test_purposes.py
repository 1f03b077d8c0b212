"""`softlabels build --for PURPOSE`: what it picks, what wins over it, and what it does not go with."""

from __future__ import annotations

import pytest

from softlabels.builder.config import BuildConfig
from softlabels.builder.purposes import CHOSEN, PURPOSES, purpose_of
from softlabels.cli.main import main
from softlabels.codecs import CODECS
from softlabels.errors import ConfigError
from softlabels.kld.reference_config import ReferenceConfig

BUILD = {"teacher": "hf:t", "corpus": ("text:*.txt",)}


@pytest.mark.parametrize("name", PURPOSES)
def test_a_purpose_is_a_build_that_there_can_be_and_says_what_it_chose(name):
    purpose = purpose_of(name, None, {})
    config = BuildConfig.from_sources(None, BUILD, purpose=purpose)
    for setting, value in purpose.settings.items():
        expected = CODECS.spelled(value) if setting == "values" else value
        assert getattr(config, setting) == expected
    assert f"--estimator {config.estimator} --k {config.k}" in str(purpose)
    assert purpose.why in str(purpose)


def test_what_a_purpose_does_not_decide_may_be_given(tmp_path):
    purpose = purpose_of("inspect", None, BUILD)
    flags = BUILD | {"temperature": (1.0, 4.0), "profile": "packed"}
    config = BuildConfig.from_sources(None, flags, purpose=purpose)
    assert (config.temperature, config.profile, config.estimator) == ((1.0, 4.0), "packed", "topk")


@pytest.mark.parametrize("setting", CHOSEN)
def test_what_it_decides_is_not_given_beside_it(setting, tmp_path):
    with pytest.raises(ConfigError, match=f"--for 'far' decides --{setting.replace('_', '-')}"):
        purpose_of("far", None, BUILD | {setting: 3})
    toml = tmp_path / "c.toml"
    toml.write_text(f"{setting} = 3\n", encoding="utf-8")
    with pytest.raises(ConfigError, match="leave one of them out"):
        purpose_of("far", toml, BUILD)


def test_a_config_file_may_name_it(tmp_path):
    toml = tmp_path / "c.toml"
    toml.write_text('for = "inspect"\nteacher = "hf:t"\ncorpus = ["text:a"]\n', encoding="utf-8")
    purpose = purpose_of(None, toml, {})
    assert purpose is PURPOSES["inspect"]
    assert BuildConfig.from_sources(toml, {}, purpose=purpose).k == 50
    assert purpose_of("far", toml, {}) is PURPOSES["far"]


def test_another_name_is_refused_where_it_stands(tmp_path):
    toml = tmp_path / "c.toml"
    toml.write_text('for = "all"\n', encoding="utf-8")
    with pytest.raises(ConfigError, match=r"c\.toml: key 'for' 'all': expected one of far, near"):
        purpose_of(None, toml, {})
    with pytest.raises(ConfigError, match="--for 'all': expected one of"):
        purpose_of("all", None, {})


def test_none_is_no_purpose():
    assert purpose_of(None, None, BUILD) is None


def test_a_reference_is_what_the_command_makes():
    config = BuildConfig.from_sources(None, BUILD, purpose=PURPOSES["reference"])
    made = ReferenceConfig(text=("a",))
    for name in ("k", "shard_rows"):
        assert getattr(config, name) == getattr(made, name)
    assert config.stored_values == CODECS.spelled(made.values)


@pytest.mark.parametrize(
    ("estimator", "k"),
    [("sampled", 12), ("systematic", 35), ("rs", 35), ("topk", 50), ("topp?top-p=0.9", 50)],
)
def test_a_k_that_is_not_given_is_the_estimators_own_and_the_help_says_it(estimator, k):
    flags = BUILD | {"estimator": estimator.partition("?")[0]}
    if "?" in estimator:
        flags["top_p"] = 0.9
    assert BuildConfig.from_sources(None, flags).k == k
    assert BuildConfig.from_sources(None, flags | {"k": 4}).k == 4
    (option,) = [p for p in main.commands["build"].params if p.name == "k"]
    said = " ".join(option.help.split())
    (what,) = [part for part in said.partition("Default")[2].split(",") if f"{k} for" in part]
    assert flags["estimator"] in what


def test_an_estimator_without_a_default_asks_for_k():
    with pytest.raises(ConfigError, match="--k is missing: --estimator dense needs it"):
        BuildConfig.from_sources(None, BUILD | {"estimator": "dense"})
