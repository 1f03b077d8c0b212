"""The images that a store was made from, found again: its views, and whether they come out as the builder saw them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from softlabels.domains.image_classification.recipe import Recipe
from softlabels.domains.image_classification.sources import open_images
from softlabels.domains.image_classification.views import ImageViews, digest_of
from softlabels.errors import ConfigError, CorpusError, FormatError
from softlabels.format.files import Address
from softlabels.format.identity import Identity, ImageRecord


def open_views(
    identity: Identity, specs: str | Sequence[str], *, where: Path | Address
) -> ImageViews:
    """The views of a store, some of them made again and compared.

    Args:
        specs: where its images lie, `arrays:FILE.npz` and so on, in the order in which it was built.

    Raises:
        ConfigError: it is no store of images, or an unknown kind of source.
        FormatError: its recipe is not known to this version.
        CorpusError: the images are not there, are not the store's, or come out otherwise.
    """
    record = identity.images
    if record is None:
        raise ConfigError(
            f"{where}: is of the domain {identity.domain}, whose rows hold all they need; leave its images out"
        )
    try:
        recipe = Recipe.parse(record.augment)
    except ConfigError as e:
        raise FormatError(
            f"{where}: its views are made by {record.augment!r}, which this version does not know ({e}); upgrade "
            "softlabels"
        ) from e
    source = open_images(specs, flag="--images")
    if len(source) != record.images:
        raise CorpusError(
            f"{where}: was made from {record.images} images, and there are {len(source)} where its images are said to "
            "be; give the very images that it was made from, in the same order"
        )
    views = ImageViews(
        source,
        recipe,
        seed=identity.targets.seed,
        size=record.size,
        mean=record.mean,
        std=record.std,
        made_with=record.software,
    )
    check_replay(views, record, where=where)
    return views


def check_replay(views: ImageViews, record: ImageRecord, *, where: Path | Address) -> None:
    """Make the sampled views again; `CorpusError` names the first that differs, and libraries that changed."""
    for sample in record.replay:
        if sample.document >= record.images or sample.view >= record.views:
            raise FormatError(f"{where}: replay names image {sample.document}, view {sample.view}")
        found = digest_of(views.pixels(sample.document, sample.view)).hex()
        if found != sample.sha256:
            row = sample.document * record.views + sample.view
            raise CorpusError(
                f"{where}: replay of row {row} ({views.source.where(sample.document)}, image {sample.document}, view "
                f"{sample.view}) differs: sha256 {found[:12]}…, the teacher saw {sample.sha256[:12]}…; "
                + views.way_out()
            )
