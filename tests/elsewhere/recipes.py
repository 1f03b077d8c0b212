"""The recipes of docs/integrations.md for trainers that pin other libraries, and what they pin."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.blocks import ROOT, blocks_of, commands
from tests.integrations_ground import PAGE

HERE = Path(__file__).parent


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A trainer's part of the page."""

    heading: str
    rows: str
    """What it calls the rows of a step."""
    languages: tuple[str, ...] = ("python", "yaml")
    """Of the blocks that are files of their own, whose first line is their name."""
    seed: int = 0
    """Of the order of rows, where its trainer sets one."""
    others: tuple[str, ...] = ("transformers", "peft", "trl", "accelerate", "torch")
    """Libraries whose versions the page names beside its own."""

    def block(self, language: str) -> str:
        (block,) = blocks_of(PAGE, language, heading=self.heading)
        return block.text

    def number(self, name: str) -> int:
        """What its configuration sets so."""
        texts = "".join(self.block(language) for language in self.languages)
        (value,) = re.findall(rf"\b{name}(?:=|: )(\d+)\b", texts)
        return int(value)

    def write(self, folder: Path) -> None:
        for language in self.languages:
            text = self.block(language)
            name = re.match(r"# ([\w.]+)\n", text)
            assert name is not None, text
            (folder / name[1]).write_text(text, encoding="utf-8")

    @property
    def command(self) -> str:
        """What it is started with."""
        (line,) = commands(self.block("sh"))
        return line

    def run(self, folder: Path, line: str = "") -> subprocess.CompletedProcess[str]:
        """Its command, or another one, without a network or a GPU; what it prints is in `stdout`."""
        home = Path(sys.executable).parent
        asked = {
            "PATH": f"{home}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
            "HF_HUB_OFFLINE": "1",
            "AXOLOTL_DO_NOT_TRACK": "1",
            "CUDA_VISIBLE_DEVICES": "",
        }
        return subprocess.run(
            (line or self.command).split(),
            cwd=folder,
            env=os.environ | asked,
            check=False,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=900,
        )


RECIPES = {
    "axolotl": Recipe(heading="axolotl", rows="micro_batch_size"),
    "llamafactory": Recipe(heading="LLaMA-Factory", rows="per_device_train_batch_size"),
    "unsloth": Recipe(
        heading="unsloth", rows="per_device_train_batch_size", languages=("python",), seed=42
    ),
    "torchtitan": Recipe(
        heading="torchtitan", rows="global_batch_size", languages=("python",), others=("torch",)
    ),
}
"""By the names of their packages."""
LOGGED = ("loss", "soft", "hard", "teacher_tail", "student_tail", "agreement")
"""What each logs of a step."""


def where_installed(*names: str) -> pytest.MarkDecorator:
    """A test of each of these trainers, where it is installed."""
    return pytest.mark.parametrize(
        "name",
        [
            pytest.param(
                n, marks=pytest.mark.skipif(find_spec(n) is None, reason=f".ci/elsewhere {n}")
            )
            for n in names
        ],
    )


def pins(name: str) -> Path:
    return HERE / f"{name}.txt"
