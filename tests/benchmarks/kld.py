"""Does `softlabels kld` say what whole distributions say, and what does it cost over running the candidate alone?

    softlabels reference hf:models/original --text 'data/austen/heldout/*.txt' --limit-rows 41 --out reference
    python tests/benchmarks/kld.py --model hf:models/original --candidate int8=models/int8 \\
        --candidate int4=models/int4 --store reference --out kld-bench

Each candidate is compared with each --store, all of one text. In the same pass, from the same logits, every figure is
also taken from both whole distributions in float64, for which the model runs again. What was seen of each row stays in
--out, a folder: a run that was stopped goes on there, and --limit-rows takes some of the rows at a time. Prints, for
each candidate and store, both; how many positions lie within the stated bounds; the median error of a position's KL;
bytes of a position. --cost-rows takes the CPU time of the pass over that of the bare forward, in turns (median of the
repeats' own ratios).
"""

from __future__ import annotations

import argparse
import os
import pickle
import statistics
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as the command line does, before torch
os.environ.setdefault("GOMP_SPINCOUNT", "2000")

import numpy as np
import torch
from torch import Tensor

from softlabels.format.figures import figures_of
from softlabels.kld.candidates import load, models_of
from softlabels.kld.compare import Compared, Wide, compare
from softlabels.kld.config import KldConfig
from softlabels.kld.findings import true_kl
from softlabels.kld.positions import joined
from softlabels.store.reader import Store, open_store
from softlabels.teachers import Teacher

SHARES = {"median": 0.5, "90 %": 0.9, "99 %": 0.99, "99.9 %": 0.999, "largest": 1.0}


class OneRow:
    """A store of which one row is there."""

    def __init__(self, store: Store, row: int) -> None:
        self._store, self._row = store, row
        self.manifest, self.path, self.vocab_size = store.manifest, store.path, store.vocab_size

    def __len__(self) -> int:
        return 1

    def row(self, _: int) -> Any:
        return self._store.row(self._row)


class Replay(Teacher):
    """A candidate whose logits of a row are known."""

    def __init__(self, candidate: Teacher, chunks: Sequence[Tensor]) -> None:
        self.record, self.tokenizer, self._chunks = candidate.record, candidate.tokenizer, chunks

    def logits(self, rows: Sequence[Any]) -> Iterator[Tensor]:
        return (chunk.clone() for chunk in self._chunks)


@torch.no_grad()
def dense(ours: Sequence[Tensor], theirs: Sequence[Tensor], labels: Tensor) -> dict[str, Any]:
    """What whole distributions say of the N positions of a row."""
    kl, accept, same, logps, done = [], [], [], [], 0
    for a, b in zip(ours, theirs, strict=True):
        logp, logq = torch.log_softmax(a.double(), 1), torch.log_softmax(b.double(), 1)
        logq, own = logq[:, : logp.shape[1]], labels[done : done + len(a), None]
        p = logp.exp()
        kl.append((p * (logp - logq)).sum(1))
        accept.append(torch.minimum(p, logq.exp_()).sum(1))
        same.append(a.argmax(1) == b.argmax(1))
        logps.append(torch.cat([logp.gather(1, own), logq.log_().gather(1, own)], 1))
        done += len(a)
    found = {"kl": kl, "accept": accept, "same": same, "logps": logps}
    return {name: torch.cat(parts).numpy() for name, parts in found.items()}


def look(a: argparse.Namespace, stores: dict[str, Store], wides: dict[str, Wide | None]) -> None:
    """Rows of which nothing is known yet: through the model and every candidate."""
    first = next(iter(stores.values()))
    rows = range(min(len(first), a.limit_rows or len(first)))
    todo = [r for r in rows if not (a.out / f"{r:05d}.pickle").exists()]
    if not todo:
        return
    reference = load(models_of((a.model,))[0], KldConfig(store="", dtype="float32"), first, print)
    candidates = {
        m.name: load(m, KldConfig(store=""), first, print) for m in models_of(tuple(a.candidate))
    }
    for r in todo:
        row = first.row(r).row
        labels = torch.from_numpy(row.labels.astype(np.int64))
        ours = [chunk.clone() for chunk in reference.logits([row])]
        found: dict[str, Any] = {}
        for name, candidate in candidates.items():
            theirs = [chunk.clone() for chunk in candidate.logits([row])]
            found[name] = {"dense": dense(ours, theirs, labels)} | {
                key: compare(OneRow(store, r), Replay(candidate, theirs), wide=wides[key])  # type: ignore[arg-type]
                for key, store in stores.items()
            }
            for key in stores:
                found[name][key].said.row[:] = r
        part = a.out / f"{r:05d}.part"
        part.write_bytes(pickle.dumps(found))
        part.rename(part.with_suffix(".pickle"))
        print(f"row {r}", flush=True)


