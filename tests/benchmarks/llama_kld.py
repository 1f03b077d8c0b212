"""Does `softlabels kld` say what llama.cpp's own tool says, on the same numbers?

    llama-perplexity -m F32.gguf -f text -c 512 --chunks 8 --kl-divergence-base base.kld
    llama-perplexity -m Q4_0.gguf -f text -c 512 --chunks 8 --kl-divergence-base base.kld --kl-divergence
    llama-perplexity -m Q4_0.gguf -f text -c 512 --chunks 8 --kl-divergence-base Q4_0.kld
    softlabels import 'llama-kld?k=64' base.kld --teacher hf:models/original --out reference
    softlabels import 'llama-kld?k=1024' base.kld --teacher hf:models/original --out reference-wide
    python tests/benchmarks/llama_kld.py Q4_0.kld --store reference

The third command writes what the candidate says at the same positions, which is read here in the place of a model: so
both tables are of llama.cpp's numbers, and what differs is how KL is taken of them. Ids that its 16 bits clip share
what the others leave of 1.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("GOMP_SPINCOUNT", "2000")

import numpy as np
import torch
from torch import Tensor

from softlabels.format.identity import TeacherRecord
from softlabels.kld.compare import Wide, compare
from softlabels.kld.findings import candidate_of
from softlabels.kld.record import CandidateFacts
from softlabels.kld.text import ROWS, figure_of
from softlabels.store.reader import open_store
from softlabels.teachers import Teacher


class FromFile(Teacher):
    """What a file says of each chunk's second half, as logits."""

    def __init__(self, path: Path, record: TeacherRecord) -> None:
        self.record, self._file = record, path.open("rb")
        assert self._file.read(8) == b"_logits_"
        self.size, self.vocab, chunks = np.frombuffer(self._file.read(12), "<i4").tolist()
        self._file.seek(20 + 4 * self.size * chunks)

    def logits(self, rows: Sequence[Any]) -> Iterator[Tensor]:
        width = 8 + 2 * (self.vocab + self.vocab % 2)
        for _ in range(len(rows) * (self.size - 1 - self.size // 2)):
            data = self._file.read(width)
            step, least = np.frombuffer(data[:8], "<f4").astype(np.float64)
            units = np.frombuffer(data[8 : 8 + 2 * self.vocab], "<u2")
            logp = step * units + least
            clipped = units == 0
            left = max(1 - np.exp(logp[~clipped]).sum(), 1e-8)
            logp[clipped] = np.log(left / max(clipped.sum(), 1))
            yield torch.from_numpy(logp.astype(np.float32))[None]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("candidate", type=Path)
    parser.add_argument("--store", required=True)
    a = parser.parse_args()
    store = open_store(a.store)
    wide = Path(f"{a.store}-wide")
    teacher = FromFile(a.candidate, store.manifest.identity.teacher)
    found = compare(store, teacher, wide=Wide(open_store(wide)) if wide.is_dir() else None)
    texts = dict.fromkeys(("spec", "weights_sha256", "dtype", "device", "engine"), "")
    facts = CandidateFacts(
        name=a.candidate.name,
        parameters=0,
        bytes=None,
        vocab_size=teacher.vocab,
        seconds=0,
        tokens_per_second=0,
        **texts,
    )
    candidate = candidate_of(found, facts, classes=None, replicates=1000, seed=0)
    for name, key, unit in ROWS:
        print(f"{name:>45}  {figure_of(candidate, key, unit)}")


if __name__ == "__main__":
    main()
