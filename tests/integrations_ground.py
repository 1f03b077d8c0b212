"""What the scripts of docs/integrations.md take for granted, and the losses of the first of them."""

from __future__ import annotations

import contextlib
import re
from pathlib import Path
from typing import Any

import pytest

import softlabels
import trainers
from tests.blocks import to_run
from tests.fakes import TEXT
from trainers.loss.losses import LossOutput

PAGE = "integrations.md"
SIZES = [12 + 37 * i % 90 for i in range(120)]
"""Bytes of documents, of which most share a row, and some are longer than one."""


def write_ground(folder: Path) -> Path:
    """A store of a tiny teacher, and a tiny student of its vocabulary."""
    from tests.teachers.tiny import write_model

    write_model(folder / "teacher")
    write_model(folder / "student", seed=5)
    for i, size in enumerate(SIZES):
        (folder / f"{i:03d}.txt").write_text((TEXT * 24)[i * 70 :][:size], encoding="utf-8")
    softlabels.build(
        teacher=f"hf:{folder / 'teacher'}",
        corpus=(f"text:{folder}/*.txt",),
        out=folder / "store",
        seq_len=32,
        device="cpu",
    )
    return folder


def lay(ground: Path, folder: Path) -> None:
    """Put both where a script looks for them."""
    for name in ("store", "student"):
        (folder / name).symlink_to(ground / name)


def own_losses(ground: Path, *, rows: int, steps: int, seed: int = 0) -> list[LossOutput]:
    """What the page's loop of one's own gives at each step, of so many rows."""
    (text,) = to_run(PAGE, "python", heading="A loop of your own")
    text, rows_named = re.subn(r"\bbatch_size=8\b", f"batch_size={rows}, seed={seed}", text)
    text, steps_named = re.subn(r"\brange\(2000\)", f"range({steps})", text)
    assert (rows_named, steps_named) == (1, 1)
    seen: list[LossOutput] = []
    plain = trainers.distil_loss

    def seeing(*args: Any, **kwargs: Any) -> LossOutput:
        seen.append(plain(*args, **kwargs))
        return seen[-1]

    with pytest.MonkeyPatch.context() as patch, contextlib.chdir(ground):
        patch.setattr(trainers, "distil_loss", seeing, raising=False)
        exec(compile(text, PAGE, "exec"), {"__name__": "snippet"})
    assert len(seen) == steps
    return seen
