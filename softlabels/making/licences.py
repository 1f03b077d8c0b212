"""The licence of a store's targets: an SPDX expression, which whoever shares the store must have stated."""

from __future__ import annotations

from softlabels.errors import ConfigError, MissingExtraError

UNKNOWN = "unknown"
HUB_LICENCES = frozenset(
    {
        *("apache-2.0", "mit", "mpl-2.0", "bsd-2-clause", "bsd-3-clause", "isc", "unlicense"),
        *("cc0-1.0", "cc-by-3.0", "cc-by-4.0", "cc-by-sa-3.0", "cc-by-sa-4.0", "cc-by-nc-4.0"),
        *("cc-by-nc-sa-4.0", "cc-by-nd-4.0", "cc-by-nc-nd-4.0", "odc-by", "pddl"),
        *("gpl-2.0", "gpl-3.0", "lgpl-2.1", "lgpl-3.0", "agpl-3.0", "artistic-2.0", "ecl-2.0"),
    }
)
"""SPDX identifiers, in lower case, that the Hub takes as they are; it refuses a card with any other."""


def hub_licence(licence: str) -> list[str]:
    """Lines of the card's YAML head."""
    lower = licence.lower()
    if lower == UNKNOWN:
        return ["license: unknown"]
    if lower in HUB_LICENCES:
        return [f"license: {lower}"]
    name = "".join(c if c.isalnum() or c in "-.+" else "-" for c in lower).strip("-")
    return ["license: other", f"license_name: {name or 'other'}"]


def stateable(licence: str) -> str:
    """A licence as a command was given it, without blanks around it.

    Raises:
        ConfigError: it says nothing, or cannot stand in one line.
    """
    licence = licence.strip()
    if not licence or not licence.isprintable():
        raise ConfigError(
            f"--licence {licence!r}: expected an SPDX expression, e.g. CC-BY-4.0 or LicenseRef-NAME"
        )
    return licence


def require_spdx(licence: str) -> str:
    """The licence of a store's targets, if it is a valid SPDX expression; its usual spelling.

    `LicenseRef-…` is valid: terms of one's own, to be put beside the store.

    Raises:
        ConfigError: not stated, or not SPDX.
        MissingExtraError: license-expression is not installed.
    """
    way_out = (
        "a store that is shared states the licence of its targets as an SPDX expression, e.g. `softlabels card STORE "
        "--licence CC-BY-4.0` (or LicenseRef-NAME for terms of your own)"
    )
    if licence.lower() == UNKNOWN:
        raise ConfigError(f"licence {licence!r}: not stated; {way_out}")
    try:
        from license_expression import get_spdx_licensing
    except ImportError as e:
        raise MissingExtraError("license-expression", "spdx", "checking a licence") from e
    licensing = get_spdx_licensing()
    try:
        parsed = licensing.parse(licence)
    except Exception as e:  # ParseError and its kin, which are not exported
        raise ConfigError(f"licence {licence!r}: not an SPDX expression ({e}); {way_out}") from e
    if parsed is None:
        raise ConfigError(f"licence {licence!r}: not stated; {way_out}")
    unknown = [
        key for key in licensing.unknown_license_keys(parsed) if not key.startswith("LicenseRef-")
    ]
    if unknown:
        raise ConfigError(f"licence {licence!r}: SPDX does not know {unknown[0]!r}; {way_out}")
    return str(parsed)
