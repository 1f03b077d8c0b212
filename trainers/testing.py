"""Conformance batteries of the trainer's side; see `softlabels.testing`, which has the others."""

from __future__ import annotations

import io
import tempfile
from collections.abc import Sequence
from contextlib import redirect_stdout
from pathlib import Path

import torch
from torch import Tensor

from softlabels.store.reader import open_store
from trainers.data.batch import Batch, collate
from trainers.data.tasks import Task
from trainers.exports import FORMATS
from trainers.exports.config import ExportConfig
from trainers.exports.domains import exported
from trainers.exports.record import read_export
from trainers.exports.student import export
from trainers.loss.divergences import DIVERGENCES, Divergence, Shape
from trainers.loss.head import head_logits
from trainers.loss.losses import DistillLoss
from trainers.students import Student, check_vocab, load_student, make_student
from trainers.trackers import TRACKERS, Tracked

__all__ = ["check_export", "check_loss", "check_student", "check_tracker"]

N, BINS = 200, 7
ROWS = 3
CLOSE = 1e-3
"""Of logits, as a share of their spread, in float32."""


def check_loss(name: str) -> None:
    """Check a registered divergence over K+1 bins, and what it declares of samples and tails.

    Args:
        name: as `--loss` takes it.

    Raises:
        AssertionError: says which part of the contract is broken.
        ConfigError: there is no such loss.
    """
    loss = DIVERGENCES.load(name)
    assert isinstance(loss, Divergence), (
        f"{name}: is a {type(loss).__name__}; declare the function with @trainers.loss.divergences.divergence(…)"
    )
    g = torch.Generator().manual_seed(0)
    log_p = torch.randn(N, BINS, generator=g, dtype=torch.float64).mul(3).log_softmax(1)
    z = torch.randn(N, BINS, generator=g, dtype=torch.float64).mul(3)
    value, gradient = _of(loss, log_p, z)
    assert value.shape == (N,), f"{name}: gives {tuple(value.shape)} for N = {N} positions"
    assert bool((value >= -1e-9).all()), f"{name}: is negative at some positions"
    assert bool((value > 0).any()), f"{name}: is 0 wherever teacher and student differ"
    same, _ = _of(loss, log_p, log_p.clone())
    assert bool((same.abs() < 1e-9).all()), f"{name}: is not 0 where the student equals its teacher"
    absent = torch.full((N, 2), -torch.inf, dtype=torch.float64)
    padded = _of(loss, torch.cat([log_p, absent], 1), torch.cat([z, absent], 1))
    _close(name, padded[0], value, "the value changes with bins that neither side has (-inf)")
    _close(name, padded[1][:, :BINS], gradient, "the gradient changes with bins that neither has")
    _check_extremes(name, loss)
    if loss.refuses_samples is None:
        _check_linear(name, loss, log_p, z)
    if not loss.needs_tail:
        cut = log_p.clone()
        cut[:, -1] = -torch.inf
        _check_finite(name, loss, cut.log_softmax(1), z, "from a head without a tail (needs_tail)")


