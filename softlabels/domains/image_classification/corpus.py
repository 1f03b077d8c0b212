"""Images to rows: every view of an image is a row, views of one image after another."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, cast

from msgspec.structs import replace

from softlabels.core.rows import UNLABELLED, Cursor
from softlabels.corpora import Corpus
from softlabels.domains.image_classification import ImageRow
from softlabels.domains.image_classification.recipe import Recipe
from softlabels.domains.image_classification.sources import ImageSource, open_images
from softlabels.domains.image_classification.views import (
    CHECK_EVERY,
    ImageViews,
    check_of,
    digest_of,
    is_checked,
    software,
)
from softlabels.domains.labelled import label_id
from softlabels.domains.maker import CorpusPass, RowMaker
from softlabels.errors import ConfigError
from softlabels.format.identity import Identity, ImageRecord, ReplaySample
from softlabels.teachers import Teacher

if TYPE_CHECKING:
    from softlabels.builder.config import BuildConfig

SAMPLES = 16
"""Views whose whole digest the manifest holds."""


class ImageViewRows(RowMaker):
    """Views of images; what `open` gives is their one source."""

    transformers_teacher = "softlabels.domains.image_classification.teacher:from_transformers"

    settings = frozenset({"augment", "image_size", "check_every", "views"})

    def check(self, config: BuildConfig) -> None:
        """Several views need something random."""
        if config.views > 1 and not Recipe.parse(config.augment or "").random:
            raise ConfigError(
                f"--views {config.views}: all views of an image are the same without an --augment that draws something"
            )

    def spelled(self, specs: Sequence[str]) -> Sequence[str]:
        """As they are: `open` knows their kinds."""
        return specs

    def row_tokens(self, config: BuildConfig) -> int:
        """An image counts as one."""
        return 1

    def open(self, config: BuildConfig) -> Sequence[Corpus]:
        """One source of all images."""
        return [cast(Corpus, open_images(config.corpus, flag="--corpus"))]

    def known_rows(self, config: BuildConfig, corpora: Sequence[Corpus]) -> int | None:
        """Images are counted when they are opened."""
        return len(_source(corpora)) * config.views

    def rows(self, over: CorpusPass) -> Iterator[tuple[Cursor, ImageRow]]:
        """A cursor is an image and one of its views."""
        config, start = over.config, over.start
        source, classes = _source(over.corpora), over.teacher.need_classes()
        views = _views(config, source, over.teacher)
        every = config.check_every or CHECK_EVERY

        def label(image: int) -> int:
            return label_id(source.label(image), classes, where=source.where(image))

        for image in range(start.document, len(source)):
            own = label(image)
            for view in range(start.offset if image == start.document else 0, config.views):
                mix = views.mix(image, view)
                pure = mix is None or label(mix.partner) == own
                over.counts.documents += view == 0
                yield (
                    Cursor(image, view),
                    ImageRow(
                        document=image,
                        view=view,
                        label=own if pure else UNLABELLED,
                        check=check_of(digest_of(views.pixels(image, view)))
                        if is_checked(image, view, every)
                        else None,
                        views=views,
                    ),
                )

    def record(
        self, config: BuildConfig, corpora: Sequence[Corpus], teacher: Teacher, *, rows: int
    ) -> dict[str, Any]:
        """How views are made, and some of them to compare with."""
        source = _source(corpora)
        views = _views(config, source, teacher)
        samples: Sequence[int] = sorted({i * (rows - 1) // (SAMPLES - 1) for i in range(SAMPLES)})
        record = ImageRecord(
            images=len(source),
            software=software(),
            replay=[
                ReplaySample(
                    document=image, view=view, sha256=digest_of(views.pixels(image, view)).hex()
                )
                for image, view in (divmod(row, config.views) for row in samples)
            ],
            **_settings(config, teacher),
        )
        return {"images": record}

    def asked(self, config: BuildConfig, teacher: Teacher, planned: Identity) -> dict[str, Any]:
        """Neither the images nor what made them are asked for."""
        if planned.images is None:
            return {}
        return {"images": replace(planned.images, **_settings(config, teacher))}


def _source(corpora: Sequence[Corpus]) -> ImageSource:
    return cast(ImageSource, corpora[0])


def _settings(config: BuildConfig, teacher: Teacher) -> dict[str, Any]:
    """What of the record is the user's or the teacher's choice."""
    made = teacher.need_images()
    return {
        "views": config.views,
        "size": config.image_size or made.size,
        "augment": str(Recipe.parse(config.augment or "")),
        "check_every": config.check_every or CHECK_EVERY,
        "mean": [float(x) for x in made.mean],
        "std": [float(x) for x in made.std],
    }


def _views(config: BuildConfig, source: ImageSource, teacher: Teacher) -> ImageViews:
    """The views that a build is of."""
    settings = _settings(config, teacher)
    return ImageViews(
        source,
        Recipe.parse(settings["augment"]),
        seed=config.seed,
        size=settings["size"],
        mean=settings["mean"],
        std=settings["std"],
    )


MAKER = ImageViewRows()
