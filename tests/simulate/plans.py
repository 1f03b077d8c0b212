"""The plan of a simulation: the identity is that of a real one, the shards are made up."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import msgspec

from softlabels.builder.plan import plan_build
from softlabels.core.progress import Silent
from softlabels.core.records import seal
from softlabels.corpora import open_corpora
from softlabels.format.manifest import Plan
from tests.fakes import TinyTeacher, config_of, write_corpus
from tests.simulate.crew import Shards


def plan_of(shards: int) -> Plan:
    """A plan of so many shards, packed, so that no column is counted."""
    with tempfile.TemporaryDirectory() as folder:
        config = config_of(write_corpus(Path(folder)), profile="packed", values="nat16")
        plan, _ = plan_build(config, open_corpora(config.corpus), TinyTeacher(), Silent())
    made_up: Any = Shards(shards)
    return msgspec.structs.replace(seal(plan), shards=made_up)