def _of(loss: Divergence, log_p: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
    """Value `[N]` and the gradient `[N, K+1]` of its sum by the student's logits."""
    z = z.detach().requires_grad_()
    value = loss(log_p, torch.log_softmax(z, 1), Shape())
    (gradient,) = torch.autograd.grad(value.sum(), z)
    return value.detach(), gradient


def _check_extremes(name: str, loss: Divergence) -> None:
    """Certain teachers and students that agree or not, in single precision."""
    z = torch.zeros(4, BINS)
    z[:, 0] = torch.tensor([60.0, 60.0, -60.0, -60.0])
    log_p = torch.zeros(4, BINS)
    log_p[:, 0] = torch.tensor([60.0, -60.0, 60.0, -60.0])
    _check_finite(name, loss, log_p.log_softmax(1), z, "of certain teachers and students")


def _check_finite(name: str, loss: Divergence, log_p: Tensor, z: Tensor, what: str) -> None:
    for part, found in zip(("value", "gradient"), _of(loss, log_p, z), strict=True):
        assert bool(found.isfinite().all()), f"{name}: the {part} {what} is not finite"


def _check_linear(name: str, loss: Divergence, log_p: Tensor, z: Tensor) -> None:
    """The gradient of a mixture of teachers is the mixture of the gradients."""
    other = log_p.flip(0)
    mixed = torch.logaddexp(log_p, other) - torch.log(torch.tensor(2.0, dtype=torch.float64))
    expected = (_of(loss, log_p, z)[1] + _of(loss, other, z)[1]) / 2
    _close(
        name,
        _of(loss, mixed, z)[1],
        expected,
        "takes samples (refuses_samples=None), and its gradient is not linear in the teacher's probabilities",
    )


def _close(name: str, found: Tensor, expected: Tensor, what: str) -> None:
    assert torch.allclose(found, expected, rtol=1e-6, atol=1e-9), f"{name}: {what}"


def check_student(spec: str, store: Path | str, *, images: Sequence[str] = ()) -> None:
    """Check a registered student on a store of its domain.

    Args:
        spec: as `--student` takes it, `NAME:ARGUMENT`.
        store: a store whose domain, classes and vocabulary it is made for.
        images: of a store of images, where they lie.

    Raises:
        AssertionError: says which part of the contract is broken.
        ConfigError, PairingError: it cannot be made, or does not fit the store.
    """
    opened = open_store(store, images=images)
    task = Task.of(opened)
    student, twin = (make_student(spec, seed=7, task=task).eval() for _ in range(2))
    check_vocab(student, opened, where=spec)
    for name, weight in student.state_dict().items():
        same = torch.equal(weight, twin.state_dict()[name])
        assert same, f"{spec}: {name} differs though the seed is the same"
    inside = set(student.modules())
    assert all(layer in inside for layer in student.layers()), f"{spec}: layers() are not its own"
    rows = [opened.row(i) for i in range(min(ROWS, len(opened)))]
    batch = collate(rows)
    logits = _logits(spec, student, batch)
    assert logits.shape == (batch.positions, opened.vocab_size), (
        f"{spec}: gives logits {tuple(logits.shape)}, expected {(batch.positions, opened.vocab_size)}"
    )
    alone = torch.cat([_logits(spec, student, collate([row])) for row in rows])
    _like(spec, alone, logits, "a row alone and beside others")
    _check_learns(spec, student, batch)
    with tempfile.TemporaryDirectory() as folder:
        twin.save(Path(folder))
        loaded = load_student(Path(folder), Task.saved(task.domain, Path(folder))).eval()
        _like(spec, _logits(spec, loaded, batch), logits, "the student and what hf:FOLDER loads")


def _logits(spec: str, student: Student, batch: Batch) -> Tensor:
    """`[N, V]` at the batch's positions."""
    with torch.no_grad():
        hidden, head = batch.at_positions(student.hidden(batch)), student.head()
        logits = head_logits(hidden, head)
    assert bool(logits.isfinite().all()), f"{spec}: gives logits that are not finite"
    return logits


def _check_learns(spec: str, student: Student, batch: Batch) -> None:
    temperature = batch.targets.temperatures[0]
    loss = DistillLoss(temperature=temperature)(student.hidden(batch), student.head(), batch).loss
    torch.autograd.backward(loss)
    gradients = [p.grad for p in student.parameters() if p.grad is not None]
    assert all(bool(g.isfinite().all()) for g in gradients), (
        f"{spec}: has a gradient that is not finite"
    )
    assert any(bool(g.any()) for g in gradients), f"{spec}: nothing in it learns from the loss"


def check_export(name: str, run: Path, out: Path, *, heldout: Path | None = None) -> None:
    """Check a registered export format on a finished run: `softtrain export`, which compares it with the student.

    Args:
        name: as `--format` takes it.
        run: a finished run.
        out: a folder to make, or an export that `softtrain export` made of it.
        heldout: store whose rows it is checked on; None: the run's own.

    Raises:
        AssertionError: says which part of the contract is broken.
        ExportError: it does not answer as the student does.
        ConfigError, RunError: there is no such format, or the run cannot be exported.
    """
    form = FORMATS.load(name)
    assert form.name == name, f"{name}: says that its name is {form.name!r}"
    if not out.exists():
        given = None if heldout is None else str(heldout)
        export(run, out, ExportConfig(format=name, heldout=given))
    record = read_export(out)
    assert record.kind == name, f"{name}: {out} is an export as {record.kind}"
    assert (out / record.model).exists(), f"{name}: names {record.model!r}, which it did not write"
    domain = exported(record.domain)
    origin = domain.origin(out)
    assert form.needs(origin).strip(), f"{name}: does not say what a user must install"
    compile(form.snippet(origin), f"snippet of {name}", "exec")


def _like(spec: str, found: Tensor, expected: Tensor, what: str) -> None:
    slack = CLOSE * float(expected.std())
    error = float((found - expected).abs().max())
    assert error <= slack, (
        f"{spec}: {what} have logits that differ by {error:.4g}, more than {slack:.4g}"
    )


def check_tracker(spec: str, run: Path) -> None:
    """Check a registered tracker: it takes any number, is resumed, and prints nothing where a command's result goes.

    Args:
        spec: as `--track` takes it.
        run: folder of a run, or an empty one.

    Raises:
        AssertionError: says which part of the contract is broken.
        ConfigError: there is no such tracker, or it cannot begin.
    """
    facts = {"config": {"lr": 0.1, "store": ["a", "b"], "init": None}, "store_digest": "0" * 64}
    out = io.StringIO()
    with redirect_stdout(out):
        for last, steps in ((0, (1, 2, 3)), (2, (3, 4))):  # resumed: step 3 is taken again
            tracker = TRACKERS.make(spec, tracked=Tracked(run=run, step=last, facts=facts))
            for step in steps:
                numbers = {"loss": 1 / step, "nan": float("nan"), "inf": float("inf")}
                tracker.log(step, numbers)
                assert len(numbers) == 3, f"{spec}: changes the numbers that it is given"
            tracker.flush()
            tracker.close()
    assert out.getvalue() == "", f"{spec}: prints to stdout: {out.getvalue()[:80]!r}"
