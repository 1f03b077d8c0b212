"""Amendments: of many changes at once all are there afterwards, and nobody's card is written over."""

from __future__ import annotations

import multiprocessing
import threading

import msgspec
import pytest

from softlabels.errors import IntegrityError
from softlabels.format.manifest import load_manifest
from softlabels.making import amend as amend_module
from softlabels.making.amend import amend
from softlabels.store.verify import verify_store

FORK = multiprocessing.get_context("fork")


def adding(name: str):
    """A change that builds upon what is there: one more word in the stated licence."""

    def change(manifest):
        words = {*(manifest.stated_licence or "MIT").split(" OR "), name}
        return msgspec.structs.replace(manifest, stated_licence=" OR ".join(sorted(words)))

    return change


@pytest.mark.parametrize("kind", ["threads", "processes"])
def test_of_many_changes_at_once_none_is_lost(store, kind):
    names = [f"LicenseRef-{i}" for i in range(6)]
    crew = [
        (threading.Thread if kind == "threads" else FORK.Process)(
            target=amend, args=(store, adding(name))
        )
        for name in names
    ]
    for member in crew:
        member.start()
    for member in crew:
        member.join()
    stated = load_manifest(store).stated_licence
    assert stated is not None
    assert set(stated.split(" OR ")) == {"MIT", *names}
    assert verify_store(store).problems == []


def test_a_change_is_made_to_the_present_manifest(store):
    """`measure` took minutes, in which `card` was run."""
    measured = load_manifest(store)
    amend(store, adding("BSD-3-Clause"))
    amend(
        store,
        lambda present: msgspec.structs.replace(present, column_bytes=None),
        content=measured.content_digest,
    )
    assert load_manifest(store).stated_licence == "BSD-3-Clause OR MIT"
    assert load_manifest(store).column_bytes is None


def test_a_change_for_another_content_is_refused(store):
    before = (store / "manifest.json").read_bytes()
    with pytest.raises(IntegrityError, match="its content changed meanwhile"):
        amend(store, adding("MIT"), content="0" * 64)
    assert (store / "manifest.json").read_bytes() == before


def test_a_card_that_somebody_has_written_in_is_kept(store):
    (store / "README.md").write_text("our own words")
    amend(store, adding("BSD-3-Clause"))
    (aside,) = (store / "quarantine").iterdir()
    assert aside.read_text() == "our own words"
    assert verify_store(store).problems == []
    amend(store, adding("ISC"))  # a card of ours is replaced, and not kept
    assert len(list((store / "quarantine").iterdir())) == 1
    assert amend_module.MADE.keys() >= {"README.md"}
