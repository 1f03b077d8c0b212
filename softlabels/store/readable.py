"""What this version knows how to read."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

from softlabels.codecs import CODECS, make_codec
from softlabels.core.kept import BUILT_IN
from softlabels.core.registry import Registry, name_of
from softlabels.domains import DOMAINS
from softlabels.errors import ConfigError, FormatError
from softlabels.format.encoding import CONTAINERS, READABLE
from softlabels.format.files import Address
from softlabels.format.identity import PACKED_ARRAYS, Identity


def check_known(path: Path | Address, identity: Identity) -> None:
    """Refuse what this version would misread: a minor version may add, and older readers must notice.

    Raises:
        FormatError: names what is not known.
    """
    targets, encoding = identity.targets, identity.encoding
    if (targets.declared is None) == (targets.estimator not in BUILT_IN):
        what = "not known to this version (it knows {}), and the manifest does not declare what it keeps"
        if targets.declared is not None:
            what = "known to this version, which knows {}, and the manifest declares once more what it keeps"
        raise FormatError(
            f"{path}: estimator {targets.estimator!r} is {what.format(', '.join(BUILT_IN))}; upgrade softlabels"
        )
    known: Collection[str] | Registry[Any]
    for what, value, known in (
        ("domain", identity.domain, DOMAINS),
        ("profile", encoding.profile, READABLE),
        ("container", encoding.container, CONTAINERS),
        ("type of values", name_of(encoding.values)[0], CODECS),
    ):
        if value not in known:
            names = known.names() if isinstance(known, Registry) else list(known)
            way = "upgrade softlabels"
            if encoding.packages:
                needs = " and ".join(encoding.packages)
                way = f"it says that it needs the package {needs}: install it, if you trust it"
            raise FormatError(
                f"{path}: {what} {value!r} is not known to this version (it knows {names}); {way}"
            )
    if encoding.profile == PACKED_ARRAYS and encoding.container != "zarr":
        raise FormatError(
            f"{path}: the profile {PACKED_ARRAYS!r} is of the container zarr, not {encoding.container}; copy the store "
            "again from its source"
        )
    try:
        make_codec(encoding.values)
        targets.keeps.check_grid(targets.estimator, targets.temperatures)
    except ConfigError as e:
        raise FormatError(f"{path}: its manifest says what no build does: {e}") from e
    shift = DOMAINS.load(identity.domain).label_shift
    if identity.label_shift != shift:
        raise FormatError(
            f"{path}: label shift {identity.label_shift} is not known to this version (it knows {shift} in the domain "
            f"{identity.domain}); upgrade softlabels"
        )
