"""Training a store on some ranks and DataLoader workers, as far as its batches are concerned."""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from torch.utils.data import DataLoader

from softlabels.core.targets import SoftTargets
from trainers.data.batch import Batch
from trainers.data.dataset import SoftTargetDataset
from trainers.data.stream import SoftTargetStream


class Topology(NamedTuple):
    """How many processes share the work."""

    ranks: int
    workers: int
    """Of each rank's DataLoader; 0: it has none, and makes batches itself; -1: a bare stream with its threads."""
    start: str = "fork"

    def __str__(self) -> str:
        how = {-1: "stream", 0: "DataLoader"}.get(self.workers, f"{self.workers} {self.start}")
        return f"{self.ranks} x {how}"


def digest(slices: Sequence[Batch]) -> str:
    """Of a global batch, put together from the ranks' slices."""
    width = max(s.inputs["input_ids"].shape[1] for s in slices)
    h = hashlib.sha256(repr([s.offset for s in slices[:1]]).encode())
    for s in slices:
        h.update(np.array(s.rows, np.int64).tobytes())
    for s in slices:
        h.update(np.array(s.sources or (), np.int64).tobytes())
    for s in slices:
        own = s.inputs["input_ids"].shape[1]
        h.update(np.pad(s.inputs["input_ids"].numpy(), ((0, 0), (0, width - own))).tobytes())
    for s in slices:
        flat = s.flat_positions.numpy()
        at = flat % s.inputs["input_ids"].shape[1]
        counted = s.inputs.get("position_ids")
        own_ids = at if counted is None else counted.numpy().reshape(-1)[flat]
        h.update(np.stack([at, own_ids]).T.tobytes())
    for s in slices:
        h.update(s.labels.numpy().tobytes())
    targets = SoftTargets.concatenate([s.targets for s in slices])
    for array in (targets.ids, targets.gaps, targets.log_odds):
        h.update(np.ascontiguousarray(array).tobytes())
    return h.hexdigest()


def run(
    store: Any, topology: Topology, steps: int, state: str | None = None, **options: Any
) -> tuple[list[str], str]:
    """Digests of the next `steps` global batches, and the state after the last, as JSON.

    Loaders run ahead and are then dropped, as in a run that is killed.
    """
    loaders, sources = [], []
    for rank in range(topology.ranks):
        slices = {**options, "rank": rank, "world_size": topology.ranks}
        if topology.workers < 0:
            stream = SoftTargetStream(store, **slices)
            if state is not None:
                stream.load_state_dict(json.loads(state))
            sources.append(stream)
            loaders.append(iter(stream))
            continue
        dataset = SoftTargetDataset(store, **slices)
        if state is not None:
            dataset.load_state_dict(json.loads(state))
        sources.append(dataset)
        loaders.append(_loader(dataset, topology))
    found, states = [], [s.state_dict() for s in sources]
    for _ in range(steps):
        batches = [next(loader) for loader in loaders]
        found.append(digest(batches))
        states = [s.state_dict(after=b) for s, b in zip(sources, batches, strict=True)]
    for loader in loaders:
        if topology.workers < 0:
            loader.close()
    del loaders
    said = {json.dumps(s, sort_keys=True) for s in states}
    assert len(said) == 1, "ranks disagree about the state"
    return found, said.pop()


def _loader(dataset: SoftTargetDataset, topology: Topology) -> Iterator[Batch]:
    with warnings.catch_warnings():  # more workers than this machine has cores: on purpose
        warnings.filterwarnings("ignore", message="This DataLoader will create")
        return iter(
            DataLoader(
                dataset,
                batch_size=None,
                num_workers=topology.workers,
                multiprocessing_context=topology.start if topology.workers else None,
            )
        )
