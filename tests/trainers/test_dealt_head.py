"""A student's head that is dealt out over processes: loss and gradients are those of the whole one. Real gloo."""

import importlib.util
from itertools import product

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Replicate, Shard
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    RowwiseParallel,
    parallelize_module,
)

from softlabels.core.ranks import Ranks, dealt
from softlabels.errors import ConfigError
from tests.fakes import build_tiny, write_corpus
from tests.students import llama
from tests.trainers.test_losses import batch_of
from trainers import SoftTargetStream, distil_loss
from trainers.loss.divergences import DIVERGENCES
from trainers.loss.head import Head
from trainers.loss.head_chunks import HeadChunks
from trainers.loss.losses import DistillLoss
from trainers.loss.topk_tail import topk_tail

transformers = pytest.importorskip("transformers", reason="needs the extra hf")

N, D, V, K = 13, 6, 101, 9
"""V is no multiple of any number of processes."""
SHAPES = ({}, {"scale": 0.5, "softcap": 5.0})
SMALL = {"chunk_bytes": 8 * V}
"""Of a budget, in which a chunk is a row or a few."""


def made():
    g = torch.Generator().manual_seed(3)

    def normal(*shape):
        return torch.randn(*shape, generator=g, dtype=torch.float64)

    return normal(N, V) * 3, normal(N, D), normal(V, D), normal(V)


def cases():
    """Losses, each with an estimator of its targets."""
    for name, t in product(DIVERGENCES.names(), (1.0, 2.0)):
        yield DistillLoss(divergence=name, temperature=t, alpha=0.7, **SMALL), "topk", (1.0, 2.0)
    hard = {"label_smoothing": 0.1, "z_loss": 1e-3}
    yield DistillLoss(temperature=2.0, alpha=0.5, **hard, **SMALL), "topk", (1.0, 2.0)
    yield DistillLoss(alpha=0.9, **hard), "sampled", (1.0,)
    yield DistillLoss(temperature=2.0, alpha=1.0), "sampled", (2.0,)
    yield DistillLoss(alpha=0.0, **hard, **SMALL), "topk", (1.0,)


def step(loss, batch, hidden, weight, bias, **head):
    """Loss, all sums, and the gradients of hidden, weight and bias."""
    leaves = [x.clone().requires_grad_() for x in (hidden, weight, bias)]
    layer = Head(weight=leaves[1], bias=leaves[2], **head)
    out = loss(leaves[0], layer, batch)
    return out, torch.autograd.grad(3.0 * out.loss, leaves)


def same(found, expected):
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def compare(ranks):
    logits, hidden, weight, bias = made()
    own = [dealt(x, ranks) for x in (weight, bias)]
    for (loss, estimator, grid), shape in product(cases(), SHAPES):
        batch = batch_of(logits, estimator, K, grid=grid)
        out, (d_hidden, d_weight, d_bias) = step(loss, batch, hidden, weight, bias, **shape)
        mine, (m_hidden, m_weight, m_bias) = step(loss, batch, hidden, *own, ranks=ranks, **shape)
        same(mine.loss, out.loss)
        same(torch.tensor(mine[1:]), torch.tensor(out[1:]))
        same(m_hidden, d_hidden)
        same(m_weight, dealt(d_weight, ranks))
        same(m_bias, dealt(d_bias, ranks))
    ids = torch.from_numpy(batch.targets.ids).long()
    kept = torch.from_numpy(batch.targets.kept)
    for t in (1.0, 0.5):
        asked = {"temperature": t, "with_mean": True, "chunk_bytes": 8 * V}
        places = (ids, kept, batch.labels)
        whole = topk_tail(HeadChunks(hidden, Head(weight=weight, bias=bias), *places, **asked))
        part = Head(weight=own[0], bias=own[1], ranks=ranks)
        same(topk_tail(HeadChunks(hidden, part, *places, **asked)), whole)
    with pytest.raises(ConfigError, match="deal it out as torch chunks a tensor"):
        Head(weight=weight, bias=bias, ranks=ranks)


def _rank(rank, rendezvous, sizes):
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=max(sizes)
    )
    for size in sizes:
        group = dist.new_group(list(range(size)))
        if rank < size:
            compare(Ranks(V, group))
    dist.destroy_process_group()


@pytest.mark.slow
def test_loss_and_gradients_are_those_of_the_whole_head_on_2_4_and_8_processes(tmp_path):
    mp.start_processes(_rank, (tmp_path / "meet", (2, 4, 8)), nprocs=8, start_method="spawn")


def _gradients(model, batch):
    out = distil_loss(model, batch, DistillLoss(alpha=0.7, chunk_bytes=40_000))
    out.loss.backward()
    found = {name: p.grad for name, p in model.named_parameters()}
    whole = {n: g.full_tensor() if isinstance(g, DTensor) else g for n, g in found.items()}
    return torch.tensor([out.loss.item(), *out[1:]]), whole


def _model():
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(
        **llama(layers=2, width=16, tie_word_embeddings=False)
    )
    return transformers.AutoModelForCausalLM.from_config(config).double()


def _model_rank(rank, rendezvous, store, size):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=size)
    mesh = dist.device_mesh.init_device_mesh("cpu", (size,))
    batch = SoftTargetStream(store, batch_size=4, prefetch=0).batch_at(0)
    for outputs, here in product((Replicate(), Shard(-1)), (True, False)):
        model = _model()
        expected = _gradients(model, batch)
        model = _model()
        how = ColwiseParallel(output_layouts=outputs, use_local_output=here)
        parallelize_module(model, mesh, {"lm_head": how})
        assert isinstance(model.lm_head.weight, DTensor)
        same(_gradients(model, batch), expected)
    model = _model()
    parallelize_module(model, mesh, {"lm_head": RowwiseParallel(input_layouts=Replicate())})
    with pytest.raises(ConfigError, match="deal it out by its rows over one"):
        distil_loss(model, batch)
    _sharded(batch, size)
    dist.destroy_process_group()


def _sharded(batch, size):
    """FSDP gathers a head for its own forward, on a mesh of any shape; what it gathers inside of one is refused."""
    wide = dist.device_mesh.init_device_mesh("cpu", (1, size), mesh_dim_names=("again", "shard"))
    model = _model()
    expected = _gradients(model, batch)
    model = _model()
    fully_shard(model.lm_head, mesh=wide)
    fully_shard(model, mesh=wide)
    same(_gradients(model, batch), expected)
    if importlib.util.find_spec("peft") is not None:
        from peft import LoraConfig, get_peft_model

        kept = LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=["lm_head"])
        model = get_peft_model(_model(), kept)
        fully_shard(model.get_output_embeddings().modules_to_save["default"])
        with pytest.raises(ConfigError, match="head as one layer"):
            distil_loss(model, batch)


@pytest.mark.slow
def test_a_model_whose_head_torch_deals_out(tmp_path):
    corpus = write_corpus(tmp_path, documents=1, repeat=1)
    build_tiny(tmp_path / "store", corpus)
    size = 2
    ranks = (tmp_path / "meet", tmp_path / "store", size)
    mp.start_processes(_model_rank, ranks, nprocs=size, start_method="spawn")
