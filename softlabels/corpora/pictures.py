"""Images to rows: every view of an image is a row, views of one image after another."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from softlabels.builder.config import BuildConfig
from softlabels.core.rows import BEGINNING, UNLABELLED, Cursor
from softlabels.corpora.labelled import label_id
from softlabels.corpora.packing import CorpusCounts
from softlabels.domains.image_classification import ImageRow
from softlabels.format.identity import ImageRecord, ReplaySample
from softlabels.images.recipe import Recipe
from softlabels.images.sources import ImageSource
from softlabels.images.views import (
    CHECK_EVERY,
    ImageViews,
    check_of,
    digest_of,
    is_checked,
    software,
)
from softlabels.teachers import ImageInput, Teacher

__all__ = ["image_record", "image_rows", "image_settings", "make_views"]

SAMPLES = 16
"""Views whose whole digest the manifest holds."""


def make_views(config: BuildConfig, source: ImageSource, made: ImageInput) -> ImageViews:
    """The views that a build is of."""
    return ImageViews(
        source,
        Recipe.parse(config.augment or ""),
        seed=config.seed,
        size=config.image_size or made.size,
        mean=made.mean,
        std=made.std,
    )


def image_rows(
    config: BuildConfig,
    source: ImageSource,
    teacher: Teacher,
    *,
    start: Cursor = BEGINNING,
    counts: CorpusCounts | None = None,
) -> Iterator[tuple[Cursor, ImageRow]]:
    """Rows of `image-classification`, from `start` on: an image and one of its views.

    Raises:
        CorpusError: an image that cannot be decoded, a label that the teacher does not know.
    """
    counts = counts if counts is not None else CorpusCounts()
    views, classes = make_views(config, source, teacher.need_images()), teacher.need_classes()
    every = config.check_every or CHECK_EVERY

    def check(image: int, view: int) -> int | None:
        if not is_checked(image, view, every):
            return None
        return check_of(digest_of(views.pixels(image, view)))

    def label(image: int) -> int:
        return label_id(source.label(image), classes, where=source.where(image))

    for image in range(start.document, len(source)):
        own = label(image)
        for view in range(start.offset if image == start.document else 0, config.views):
            mix = views.mix(image, view)
            pure = mix is None or label(mix.partner) == own
            counts.documents += view == 0
            yield (
                Cursor(image, view),
                ImageRow(
                    document=image,
                    view=view,
                    label=own if pure else UNLABELLED,
                    check=check(image, view),
                    views=views,
                ),
            )


def image_settings(config: BuildConfig, made: ImageInput) -> dict[str, Any]:
    """What of the record is the user's or the teacher's choice."""
    return {
        "views": config.views,
        "size": config.image_size or made.size,
        "augment": str(Recipe.parse(config.augment or "")),
        "check_every": config.check_every or CHECK_EVERY,
        "mean": [float(x) for x in made.mean],
        "std": [float(x) for x in made.std],
    }


def image_record(
    config: BuildConfig, source: ImageSource, made: ImageInput, rows: int
) -> ImageRecord:
    """What a store of `rows` rows says of its images."""
    views = make_views(config, source, made)
    samples: Sequence[int] = sorted({i * (rows - 1) // (SAMPLES - 1) for i in range(SAMPLES)})
    return ImageRecord(
        images=len(source),
        software=software(),
        replay=[
            ReplaySample(
                document=image, view=view, sha256=digest_of(views.pixels(image, view)).hex()
            )
            for image, view in (divmod(row, config.views) for row in samples)
        ],
        **image_settings(config, made),
    )
