"""Two engines said the same of the same rows."""

from __future__ import annotations

import numpy as np

from softlabels.store.reader import Store


def check_same_targets(a: Store, b: Store, *, summarised: bool) -> None:
    """The same positions have the same targets, but for the engines' rounding."""
    for mine, theirs in zip(a, b, strict=True):
        x, y = mine.targets, theirs.targets
        np.testing.assert_array_equal(x.soft, y.soft)
        t = x.temperatures[-1]
        np.testing.assert_allclose(x.dense(t), y.dense(t), atol=1e-4)
        np.testing.assert_allclose(x.log_odds, y.log_odds, atol=1e-3)
        assert (x.summary is not None) == (y.summary is not None) == summarised
        if x.summary is not None and y.summary is not None:
            np.testing.assert_allclose(x.summary.label_logp, y.summary.label_logp, rtol=1e-3)
            np.testing.assert_allclose(x.summary.entropy, y.summary.entropy, atol=1e-2)
            np.testing.assert_array_equal(x.summary.top, y.summary.top)
