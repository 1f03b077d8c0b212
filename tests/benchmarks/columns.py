"""Bytes of a packed shard by column, for samples of one real teacher.

    python -m tests.benchmarks.columns --teacher hf:TEACHER --corpus 'text:BOOK/*.txt' --rows 16 --draws 3

Rows of 512 tokens; each is drawn several times, with other seeds, as if the corpus were as many times as long, since a
shard's order of ids and bins of streams are paid for once. Then how long a position takes to encode and decode, in
microseconds of CPU time on one thread, the least of three.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import argparse
import time
from collections.abc import Callable
from itertools import islice
from typing import Any

import msgspec
import torch

from softlabels.builder.build import teacher_options
from softlabels.builder.config import BuildConfig
from softlabels.builder.plan import survey
from softlabels.builder.teach import teach
from softlabels.core.progress import Silent
from softlabels.core.targets import SoftTargets
from softlabels.corpora import open_corpora
from softlabels.domains import DOMAINS
from softlabels.domains.maker import CorpusPass, RowMaker
from softlabels.format.packed import shard_of, streams_of
from softlabels.format.shard import Reading, Shard
from softlabels.teachers import open_teacher
from tests.benchmarks.store import show
from tests.benchmarks.store_texts import Remembering

STORED = (
    ("sampled", 12, "nat8"),
    ("systematic", 35, "nat8"),
    ("systematic", 35, "counts"),
    ("rs", 35, "counts"),
    ("rs", 95, "counts"),
)
"""Estimator, k, values."""


def least(call: Callable[[], Any]) -> tuple[float, Any]:
    taken = []
    for _ in range(3):
        start = time.process_time()
        found = call()
        taken.append(time.process_time() - start)
    return min(taken), found


def measure(args: argparse.Namespace) -> list[dict[str, Any]]:
    configs = [
        BuildConfig(
            teacher=args.teacher,
            corpus=(args.corpus,),
            estimator=estimator,
            k=k,
            values=values,
            profile="packed",
            dictionary="none",
            limit_rows=args.rows,
            shard_rows=args.rows,
            position_summary=False,
        )
        for estimator, k, values in STORED
    ]
    corpora = open_corpora([args.corpus])
    teacher = Remembering(open_teacher(args.teacher, teacher_options(configs[0], None)))
    maker: RowMaker = DOMAINS.load("causal-lm").maker
    over = CorpusPass(config=configs[0], corpora=corpora, teacher=teacher)
    rows = [r for _, r in islice(maker.rows(over), args.rows)]
    identities = [survey(c, corpora, teacher, Silent())[0] for c in configs]
    taught: list[list[SoftTargets]] = [[] for _ in configs]
    for i, row in enumerate(rows):
        for config, identity, parts in zip(configs, identities, taught, strict=True):
            for draw in range(args.draws):
                seeded = msgspec.structs.replace(identity.targets, seed=draw)
                targets, _ = teach(
                    [row],
                    msgspec.structs.replace(identity, targets=seeded),
                    config.make_estimator(),
                    teacher,
                    start_row=i,
                    batch_tokens=row.size,
                    advance=lambda _: None,
                )
                parts.append(targets)
    found = []
    for config, identity, parts in zip(configs, identities, taught, strict=True):
        shard = Shard(
            start_row=0,
            rows=[row for row in rows for _ in range(args.draws)],
            targets=SoftTargets.concatenate(parts),
        )
        n = shard.targets.n
        write, streams = least(lambda: streams_of(shard, identity, None))  # noqa: B023
        reading = Reading(identity=identity, start_row=0, where="shard")
        read, _ = least(lambda: shard_of(streams, None, reading))  # noqa: B023
        columns: dict[str, float] = {}
        for name, stream in streams.items():
            column = name.split(".")[0]
            columns[column] = columns.get(column, 0) + len(stream.data) / n
        stored = f"{config.estimator} k={config.k}, {config.values}"
        found.append(
            {"stored": stored, "ids kept": float(shard.targets.kept.sum()) / n}
            | {name: size for name, size in columns.items() if size >= 0.005}
            | {"bytes": sum(columns.values()), "encode": write / n * 1e6, "decode": read / n * 1e6}
        )
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--teacher", required=True)
    parser.add_argument("--corpus", required=True)
    parser.add_argument("--rows", type=int, default=16)
    parser.add_argument("--draws", type=int, default=3)
    args = parser.parse_args()
    torch.set_num_threads(1)
    show(measure(args))


if __name__ == "__main__":
    main()
