"""Bytes, error and speed of every way to store the same targets, on a real teacher's logits of two texts or more.

    python -m tests.benchmarks.store --teacher hf:TEACHER --work FOLDER --text NAME=CORPUS=HELDOUT [--json FILE]

Austen's novels come with the project; each `--text` adds another, such as the sources of Python's manual. The
teacher reads each text once (`store_texts.py`); `topk` k=64 and `sampled` k=12 of both its parts, exact float32, are
kept in FOLDER. Dictionaries are trained on the first part, of its own text. The held-out part is then written and
read in each encoding, on one thread, and every log-probability compared. Last, from dense probabilities of Austen,
what sampling and rounding do to the mean and to the squared error; `--seeds 0` leaves that out.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import argparse
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import torch

from softlabels.codecs import make_codec
from softlabels.codecs.codebook import Codebook
from softlabels.codecs.training import train
from softlabels.core.rows import InputRow
from softlabels.core.targets import SoftTargets
from softlabels.estimators import make_estimator
from softlabels.format.encoding import decode_shard, encode_shard
from softlabels.format.identity import Identity
from softlabels.format.shard import Reading, Shard
from tests.benchmarks.store_texts import NOTHING, Part, Text, Texts

DATA = Path(__file__).parents[2] / "data" / "austen"
AUSTEN = Text(name="novels", train=f"text:{DATA}/train/*.txt", heldout=f"text:{DATA}/heldout/*.txt")
ENCODINGS: tuple[tuple[str, int, tuple[float, ...], tuple[tuple[str, str], ...]], ...] = (
    (
        "topk",
        50,
        (1.0,),
        (("packed", "nat8"), ("packed", "nat16"), ("packed", "nat64"), ("open", "float16")),
    ),
    ("topk", 50, (1.0, 2.0, 4.0), (("packed", "nat16"),)),
    ("topk", 64, (1.0,), (("packed", "float16"), ("open", "float16"))),
    ("sampled", 12, (1.0,), (("packed", "nat8"), ("packed", "nat16"), ("open", "float16"))),
)
"""Estimator, k, temperatures; profile and values."""


def cut(targets: SoftTargets, k: int, grid: tuple[float, ...]) -> SoftTargets:
    """The k likeliest ids of a larger set, the others added to the tail."""
    odds = []
    for t in grid:
        p = targets.probs(t).astype(np.float64)
        outside = p[:, k:].sum(1) + targets.tail(t).astype(np.float64)
        odds.append(np.log(outside) - np.log(p[:, :k].sum(1)))
    return replace(
        targets,
        ids=np.ascontiguousarray(targets.ids[:, :k]),
        gaps=np.ascontiguousarray(targets.gaps[:, :k]),
        log_odds=np.stack(odds, 1).astype(np.float32),
        temperatures=grid,
    )


def encoded_as(identity: Identity, t: SoftTargets, k: int, **how: str) -> Identity:
    """The identity of a store of the same teacher in another encoding."""
    codec = make_codec(how["values"])
    return msgspec.structs.replace(
        identity,
        encoding=msgspec.structs.replace(
            identity.encoding,
            **how,
            relative_error=codec.relative_error,
            absolute_error=codec.absolute_error(sample=identity.targets.keeps.sample),
        ),
        targets=msgspec.structs.replace(identity.targets, k=k, temperatures=list(t.temperatures)),
    )


def by_id(targets: SoftTargets) -> np.ndarray[Any, Any]:
    order = np.argsort(targets.ids, axis=1)
    return np.take_along_axis(targets.log_probs(targets.temperatures[0]), order, 1)


def divergence(exact: SoftTargets, held: SoftTargets) -> float:
    """Mean KL of what is held from what is exact, over the kept ids and the tail, at the first temperature; nats."""
    t = exact.temperatures[0]
    p = np.concatenate([np.exp(by_id(exact)), exact.tail(t)[:, None]], 1).astype(np.float64)
    q = np.concatenate([np.exp(by_id(held)), held.tail(t)[:, None]], 1).astype(np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        terms = np.where(p > 0, p * np.log(p / q), 0.0)
    return float(terms.sum(1).mean())


def timed(call: Callable[[], Any], repeats: int) -> float:
    taken = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        call()
        taken.append(time.perf_counter() - start)
    return median(taken[1:])


def measure(
    name: str, shard: Shard, identity: Identity, book: Codebook | None, repeats: int
) -> dict[str, Any]:
    """One encoding: bytes, largest error, tokens a second to write and to read with all checks."""

    def write() -> bytes:
        return encode_shard(shard, identity, NOTHING, dictionary=book)

    def read() -> Shard:
        return decode_shard(
            data,
            Reading(
                identity=identity,
                start_row=shard.start_row,
                where=name,
                rows=len(shard.rows),
                positions=shard.targets.n,
            ),
            dictionary=lambda _: book,  # type: ignore[arg-type,return-value]
        )

    data = write()
    tokens = sum(len(r.input_ids) for r in shard.rows)
    held = read().targets
    error = np.abs(by_id(shard.targets) - by_id(held))
    return {
        "encoding": name,
        "bytes": len(data) / shard.targets.n,
        "largest error": float(error.max()),
        "mean error": float(error.mean()),
        "KL": divergence(shard.targets, held),
        "write": tokens / timed(write, repeats),
        "read": tokens / timed(read, repeats),
    }


def dictionary_of(shard: Shard, k: int, vocab_size: int) -> Codebook:
    """One trained on the first k ids of each position."""
    tokens = np.concatenate([r.input_ids[r.label_mask] for r in shard.rows])
    t = shard.targets
    data = train(tokens, t.ids[:, :k], t.kept[:, :k]).to_bytes()
    return Codebook.from_bytes(data, vocab_size=vocab_size, where="dictionary")


def encodings(
    text: str, train_on: dict[str, Part], heldout: dict[str, Part], repeats: int
) -> list[dict[str, Any]]:
    """Each encoding of a text's held-out part, without a dictionary and, packed, with one."""
    rows = []
    for kind, k, grid, ways in ENCODINGS:
        identity, shard = heldout[kind].identity, heldout[kind].shard
        if kind == "topk":
            shard = replace(shard, targets=cut(shard.targets, k, grid))
        book = dictionary_of(train_on[kind].shard, k, identity.teacher.vocab_size)
        size = len(book.to_bytes())
        for profile, values in ways:
            how = encoded_as(identity, shard.targets, k, profile=profile, values=values)
            what = f"{kind} k={k}, T={', '.join(f'{t:g}' for t in grid)}: {profile} {values}"
            plain = {"text": text} | measure(what, shard, how, None, repeats)
            rows.append(plain)
            if profile == "packed":
                row = {"text": text} | measure(f"{what}, dictionary", shard, how, book, repeats)
                row["dictionary bytes"] = size
                row["dictionary positions"] = train_on[kind].shard.targets.n
                row["pays from"] = size / (plain["bytes"] - row["bytes"])
                rows.append(row)
    return rows


