"""Targets of several texts by one real teacher, for `store.py`: made once, kept in a folder, read again.

The teacher reads each text once. Its logits of a batch are held while every estimator selects from them, so
that all encodings of a text are of the same logits, at the price of one pass instead of one for each estimator.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import msgspec
import torch

from softlabels.builder.build import teacher_options
from softlabels.builder.config import BuildConfig
from softlabels.builder.plan import survey
from softlabels.builder.teach import teach
from softlabels.core.progress import Silent
from softlabels.core.rows import InputRow
from softlabels.core.targets import SoftTargets
from softlabels.corpora import open_corpora
from softlabels.domains import DOMAINS
from softlabels.domains.maker import CorpusPass
from softlabels.format.encoding import decode_shard, encode_shard
from softlabels.format.identity import Identity
from softlabels.format.manifest import Statistics
from softlabels.format.shard import Reading, Shard
from softlabels.teachers import Teacher, open_teacher

NOTHING = Statistics(kept_ids=0, kept_mass=[], teacher_nll=None)
KINDS: dict[str, dict[str, Any]] = {
    "topk": {"k": 64, "temperature": (1.0, 2.0, 4.0)},
    "sampled": {"k": 12, "temperature": (1.0,)},
}
"""What is selected of each position: the most that any encoding is of, exact in float32."""
BATCH_ROWS = 8


@dataclass(frozen=True, kw_only=True)
class Text:
    """A text in two parts: what dictionaries are trained on, and what is measured."""

    name: str
    train: str
    heldout: str

    @classmethod
    def parse(cls, given: str) -> Text:
        """From `NAME=TRAIN_CORPUS=HELDOUT_CORPUS`."""
        name, train, heldout = given.split("=")
        return cls(name=name, train=train, heldout=heldout)


@dataclass(frozen=True, kw_only=True)
class Part:
    """The targets of one part of a text, by one estimator."""

    identity: Identity
    shard: Shard


class Remembering(Teacher):
    """A teacher that runs once over a batch that is asked for several times in succession."""

    def __init__(self, teacher: Teacher) -> None:
        self._teacher = teacher
        self.record, self.tokenizer, self.context = (
            teacher.record,
            teacher.tokenizer,
            teacher.context,
        )
        self._rows: Sequence[InputRow] | None = None
        self._said: list[torch.Tensor] = []

    def logits(self, rows: Sequence[InputRow]) -> Iterator[torch.Tensor]:
        if self._rows is None or [id(r) for r in self._rows] != [id(r) for r in rows]:
            self._said = [chunk.clone() for chunk in self._teacher.logits(rows)]
            self._rows = list(rows)
        for chunk in self._said:
            yield chunk.clone()  # a selection may write into it


class Texts:
    """Targets of texts, made where they are not in the folder yet.

    Args:
        teacher: as `softlabels build` takes it; loaded only if something must be made.
        work: the folder; a file of it is named by text, part, rows and estimator.
    """

    def __init__(self, teacher: str, work: Path, *, dtype: str, seq_len: int = 256) -> None:
        self._spec, self._work = teacher, work
        self._dtype, self._seq_len = dtype, seq_len
        self._teacher: Teacher | None = None

    @property
    def teacher(self) -> Teacher:
        if self._teacher is None:
            options = teacher_options(self._config("topk", "", 1), None)
            self._teacher = open_teacher(self._spec, options)
        return self._teacher

    def part(self, name: str, corpus: str, rows: int) -> dict[str, Part]:
        """The targets of a corpus' first rows, by estimator."""
        files = {kind: self._work / f"{name}-{rows}-{kind}.parquet" for kind in KINDS}
        if not all(f.with_suffix(".json").is_file() for f in files.values()):
            self._make(files, corpus, rows)
        return {kind: read_part(file) for kind, file in files.items()}

    def _config(self, kind: str, corpus: str, rows: int) -> BuildConfig:
        return BuildConfig(
            teacher=self._spec,
            corpus=(corpus,),
            estimator=kind,
            values="float32",
            dtype=self._dtype,
            seq_len=self._seq_len,
            shard_rows=rows,
            limit_rows=rows,
            **KINDS[kind],
        )

    def _make(self, files: dict[str, Path], corpus: str, count: int) -> None:
        configs = {kind: self._config(kind, corpus, count) for kind in KINDS}
        estimators = {k: c.make_estimator() for k, c in configs.items()}
        corpora, teacher = open_corpora([corpus]), Remembering(self.teacher)
        identities = {
            kind: survey(config, corpora, teacher, Silent())[0] for kind, config in configs.items()
        }
        any_config = configs["topk"]
        over = CorpusPass(config=any_config, corpora=corpora, teacher=teacher)
        made = DOMAINS.load(any_config.domain).maker.rows(over)
        rows = [r for _, r in islice(made, count)]
        taught: dict[str, list[SoftTargets]] = {kind: [] for kind in KINDS}
        start = time.perf_counter()
        for first in range(0, len(rows), BATCH_ROWS):
            for kind in KINDS:
                targets, _ = teach(
                    rows[first : first + BATCH_ROWS],
                    identities[kind],
                    estimators[kind],
                    teacher,
                    start_row=first,
                    batch_tokens=BATCH_ROWS * self._seq_len,
                    advance=lambda _: None,
                )
                taught[kind].append(targets)
            done = min(first + BATCH_ROWS, len(rows))
            rate = done * self._seq_len / (time.perf_counter() - start)
            print(f"{corpus}: {done} of {len(rows)} rows, {rate:.0f} tokens/s", file=sys.stderr)
        self._work.mkdir(parents=True, exist_ok=True)
        for kind, file in files.items():
            shard = Shard(start_row=0, rows=rows, targets=SoftTargets.concatenate(taught[kind]))
            file.write_bytes(encode_shard(shard, identities[kind], NOTHING))
            file.with_suffix(".json").write_bytes(msgspec.json.encode(identities[kind]))


def read_part(file: Path) -> Part:
    """A part that was made before."""
    identity = msgspec.json.decode(file.with_suffix(".json").read_bytes(), type=Identity)
    shard = decode_shard(
        file.read_bytes(), Reading(identity=identity, start_row=0, where=str(file))
    )
    return Part(identity=identity, shard=shard)
