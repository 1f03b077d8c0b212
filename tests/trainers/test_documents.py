"""Documents that share a row do not see each other, whatever the student is made of and whoever trains it."""

from __future__ import annotations

import json
import warnings

import pytest
import torch

from softlabels.store.reader import open_store
from tests.fakes import BYTES, Notices, build_tiny
from tests.families import EVERY, model_of
from trainers import DistillLoss, SoftTargetStream, distil_loss
from trainers.data.batch import COUNTED, collate
from trainers.data.microbatches import split_batch, widen
from trainers.data.packing import collate_packed, separated
from trainers.evaluation.measure import measure
from trainers.integrations import check_fit
from trainers.loss.totals import StepTotals
from trainers.run.config import RunConfig
from trainers.run.setup import train
from trainers.students import Student
from trainers.students.documents import keeps_documents_apart, laid_out

transformers = pytest.importorskip("transformers", reason="needs the extra hf")
T = 2.0
LOSS = DistillLoss(temperature=T, alpha=0.7)
FEW = ("llama", "gpt2", "openai", "qwen3_5", "lfm2", "bamba")


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """Rows of several documents, of which some positions have no target."""
    folder = tmp_path_factory.mktemp("documents")
    (folder / "corpus").mkdir()
    for i in range(24):
        (folder / "corpus" / f"{i:02}.txt").write_text(f"document {i} says " * (1 + i % 4))
    corpus = f"text:{folder}/corpus/*.txt"
    build_tiny(folder / "store", corpus, seq_len=96, temperature=(1.0, T))
    return folder / "store"


@pytest.fixture(scope="module")
def rows(store):
    return [open_store(store).row(i) for i in range(4)]


def student_of(family, store):
    """With a head as wide as the store's vocabulary."""
    model = model_of(family)
    model.resize_token_embeddings(open_store(store).vocab_size)
    return Student(model.eval())


def alone(student, rows):
    """`[N, D]`: of each document by itself."""
    found = []
    for stored in rows:
        for row in stored.row.alone():
            ids = torch.from_numpy(row.input_ids.astype("int64"))[None]
            hidden = student.model.base_model(input_ids=ids, use_cache=False).last_hidden_state[0]
            found.append(hidden[torch.from_numpy(row.positions)])
    return torch.cat(found)


@pytest.mark.parametrize("layout", ["padded", "packed", "one packed row"])
@pytest.mark.parametrize("family", EVERY)
@torch.no_grad()
def test_hidden_states_are_those_of_each_document_alone(store, rows, family, layout):
    student = student_of(family, store)
    most = {"packed": 200, "one packed row": None}
    batch = collate(rows) if layout == "padded" else collate_packed(rows, most=most[layout])
    assert COUNTED in batch.inputs
    expected = alone(student, rows)
    found = batch.at_positions(student.hidden(batch))
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4 * float(expected.std()))
    assert student.keeps_documents_apart == EVERY[family][1]


@pytest.mark.parametrize("family", FEW)
def test_losses_and_gradients_of_others_loops_are_those_of_documents_alone(store, rows, family):
    """`distil_loss` on a packed batch, and on a batch in which every document is a row of its own."""
    student, batch = student_of(family, store), collate(rows)
    other = student_of(family, store)
    out = distil_loss(student.model, batch, LOSS)
    out.loss.backward()
    hidden = alone(other, rows)
    expected = LOSS(hidden, other.head(), batch)
    expected.loss.backward()
    assert out.loss.item() == pytest.approx(expected.loss.item(), rel=1e-4)
    for (name, p), q in zip(student.named_parameters(), other.parameters(), strict=True):
        if q.grad is not None:
            atol = 1e-3 * float(q.grad.abs().max())
            torch.testing.assert_close(p.grad, q.grad, rtol=1e-3, atol=atol, msg=name)


