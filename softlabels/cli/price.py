"""`--price-per-hour`: what a machine costs."""

from __future__ import annotations

import re

from softlabels.errors import ConfigError


def price_of(text: str) -> tuple[float, str]:
    """A number, and the currency that it is in.

    Raises:
        ConfigError: it is none.
    """
    parts = re.fullmatch(r"\s*(\d+(?:\.\d+)?|\.\d+)\s*([A-Za-z]{3})?\s*", text)
    if parts is None:
        raise ConfigError(
            f"--price-per-hour {text}: expected a number of 0 or more, and perhaps a currency, e.g. 2.50 or 2.50EUR"
        )
    return float(parts[1]), (parts[2] or "USD").upper()
