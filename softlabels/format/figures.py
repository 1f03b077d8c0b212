"""The figures of a store that people compare: the sums of its manifest, each over what it is of."""

from __future__ import annotations

import math
from dataclasses import dataclass

from softlabels.format.manifest import Manifest


@dataclass(frozen=True, kw_only=True)
class Figures:
    """Of one store; losses and entropies in nats, None where something is not known."""

    rows: int
    positions: int
    soft_positions: int
    """Positions with a soft target."""
    labelled: int
    """Positions with a label."""
    tokens: int
    documents: int
    shards: int
    data_bytes: int
    bytes_per_position: float
    dense_fp16_bytes_per_position: int
    """What the teacher's logits would take."""
    estimator: str
    k: int
    temperatures: list[float]
    kept_ids: float
    """Mean over soft positions."""
    kept_mass: list[float]
    """Mean over soft positions, at each temperature."""
    teacher_nll: float | None
    """The teacher's own loss: mean over the labels."""
    accuracy: float | None
    """Share of the labels that are the teacher's likeliest id."""
    entropy: float | None
    """The teacher's: mean over all positions."""
    digest: str
    seconds: float
    """Of the teacher's work."""

    @property
    def perplexity(self) -> float | None:
        """Of the labels to the teacher."""
        return None if self.teacher_nll is None else math.exp(min(self.teacher_nll, 700))

    @property
    def times_smaller(self) -> float:
        """Bytes of dense logits for each byte of the store."""
        return self.dense_fp16_bytes_per_position / self.bytes_per_position


def dense_fp16_bytes(vocab_size: int) -> int:
    """Bytes of a position's logits in 16 bits."""
    return 2 * vocab_size


def figures_of(manifest: Manifest) -> Figures:
    """What a manifest's sums come to."""
    identity, statistics = manifest.identity, manifest.statistics
    n = max(identity.corpus.positions, 1)
    soft, labelled = statistics.soft_of(n), statistics.labelled_of(n)

    def mean(total: float | None, count: int) -> float | None:
        return None if total is None or count == 0 else total / count

    return Figures(
        rows=manifest.rows,
        positions=n,
        soft_positions=soft,
        labelled=labelled,
        tokens=identity.corpus.tokens,
        documents=identity.corpus.documents,
        shards=len(manifest.shards),
        data_bytes=manifest.data_bytes,
        bytes_per_position=manifest.data_bytes / n,
        dense_fp16_bytes_per_position=dense_fp16_bytes(identity.teacher.vocab_size),
        estimator=identity.targets.estimator,
        k=identity.targets.k,
        temperatures=identity.targets.temperatures,
        kept_ids=statistics.kept_ids / max(soft, 1),
        kept_mass=[mass / max(soft, 1) for mass in statistics.kept_mass],
        teacher_nll=mean(statistics.teacher_nll, labelled),
        accuracy=mean(statistics.teacher_right, labelled),
        entropy=mean(statistics.teacher_entropy, n),
        digest=manifest.content_digest,
        seconds=manifest.cost.seconds,
    )