def quantiles(kl: np.ndarray) -> dict[str, float]:
    return {f"KL, {name}": float(np.quantile(kl, q)) for name, q in SHARES.items()}


def figures(
    kl: np.ndarray, same: np.ndarray, logp: np.ndarray, logq: np.ndarray
) -> dict[str, float]:
    dp = np.exp(logq) - np.exp(logp)
    return {
        "KL, mean": float(kl.mean()),
        **quantiles(kl),
        "same first choice": float(same.mean()),
        "perplexity ratio": float(np.exp((logp - logq).mean())),
        "Δp, root mean square": float(np.sqrt((dp**2).mean())),
    }


def judge(parts: Sequence[dict[str, Any]], key: str) -> dict[str, Any]:
    """One candidate on one store, beside whole distributions."""
    found = Compared(
        said=joined([p[key].said for p in parts]),
        answered=joined([p[key].answered for p in parts]),
        beyond=0,
    )
    exact = {n: np.concatenate([p["dense"][n] for p in parts]) for n in parts[0]["dense"]}
    said, a, kl = found.said, found.answered, exact["kl"]
    known = true_kl(found)
    logp, logq = exact["logps"].T
    some = kl > 1e-9

    def error(values: np.ndarray) -> float:
        return float(np.median(np.abs(values - kl)[some] / kl[some])) if some.any() else 0.0

    return {
        "ours": figures(known.kl, a.same_top, said.label_logp, a.label_logp),
        "dense": figures(kl, exact["same"], logp, logq),
        "accepted": [
            float(a.accept_low.mean()),
            float(exact["accept"].mean()),
            float(a.accept_high.mean()),
        ],
        "positions": len(kl),
        "within the bounds": float(((a.least <= kl) & (kl <= a.most)).mean()),
        "least": float(a.least.mean()),
        "most": float(a.most.mean()),
        "over the bins": float(a.bins.mean()),
        "median error, over the bins": error(a.bins),
        "median error, estimated": error(known.kl),
        "the same, as wide rows say": known.error,
        "wide positions": int(np.isfinite(a.within).sum()),
    }


def show(name: str, found: dict[str, Any]) -> None:
    print(f"\n{name}, {found['positions']:,} positions{'':>16}kld      dense, float64")
    for what, value in found["ours"].items():
        print(f"{what:>36}  {value:>12.6g}  {found['dense'][what]:>12.6g}")
    low, true, high = found["accepted"]
    print(f"{'drafts accepted':>36}  {low:.6f} to {high:.6f}; {true:.6f}")
    for what in list(found)[4:]:
        value = found[what]
        print(f"{what:>36}  {'-' if value is None else format(value, '.6g')}")


def cost(store: Store, teacher: Teacher, rows: int, repeats: int) -> list[float]:
    """CPU time of the pass over that of the bare forward of the same rows: the ratio of each repeat."""
    ratios = []
    for _ in range(repeats):
        begun = time.process_time()
        for i in range(0, rows, 4):
            for chunk in teacher.logits([store.row(r).row for r in range(i, min(i + 4, rows))]):
                del chunk
        bare = time.process_time() - begun
        begun = time.process_time()
        compare(store, teacher, limit_rows=rows)
        ratios.append((time.process_time() - begun) / bare)
    return ratios


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--model", required=True)
    parser.add_argument("--candidate", action="append", required=True)
    parser.add_argument("--store", action="append", required=True)
    parser.add_argument("--limit-rows", type=int)
    parser.add_argument("--cost-rows", type=int, default=0, help="rows of the timing; 0: none")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path, required=True)
    a = parser.parse_args()
    a.out.mkdir(parents=True, exist_ok=True)
    stores = {place: open_store(place) for place in a.store}
    wides = {
        place: Wide(open_store(f"{place}-wide")) if Path(f"{place}-wide").is_dir() else None
        for place in a.store
    }
    look(a, stores, wides)
    seen = [pickle.loads(p.read_bytes()) for p in sorted(a.out.glob("*.pickle"))]
    for place, store in stores.items():
        of, wide = figures_of(store.manifest), wides[place]
        more = 0.0 if wide is None else wide.store.manifest.data_bytes / of.positions
        print(
            f"\n{place} ({store.manifest.identity.encoding.values}): {of.bytes_per_position:.1f} bytes a position, "
            f"{more:.1f} more for the wide rows; {of.dense_fp16_bytes_per_position:,} as logits"
        )
        for name in seen[0]:
            show(name, judge([part[name] for part in seen], place))
    if a.cost_rows:
        first = next(iter(stores.values()))
        for model in models_of(tuple(a.candidate)):
            ratios = cost(
                first, load(model, KldConfig(store=""), first, print), a.cost_rows, a.repeats
            )
            print(
                f"{model.name}: {statistics.median(ratios):.3f} times the bare forward "
                f"({', '.join(f'{r:.3f}' for r in ratios)})"
            )


if __name__ == "__main__":
    main()
