"""How a new store's numbers are held, and what bound its manifest may state after they were rounded twice."""

from __future__ import annotations

import msgspec

from softlabels.builder.config import check_encoding
from softlabels.codecs import CODECS, check_fits, make_codec
from softlabels.format.encoding import packages_of
from softlabels.format.identity import EncodingRecord, Identity, held_profile


def recoded(
    identity: Identity, *, profile: str | None, container: str | None, values: str | None
) -> EncodingRecord:
    """The encoding that is asked for; what is not named stays, where it can.

    Raises:
        ConfigError: an unknown name, or values that the profile cannot hold.
    """
    old = identity.encoding
    profile = profile or old.asked_profile
    container = container or old.container
    values = values or old.values
    check_encoding(profile, container, values)
    values = CODECS.spelled(values)
    check_fits(make_codec(values), sample=identity.targets.keeps.sample)
    new = EncodingRecord(
        profile=held_profile(profile, container),
        container=container,
        values=values,
        relative_error=old.relative_error,
        absolute_error=old.absolute_error,
        packages=packages_of(container, values),
    )
    if values == old.values and (old.plain, profile) == (True, "open"):
        return new  # columns are written as they were read
    return rounded_again(new, sample=identity.targets.keeps.sample)


def written_again(old: EncodingRecord) -> EncodingRecord:
    """Of shards that are written again: none counts rows from another place, and no dictionary is given."""
    profile = "open" if old.plain else old.profile
    return msgspec.structs.replace(
        old, profile=profile, dictionary_shards=None, dictionary_sha256=None
    )


def rounded_again(encoding: EncodingRecord, *, sample: bool) -> EncodingRecord:
    """The same, with the bound of values that were held within its own and are coded once more."""
    codec = make_codec(encoding.values)
    r, a = codec.relative_error, codec.absolute_error(sample=sample)
    return msgspec.structs.replace(
        encoding,
        relative_error=encoding.relative_error + r + encoding.relative_error * r,
        absolute_error=encoding.absolute_error * (1 + r) + a,
    )
