"""Does `softlabels kld` say what whole distributions say, and what does it cost over running the candidate alone?

    python tests/benchmarks/kld.py --model hf:models/original --candidate int8=models/int8 \\
        --candidate int4=models/int4 --corpus 'text:data/austen/heldout/*.txt' --rows 41 --out kld.json

Makes a reference of the model, then compares each candidate with it. In the same pass, on the same logits, every figure
is also taken from both whole distributions in float64; the model runs again for that. Prints, for each candidate, both;
how many positions lie within the stated bound; the median error of a position's KL; bytes of a position, by codec; and
the time of the pass over the bare forward, in turns (median of the repeats' own ratios). With --reference the store is
kept there.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as the command line does, before torch
os.environ.setdefault("GOMP_SPINCOUNT", "2000")

import numpy as np
import torch
from torch import Tensor

from softlabels.algebra.convert import convert
from softlabels.format.figures import figures_of
from softlabels.kld.candidates import load, models_of
from softlabels.kld.compare import Wide, compare
from softlabels.kld.config import KldConfig
from softlabels.kld.findings import true_kl
from softlabels.kld.reference import make_reference
from softlabels.kld.reference_config import ReferenceConfig
from softlabels.store.reader import Store, open_store
from softlabels.teachers import Teacher

SHARES = {"median": 0.5, "90 %": 0.9, "99 %": 0.99, "99.9 %": 0.999, "largest": 1.0}


class Watched(Teacher):
    """A candidate, of whose chunks the dense figures are taken before they are handed on."""

    def __init__(self, candidate: Teacher, reference: Teacher) -> None:
        self.candidate, self.reference = candidate, reference
        self.record, self.tokenizer = candidate.record, candidate.tokenizer
        self.kl: list[Tensor] = []
        self.accept: list[Tensor] = []
        self.same: list[Tensor] = []
        self.logps: list[Tensor] = []

    @torch.no_grad()
    def logits(self, rows: Sequence[Any]) -> Iterator[Tensor]:
        labels = torch.from_numpy(np.concatenate([r.labels for r in rows]).astype(np.int64))
        done = 0
        both = zip(self.reference.logits(rows), self.candidate.logits(rows), strict=True)
        for ours, theirs in both:
            n = len(ours)
            logp, logq = torch.log_softmax(ours.double(), 1), torch.log_softmax(theirs.double(), 1)
            logq = logq[:, : logp.shape[1]]
            p, own = logp.exp(), labels[done : done + n, None]
            self.kl.append((p * (logp - logq)).sum(1))
            self.accept.append(torch.minimum(p, logq.exp()).sum(1))
            self.same.append(ours.argmax(1) == theirs.argmax(1))
            self.logps.append(torch.cat([logp.gather(1, own), logq.gather(1, own)], 1))
            done += n
            yield theirs


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


def one(name: str, store: Store, wide: Wide | None, watched: Watched) -> dict[str, Any]:
    found = compare(store, watched, wide=wide)
    said, a = found.said, found.answered
    kl, accept, same = (torch.cat(x).numpy() for x in (watched.kl, watched.accept, watched.same))
    logp, logq = torch.cat(watched.logps).numpy().T
    scale, true = true_kl(a)
    ours = figures(a.kl, a.same_top, said.label_logp, a.label_logp)
    dense = figures(kl, same, logp, logq)
    # What the codec rounds may put the bins a little above the truth where the two are equal.
    within = (a.kl <= kl + 1e-3) & (kl <= a.kl + a.most + 1e-3)
    some = kl > 1e-6
    return {
        "name": name,
        "ours": ours | {"KL, mean, estimated": float(true.mean())},
        "dense": dense | {"KL, mean, estimated": dense["KL, mean"]},
        "accepted": [float(a.accept_low.mean()), float(accept.mean()), float(a.accept_high.mean())],
        "within_bound": float(within.mean()),
        "mean_of_bound": float((a.kl + a.most).mean()),
        "median_error": float(np.median(np.abs(a.kl - kl)[some] / kl[some])),
        "median_error_estimated": float(np.median(np.abs(true - kl)[some] / kl[some])),
        "scale": scale,
        "positions": len(kl),
    }


def cost(store: Store, teacher: Teacher, rows: int, repeats: int) -> float:
    """Time of the pass over the bare forward of the same rows."""
    ratios = []
    for _ in range(repeats):
        begun = time.perf_counter()
        for i in range(0, rows, 4):
            for chunk in teacher.logits([store.row(r).row for r in range(i, min(i + 4, rows))]):
                del chunk
        bare = time.perf_counter() - begun
        begun = time.perf_counter()
        compare(store, teacher, limit_rows=rows)
        ratios.append((time.perf_counter() - begun) / bare)
    return statistics.median(ratios)


def sizes(store: Path, folder: Path, codecs: Sequence[str]) -> dict[str, float]:
    """Bytes of a position by codec."""
    found = {}
    for values in codecs:
        out = folder / f"as-{values}"
        found[values] = figures_of(convert(store, out, values=values)).bytes_per_position
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--model", required=True)
    parser.add_argument("--candidate", action="append", required=True)
    parser.add_argument("--corpus", action="append", required=True)
    parser.add_argument("--rows", type=int, default=41)
    parser.add_argument("--values", default="nat16")
    parser.add_argument("--k", type=int, default=64)
    parser.add_argument("--wide-every", type=int, default=8)
    parser.add_argument("--cost-rows", type=int, default=8, help="rows of the timing; 0: none")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--codec", action="append", default=[])
    parser.add_argument("--reference", type=Path)
    parser.add_argument("--out", type=Path)
    a = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        place = a.reference or Path(scratch) / "reference"
        config = ReferenceConfig(
            corpus=tuple(a.corpus),
            limit_rows=a.rows,
            k=a.k,
            values=a.values,
            wide_every=a.wide_every,
            dtype="float32",
        )
        made = make_reference(a.model, config, place)
        store = open_store(place)
        wide = Wide(open_store(f"{place}-wide")) if made.wide is not None else None
        settings = KldConfig(store=str(place))
        reference = load(
            models_of((a.model,))[0], KldConfig(store="", dtype="float32"), store, print
        )
        figures_ = figures_of(made.manifest)
        result: dict[str, Any] = {
            "bytes_per_position": figures_.bytes_per_position,
            "wide_bytes_per_position": 0.0
            if made.wide is None
            else made.wide.data_bytes / figures_.positions,
            "dense_bytes_per_position": figures_.dense_fp16_bytes_per_position,
            "sizes": sizes(place, Path(scratch), a.codec),
            "candidates": [],
        }
        for model in models_of(tuple(a.candidate)):
            teacher = load(model, settings, store, print)
            found = one(model.name, store, wide, Watched(teacher, reference))
            if a.cost_rows:
                found["time_over_bare"] = cost(store, teacher, a.cost_rows, a.repeats)
            found["bytes"] = model.bytes
            result["candidates"].append(found)
            show(found)
    print({k: v for k, v in result.items() if k != "candidates"})
    if a.out is not None:
        a.out.write_text(json.dumps(result, indent=1), encoding="utf-8")


def show(found: dict[str, Any]) -> None:
    print(f"\n{found['name']}, {found['positions']:,} positions{'':>16}kld      dense, float64")
    for name, value in found["ours"].items():
        print(f"{name:>36}  {value:>12.6g}  {found['dense'][name]:>12.6g}")
    low, true, high = found["accepted"]
    print(f"{'drafts accepted':>36}  {low:.6f} to {high:.6f}; {true:.6f}")
    for name in (
        "within_bound",
        "mean_of_bound",
        "median_error",
        "median_error_estimated",
        "scale",
    ):
        value = found[name]
        print(f"{name.replace('_', ' '):>36}  {'-' if value is None else format(value, '.6g')}")
    if "time_over_bare" in found:
        print(f"{'time over the bare forward':>36}  {found['time_over_bare']:.3f}")
    print(end="", flush=True)


if __name__ == "__main__":
    main()