def test_the_trial_leaves_the_model_as_it_was(store):
    student = student_of("lfm2", store)
    student.train()
    student.model.lm_head.eval()
    before = {n: m.training for n, m in student.named_modules()}
    state = torch.random.get_rng_state()
    assert not keeps_documents_apart(student.model)
    assert {n: m.training for n, m in student.named_modules()} == before
    assert torch.equal(torch.random.get_rng_state(), state)
    assert "forward" not in vars(student.model.lm_head)


@pytest.mark.parametrize("parts", [1, 2, 4])
def test_every_position_is_taken_out_of_its_row_once(rows, parts):
    """Whatever was cut, widened or packed before; tokens are those up to it."""
    whole = collate(rows)
    totals = StepTotals.over([LOSS.count(whole)])._replace(width=whole.width + 7)
    for batch in [*split_batch(whole, parts), widen(whole, totals), collate_packed(rows)]:
        apart = separated(batch)
        assert set(apart.inputs) == {"input_ids"}
        counted = batch.inputs[COUNTED].flatten()
        before, after = batch.inputs["input_ids"].flatten(), apart.inputs["input_ids"]
        assert apart.width == after.shape[1]
        for flat, own in zip(
            batch.flat_positions.tolist(), apart.flat_positions.tolist(), strict=True
        ):
            row, place = divmod(own, apart.width)
            begin = flat - int(counted[flat])
            assert torch.equal(after[row, : place + 1], before[begin : flat + 1])
        assert bool((after != 0).any(dim=1).all())


def test_a_batch_without_positions_stays(rows):
    batch = collate(rows)
    none = batch.__class__(
        rows=batch.rows,
        inputs=batch.inputs,
        width=batch.width,
        flat_positions=batch.flat_positions[:0],
        labels=batch.labels[:0],
        targets=batch.targets[:0],
    )
    assert separated(none) is none


def test_flash_attention_is_given_one_row(rows, store, monkeypatch):
    student = student_of("llama", store)
    batch = collate(rows)
    assert keeps_documents_apart(student.model)
    assert laid_out(student.model, batch) is batch
    monkeypatch.setattr(student.model.config, "_attn_implementation_internal", "flash_attention_2")
    assert laid_out(student.model, batch).inputs["input_ids"].shape[0] == 1


def test_integrations_say_so(store):
    with pytest.warns(UserWarning, match="documents that share a row see each other"):
        check_fit(student_of("lfm2", store), LOSS, open_store(store))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_fit(student_of("llama", store), LOSS, open_store(store))


@pytest.mark.parametrize(("family", "apart"), [("lfm2", False), ("llama", True)])
def test_a_run_records_and_says_it(store, tmp_path, family, apart):
    student_of(family, store).save(tmp_path / "student")
    config = RunConfig(
        store=(str(store),),
        student=f"hf:{tmp_path}/student",
        same_tokenizer=True,
        steps=2,
        batch_size=4,
        device="cpu",
    )
    said = Notices()
    train(config, tmp_path / "run", reporter=said)
    assert json.loads((tmp_path / "run" / "run.json").read_text())["documents_apart"] is apart
    assert any("see each other" in line for line in said.lines) == (not apart)


def test_evaluation_is_of_each_document_alone(store, rows):
    student = student_of("qwen3_5", store)
    found = measure(student, open_store(store), batch_size=3)
    logits = alone(student, [open_store(store).row(i) for i in range(len(open_store(store)))])
    z = logits.detach() @ student.head().weight.T
    nll = torch.nn.functional.cross_entropy(z, torch.from_numpy(found.label), reduction="none")
    torch.testing.assert_close(torch.from_numpy(found.nll), nll.double(), rtol=1e-3, atol=1e-3)


def test_a_stream_serves_it(store):
    batch = SoftTargetStream(store, batch_size=4, prefetch=0).batch_at(0)
    assert COUNTED in batch.inputs
    assert int(batch.inputs["input_ids"].max()) <= BYTES