# -- what sampling does ---------------------------------------------------------------------------


@torch.no_grad()
def sampling(args: argparse.Namespace, sequences: Sequence[InputRow]) -> list[dict[str, Any]]:
    """Mean and squared error of stored samples of some positions, over many seeds."""
    from softlabels.teachers import TeacherOptions, open_teacher

    teacher = open_teacher(args.teacher, TeacherOptions(dtype="float32"))
    logits = torch.cat([x.clone() for x in teacher.logits(sequences[:2])])
    logits = logits[:: max(1, len(logits) // args.positions)][: args.positions]
    p = logits.double().softmax(1).numpy()
    draws, rows = args.seeds, []
    rng = np.random.default_rng(0)
    for name, k, values in (
        ("sampled", 12, "float32"),
        ("sampled", 12, "nat8"),
        ("sampled", 12, "nat16"),
        ("rs", draws_for(p, 12), "float32"),
    ):
        estimator = make_estimator(name, {"k": k, "temperatures": (1.0,)})
        codec = make_codec(values)
        squared = ids = 0.0
        worst = 0.0
        for i in range(len(p)):
            total, square = np.zeros(p.shape[1]), np.zeros(p.shape[1])
            for begin in range(0, draws, args.chunk):
                n = min(args.chunk, draws - begin)
                u = torch.from_numpy(rng.random((n, estimator.uniforms)))
                s = estimator.select(logits[i].repeat(n, 1), u)
                t = SoftTargets(
                    ids=s.ids.int().numpy(),
                    gaps=(s.logp.max(1, keepdim=True).values - s.logp).numpy(),
                    log_odds=s.log_odds.numpy(),
                    temperatures=(1.0,),
                    vocab_size=p.shape[1],
                    estimator=name,
                )
                numbers = codec.to_numbers(t, rng.random(t.ids.shape))
                score = np.where(t.kept, codec.scores(numbers.values), -np.inf)
                w = np.exp(score - score.max(1, keepdims=True)).astype(np.float64)
                w /= w.sum(1, keepdims=True)
                np.add.at(total, t.ids, w)
                np.add.at(square, t.ids, w * w)
                ids += t.kept.sum()
                mine = p[i][t.ids]
                squared += (p[i] ** 2).sum() * n + ((w - mine) ** 2 - mine**2)[t.kept].sum()
            mean = total / draws
            spread = np.sqrt(np.maximum(square / draws - mean**2, 0) / draws)
            matters = p[i] * draws > 100  # an id seen too seldom has no spread to speak of
            off = np.abs(mean - p[i]) - 1e-6
            worst = max(
                worst, float((off / np.maximum(spread, 1e-12))[matters & (off > 0)].max(initial=0))
            )
        rows.append(
            {
                "stored": f"{name} {values}",
                "ids": ids / draws / len(p),
                "squared error": squared / draws / len(p),
                "furthest from the mean, in standard errors": worst,
            }
        )
    return rows


def draws_for(p: np.ndarray[Any, Any], ids: float) -> int:
    """Draws with replacement that give so many distinct ids, on average."""
    return next(n for n in range(1, 1000) if (1 - (1 - p) ** n).sum(1).mean() >= ids)


def show(rows: list[dict[str, Any]]) -> None:
    columns = list(dict.fromkeys(name for row in rows for name in row))
    print("| " + " | ".join(columns) + " |\n|" + "---|" * len(columns))
    for row in rows:
        print("| " + " | ".join(cell(row.get(c, "")) for c in columns) + " |")


def cell(value: float | str) -> str:
    if isinstance(value, str):
        return value
    return f"{value:,.4g}" if abs(value) < 100 else f"{value:,.0f}"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--teacher", required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--text", type=Text.parse, action="append", default=[])
    parser.add_argument("--dtype", default="bfloat16", help="of the teacher's body")
    parser.add_argument("--rows", type=int, default=220, help="of training text, 256 tokens each")
    parser.add_argument("--heldout-rows", type=int, default=40)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--positions", type=int, default=16, help="that are sampled many times")
    parser.add_argument("--seeds", type=int, default=10_000)
    parser.add_argument("--chunk", type=int, default=200)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(os.cpu_count() or 1)
    texts = Texts(args.teacher, args.work, dtype=args.dtype)
    parts = {
        text.name: (
            texts.part(f"{text.name}-train", text.train, args.rows),
            texts.part(f"{text.name}-heldout", text.heldout, args.heldout_rows),
        )
        for text in [AUSTEN, *args.text]
    }
    torch.set_num_threads(1)
    pa.set_cpu_count(1)
    rows = [
        row
        for name, (train_on, heldout) in parts.items()
        for row in encodings(name, train_on, heldout, args.repeats)
    ]
    show(rows)
    samples = []
    if args.seeds:
        torch.set_num_threads(os.cpu_count() or 1)
        samples = sampling(args, parts[AUSTEN.name][1]["sampled"].shard.rows)
        show(samples)
    if args.json:
        args.json.write_text(json.dumps({"encodings": rows, "sampling": samples}, indent=2))


if __name__ == "__main__":
    main()
