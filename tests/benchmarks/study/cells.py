"""A cell of the study: one student, taught by one arm at one temperature and share of soft loss, from one seed.

What a cell gave is one JSON file; a cell that has one is not trained again, so the study may be cut at any moment.
"""

from __future__ import annotations

import json
import math
import shutil
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from softlabels.format.figures import figures_of
from softlabels.format.manifest import MANIFEST, load_manifest
from tests.benchmarks.study.arms import ARMS, Arm
from tests.benchmarks.study.starts import start

SEQ_LEN = 256
BATCH = 8
LR = {"far": 3e-3, "middle": 2e-3, "near": 3e-4}
RESULT = "result.json"


@dataclass(frozen=True)
class Cell:
    """What is trained."""

    text: str
    student: str
    """far, middle or near."""
    arm: str
    temperature: float
    alpha: float
    seed: int

    @property
    def path(self) -> Path:
        """Its folder, below the study's."""
        what = f"{self.arm}-T{self.temperature:g}-a{self.alpha:g}-s{self.seed}"
        return Path(self.text, "runs", self.student, what)


@dataclass(frozen=True)
class Study:
    """Where it lies and what it reads."""

    out: Path
    teacher: Path
    texts: dict[str, Path]
    """Folder with `train` and `heldout` of each text."""
    rows: int
    heldout_rows: int
    epochs: int
    lanes: int
    """Of the order of rows (`--lanes`); cells are compared with those of the same."""
    rate: float = 1.0
    """Of learning, in parts of `LR`."""
    dense: bool = False
    """Whether students are also compared over the whole vocabulary, which takes longer than the rest of a cell."""

    def store(self, text: str, arm: Arm, temperature: float) -> Path:
        """The arm's store, built if it is not there."""
        build = arm.build or next(a for a in ARMS if a.build).build
        name = next(a for a in ARMS if a.build == build).name
        return self._build(text, f"{name}-T{temperature:g}", "train", self.rows, temperature, build)

    def heldout(self, text: str, temperature: float) -> Path:
        """Rows that no arm reads, with the top 50 and the exact tail."""
        exact = ("--estimator", "topk", "--k", "50")
        name = f"heldout-T{temperature:g}"
        return self._build(text, name, "heldout", self.heldout_rows, temperature, exact)

    def states(self, text: str, part: str) -> Path:
        """The teacher's last hidden states over the rows of a store, and its head."""
        folder = self.out / text / "states" / part
        store = self.store(text, ARMS[0], 1.0) if part == "train" else self.heldout(text, 1.0)
        tool("softlabels", "states", store, "--teacher", f"hf:{self.teacher}", "--out", folder)
        return folder

    def _build(
        self, text: str, name: str, part: str, rows: int, temperature: float, flags: tuple[str, ...]
    ) -> Path:
        store = self.out / text / "stores" / name
        if not (store / MANIFEST).exists():
            tool(
                *("softlabels", "build", "--teacher", f"hf:{self.teacher}", "--out", store),
                *("--corpus", f"text:{self.texts[text] / part}/*.txt", "--seq-len", SEQ_LEN),
                *("--limit-rows", rows, "--temperature", temperature, "--profile", "packed"),
                *(
                    "--dictionary",
                    "none",
                    "--no-position-summary",
                    "--licence",
                    "Apache-2.0",
                    *flags,
                ),
            )
        return store


def tool(module: str, *arguments: object) -> Any:
    """A command of this project in a process of its own, and what it printed as JSON."""
    command = [sys.executable, "-m", module, *map(str, arguments), "--json"]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)


def done(study: Study, cell: Cell) -> dict[str, Any] | None:
    """What the cell gave, if it was trained."""
    path = study.out / cell.path / RESULT
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def train(study: Study, cell: Cell) -> dict[str, Any]:
    """Train a cell's student and keep what it gave; of its run only the log stays."""
    arm = next(a for a in ARMS if a.name == cell.arm)
    store = study.store(cell.text, arm, cell.temperature)
    heldout = study.heldout(cell.text, cell.temperature)
    folder = study.out / cell.path
    run = folder / "run"
    steps = math.ceil(study.rows / BATCH)
    flags: list[object] = ["--alpha", 0.0 if arm.hard else cell.alpha]
    if arm.hard:
        flags += ["--heldout", heldout, "--eval-every", steps]
    if arm.full:
        flags += ["--teacher-states", study.states(cell.text, "train"), "--chunk-mib", 256]
    made = start(
        cell.student,
        cell.seed,
        teacher=study.teacher,
        store=store,
        out=study.out / cell.text / "starts",
    )
    begin = time.perf_counter()
    tool(
        *("trainers", "run", "--store", store, "--student", made, "--out", run, "--order"),
        *(
            "corpus",
            "--lanes",
            study.lanes,
            "--seed",
            cell.seed,
            "--temperature",
            cell.temperature,
            "--steps",
        ),
        *(
            steps * study.epochs,
            "--batch-size",
            BATCH,
            "--lr",
            study.rate * LR[cell.student],
            *flags,
        ),
        *("--checkpoint-every", steps, "--keep-last", 1, "--resume"),
    )
    seconds = time.perf_counter() - begin
    weights = "best" if arm.hard else "student"
    whole = ("--teacher-states", study.states(cell.text, "heldout")) if study.dense else ()
    found = tool(
        *("trainers", "eval", run, "--store", heldout, "--weights", weights, "--bootstrap", 0),
        *whole,
    )
    figures = figures_of(load_manifest(store))
    result = {
        **asdict(cell),
        "found": found,
        "bytes_per_position": None if arm.full or arm.hard else figures.bytes_per_position,
        "seconds": seconds,
        "lanes": study.lanes,
    }
    shutil.copy(run / "metrics.jsonl", folder)
    (folder / RESULT).write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    shutil.rmtree(run)
    return result
