"""What a store is for, and the targets that serve it best: `softlabels build --for PURPOSE`.

The one home of that choice; its evidence is in docs/fidelity.md and docs/benchmarks.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from softlabels.core.settings import flag_of, read_toml
from softlabels.errors import ConfigError

FOR = "for"
"""Key of a config file, and flag, that names the purpose."""
CHOSEN = ("estimator", "k", "mean_k", "top_p", "min_k")
"""Settings that a purpose decides together: none of them is given beside it."""


@dataclass(frozen=True)
class Purpose:
    """Settings of a build, and why these."""

    settings: Mapping[str, Any]
    """Of `BuildConfig`; all but those of `CHOSEN` may be given otherwise."""
    why: str

    def __str__(self) -> str:
        """The flags, then the reason."""
        words: list[str] = []
        for name, value in self.settings.items():
            for one in value if isinstance(value, tuple) else (value,):
                words += [flag_of(name), f"{one:g}" if isinstance(one, float) else str(one)]
        return f"{' '.join(words)}: {self.why}"


PURPOSES: Mapping[str, Purpose] = {
    "far": Purpose(
        {"estimator": "rs", "k": 35, "profile": "packed"},
        "a student that is far from its teacher learns the mean of many positions, so draws count, not exact heads",
    ),
    "near": Purpose(
        {"estimator": "sampled", "k": 12, "profile": "packed"},
        "a student near its teacher learnt as much from 12 sampled ids as from the likeliest 50 and their tail",
    ),
    "inspect": Purpose(
        {"estimator": "topk", "k": 50, "temperature": (1.0, 2.0), "profile": "open"},
        "likeliest ids and exact tails at two temperatures, in columns that polars, DuckDB and pandas read",
    ),
    "reference": Purpose(
        {
            "estimator": "topk",
            "k": 64,
            "profile": "packed",
            "values": "companded",
            "shard_rows": 64,
        },
        "what `softlabels kld` compares other models with; `softlabels reference` also keeps wide rows",
    ),
}


def purpose_of(flag: str | None, toml: Path | None, given: Mapping[str, Any]) -> Purpose | None:
    """The purpose that a flag, or else the key `for` of a config file, names.

    Args:
        given: all flags; those that were not given are None.

    Raises:
        ConfigError: no such purpose, or a setting beside it that it decides.
    """
    written = {} if toml is None else read_toml(toml)
    name = flag if flag is not None else written.get(FOR)
    if name is None:
        return None
    where = "--for" if flag is not None else f"{toml}: key {FOR!r}"
    if name not in PURPOSES:
        raise ConfigError(f"{where} {name!r}: expected one of {', '.join(PURPOSES)}")
    for setting in CHOSEN:
        if given.get(setting) is not None or setting in written:
            raise ConfigError(
                f"{where} {name!r} decides {flag_of(setting)}, which is given, too; leave one of them out"
            )
    return PURPOSES[name]
