"""How views differ from their image: `crop:4,flip,colour:0.2,mixup:0.2`, words in any order.

centre:SHARE   the middle square, its side that share of the image's shorter side (default centre:1)
rrc:LEAST      instead: a random rectangle of LEAST to 1 of the area, 3/4 to 4/3 as wide as high
crop:PIXELS    moved by up to so many pixels each way; what comes in from outside is black
flip           mirrored, every other time
colour:AMOUNT  brightness, contrast and saturation, each times 1 - AMOUNT to 1 + AMOUNT
mixup:SHARE    with this probability blended with another image's view, in parts that are uniform in (0, 1)
cutmix:SHARE   with this probability a rectangle of another image's view in it, of an area that is uniform likewise
"""

from __future__ import annotations

from dataclasses import dataclass, fields

from softlabels.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A parsed recipe; its `str` is the one spelling of it."""

    centre: float = 1.0
    rrc: float | None = None
    crop: int = 0
    flip: bool = False
    colour: float = 0.0
    mixup: float = 0.0
    cutmix: float = 0.0

    def __post_init__(self) -> None:
        for name, fits, expected in (
            ("centre", 0 < self.centre <= 1, "a share above 0, at most 1"),
            ("rrc", self.rrc is None or 0 < self.rrc <= 1, "a share above 0, at most 1"),
            ("crop", 0 <= self.crop <= 1024, "0 to 1024 pixels"),
            ("colour", 0 <= self.colour <= 1, "0 to 1"),
            ("mixup", 0 <= self.mixup <= 1, "a probability"),
            ("cutmix", 0 <= self.cutmix <= 1, "a probability"),
            ("cutmix", self.mixup + self.cutmix <= 1, "at most 1 together with mixup"),
        ):
            if not fits:
                raise ConfigError(f"--augment {name}:{getattr(self, name)}: expected {expected}")
        if self.rrc is not None and self.centre != 1:
            raise ConfigError(
                "--augment: centre and rrc both say which part of an image is seen; give one"
            )

    @property
    def random(self) -> bool:
        """Whether two views of an image can differ."""
        return self != Recipe(centre=self.centre)

    @classmethod
    def parse(cls, text: str) -> Recipe:
        """A recipe as a user writes it.

        Raises:
            ConfigError: a word that is not known, given twice, or with a wrong number.
        """
        found: dict[str, bool | int | float] = {}
        for word in text.split(",") if text.strip() else ():
            name, colon, number = word.strip().partition(":")
            if name not in {f.name for f in fields(cls)} or (name == "flip") == bool(colon):
                raise ConfigError(
                    f"--augment {word.strip()!r}: expected centre:SHARE, rrc:LEAST, crop:PIXELS, flip, colour:AMOUNT, "
                    "mixup:SHARE or cutmix:SHARE"
                )
            if name in found:
                raise ConfigError(f"--augment: {name} is given twice")
            try:
                found[name] = (
                    True if name == "flip" else int(number) if name == "crop" else float(number)
                )
            except ValueError as e:
                raise ConfigError(f"--augment {word.strip()!r}: {number!r} is not a number") from e
        return cls(**found)  # type: ignore[arg-type]

    def __str__(self) -> str:
        words = []
        for field in fields(self):
            value = getattr(self, field.name)
            if value != field.default:
                words.append(field.name if value is True else f"{field.name}:{value!r}")
        return ",".join(words)
