"""The build that made a store, from what its manifest records."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from softlabels.builder.config import BuildConfig
from softlabels.format.identity import Identity


def config_of(identity: Identity, **changes: Any) -> BuildConfig:
    """The build that makes what an identity says: every setting that it records, as it was resolved.

    Args:
        identity: of a store that was built.
        changes: settings that it does not record (`shard_rows`, a dictionary that was given), or that are to be others.

    Raises:
        ConfigError: this version builds no such store.
    """
    targets, encoding, corpus = identity.targets, identity.encoding, identity.corpus
    teacher, average = _members_of(identity.teacher.spec)
    coded = encoding.plain or encoding.dictionary_shards is not None
    values: dict[str, Any] = {
        "teacher": teacher,
        "average": average,
        "corpus": tuple(corpus.specs),
        "domain": identity.domain,
        "estimator": targets.estimator,
        "temperature": tuple(targets.temperatures),
        **{
            name: getattr(targets, name)
            for name in ("k", "mean_k", "top_p", "min_k", "positions", "seed")
        },
        "limit_rows": corpus.limit_rows,
        "truncate": corpus.truncated > 0,
        "skip_empty": corpus.skipped_empty > 0,
        "profile": encoding.asked_profile,
        "container": encoding.container,
        "values": encoding.values,
        "dictionary": "auto" if coded else "none",
        "hidden": None if identity.hidden is None else identity.hidden.values,
        "position_summary": identity.summary is not None,
        "licence": identity.licence,
        "device": _known(identity.teacher.device, ("cpu", "cuda")),
        "dtype": _known(identity.teacher.dtype, ("float32", "bfloat16", "float16")),
    }
    if (masking := identity.masking) is not None:
        values |= {"mask_share": masking.share, "mask_targets": masking.targets}
        values |= {"views": masking.views}
    if (images := identity.images) is None:
        values["seq_len"] = corpus.seq_len
    else:
        values |= {"views": images.views, "image_size": images.size}
        values |= {"augment": images.augment or None, "check_every": images.check_every or 1}
    return BuildConfig(**(values | changes))


def _members_of(spec: str) -> tuple[str | tuple[str, ...], str]:
    """`--teacher` and `--average` of a teacher's record: an ensemble's names its members (`teachers/ensemble.py`)."""
    found = re.fullmatch(r"ensemble:(\w+)\((.*)\)", spec)
    if found is None:
        return spec, "probs"
    return tuple(re.findall(r"(.+?=[0-9.e+-]+)(?:, |$)", found[2])), found[1]


def _known(recorded: str, names: Sequence[str]) -> str:
    """A flag's value of what the record says; `auto`, where it is a server's, a graph's, or that of several hosts."""
    return recorded if all(part in names for part in recorded.split("+")) else "auto"
