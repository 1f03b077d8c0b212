"""Stores to read and to break."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.fakes import build_tiny, write_corpus


@pytest.fixture(scope="session")
def corpus(tmp_path_factory) -> str:
    return write_corpus(tmp_path_factory.mktemp("corpus") / "text")


@pytest.fixture(scope="session")
def built(tmp_path_factory, corpus) -> Path:
    """A topk store of three shards. Read only: never write here."""
    store = tmp_path_factory.mktemp("built") / "store"
    build_tiny(store, corpus, limit_rows=8, shard_rows=3, temperature=(1.0, 2.0))
    return store


@pytest.fixture
def store(built, tmp_path) -> Path:
    """A copy of `built`, to break."""
    return Path(shutil.copytree(built, tmp_path / "store"))
