"""`--for PURPOSE`, of each command that takes a build's flags."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from softlabels.builder.config import BuildConfig
from softlabels.builder.purposes import FOR, PURPOSES, purpose_of
from softlabels.console.terminal import say

for_option = click.option(
    f"--{FOR}",
    "purpose",
    metavar="PURPOSE",
    help=f"What the store is for: {', '.join(PURPOSES)}; picks the estimator and what it keeps, and says why.",
)


def config_for(purpose: str | None, toml: Path | None, flags: Mapping[str, Any]) -> BuildConfig:
    """The build that is asked for; what a purpose chose is said on stderr.

    Raises:
        ConfigError: an impossible one.
    """
    chosen = purpose_of(purpose, toml, flags)
    config = BuildConfig.from_sources(toml, flags, purpose=chosen)
    if chosen is not None:
        say(f"--for chose {chosen}")
    return config
