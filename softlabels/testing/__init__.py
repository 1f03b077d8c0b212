"""Conformance batteries: what a plug-in's author runs on his own components, and the project on its own.

    from softlabels.testing import check_estimator

    def test_mine():
        check_estimator("mine?sharpness=2", k=8)

Each takes what a user types, so the component must be installed (`pip install -e .`), and ends in an AssertionError
that says which part of the contract is broken. Those of losses, students and exports are in `trainers.testing`.
"""

from __future__ import annotations

from softlabels.testing.codecs import check_codec
from softlabels.testing.containers import check_container
from softlabels.testing.estimators import check_estimator, targets_of
from softlabels.testing.inputs import check_corpus, check_domain, check_images, check_import
from softlabels.testing.teachers import check_teacher

__all__ = [
    "check_codec",
    "check_container",
    "check_corpus",
    "check_domain",
    "check_estimator",
    "check_images",
    "check_import",
    "check_teacher",
    "targets_of",
]
