"""Every score equals a reference implementation: scikit-learn, torchmetrics, SciPy, or a dense float64 softmax."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import scipy.stats
import sklearn.metrics
import torch
import torchmetrics
from click.testing import CliRunner

from softlabels.core.progress import Silent
from softlabels.core.resampling import bootstrap, row_weights
from softlabels.errors import RunError
from softlabels.store.reader import Store, open_store
from tests.fakes import TinyTeacher, build_tiny, write_corpus
from tests.students import evaluate_run, llama
from trainers.cli import main
from trainers.data.batch import collate
from trainers.evaluation import blind_spots, groups
from trainers.evaluation.assess import assess_run
from trainers.evaluation.calibration import BINS, reliability
from trainers.evaluation.config import EvalConfig
from trainers.evaluation.evaluate import (
    evaluate,
    summarise,
)
from trainers.evaluation.evaluations import find_assessments, save_assessment
from trainers.evaluation.measure import Measured, measure
from trainers.evaluation.scores import FEW_CLASSES, TOP_K, row_sums, scores
from trainers.run.config import RunConfig
from trainers.run.setup import train
from trainers.students import Student, make_student

LLAMA = llama(width=16, initializer_range=0.3)


@pytest.fixture(scope="module")
def ground(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("evaluate")
    corpus = write_corpus(folder / "corpus")
    common = {"limit_rows": 12, "values": "float32"}
    build_tiny(folder / "dense", corpus, estimator="dense", k=300, **common)
    build_tiny(folder / "topk", corpus, k=5, **common)
    build_tiny(folder / "sampled", corpus, estimator="sampled", k=5, limit_rows=12)
    build_tiny(folder / "some", corpus, k=5, positions="entropy:0.3", **common)
    (folder / "student.json").write_text(json.dumps(LLAMA))
    return folder


@pytest.fixture(scope="module")
def run(ground: Path) -> Path:
    config = RunConfig(
        store=str(ground / "topk"),
        student=f"hf-config:{ground / 'student.json'}",
        steps=60,
        batch_size=4,
        lr=3e-2,
        dtype="float32",
    )
    train(config, ground / "run")
    return ground / "run"


@pytest.fixture(scope="module")
def student(run: Path) -> Student:
    """Trained a little, so that it agrees with the teacher now and then."""
    return make_student(f"hf:{run / 'student'}", seed=0)


def dense(student: Student, store: Store) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Log-probabilities `[N, V] float64` of teacher and student, and labels `[N]`."""
    teacher, log_p, log_q, labels = TinyTeacher(), [], [], []
    for stored in store:
        batch = collate([stored])
        with torch.no_grad():
            z = student.model.eval()(**batch.inputs)
        at = torch.from_numpy(stored.row.positions)
        log_q.append(torch.log_softmax(z.logits[0][at].double(), 1))
        log_p.append(torch.log_softmax(teacher.dense(stored.row).double(), 1))
        labels.append(torch.from_numpy(stored.row.labels.astype(np.int64)))
    return torch.cat(log_p), torch.cat(log_q), torch.cat(labels)


# -- against references ---------------------------------------------------------------------------


def test_scores_of_a_store_equal_references(ground, student):
    store = open_store(ground / "dense")
    found = evaluate(student, store, batch_size=5)
    log_p, log_q, labels = dense(student, store)
    p, q, truth = log_p.exp(), log_q.exp(), labels.numpy()
    top, teacher_top = q.argmax(1).numpy(), p.argmax(1).numpy()
    every = list(range(300))
    assert found.positions == found.soft_positions == len(labels)
    assert found.nll == pytest.approx(sklearn.metrics.log_loss(truth, q.numpy(), labels=every))
    perplexity = torchmetrics.text.Perplexity()(log_q[None].float(), labels[None])
    assert found.perplexity == pytest.approx(float(perplexity), rel=1e-5)
    assert found.accuracy == sklearn.metrics.accuracy_score(truth, top)
    f1 = sklearn.metrics.f1_score(truth, top, average="macro", zero_division=0)
    assert found.macro_f1 == pytest.approx(f1)
    ece = torchmetrics.classification.MulticlassCalibrationError(300, n_bins=BINS, norm="l1")
    assert found.ece == pytest.approx(float(ece(q.float(), labels)), abs=1e-6)
    teacher_ece = torchmetrics.classification.MulticlassCalibrationError(300, n_bins=BINS)
    assert found.teacher_ece == pytest.approx(float(teacher_ece(p.float(), labels)), abs=1e-6)
    kl = torchmetrics.KLDivergence(log_prob=True)(log_p, log_q)
    assert found.kl == pytest.approx(float(kl), rel=1e-5)
    assert found.agreement == sklearn.metrics.accuracy_score(teacher_top, top)
    k = sklearn.metrics.top_k_accuracy_score(teacher_top, q.numpy(), k=TOP_K, labels=every)
    assert found.top_k_agreement == k
    assert 0 < found.agreement < found.top_k_agreement < 1
    accepted = float(torch.minimum(p, q).sum(1).mean())
    assert found.acceptance_low == pytest.approx(accepted, rel=1e-5)
    assert found.acceptance_high == pytest.approx(accepted, rel=1e-5)
    assert found.teacher_accuracy == sklearn.metrics.accuracy_score(truth, teacher_top)
    assert found.teacher_nll == pytest.approx(
        sklearn.metrics.log_loss(truth, p.numpy(), labels=every), rel=1e-5
    )


def test_bounds_of_acceptance_from_sparse_targets_hold_at_every_position(ground, student):
    store = open_store(ground / "topk")
    m = measure(student, store)
    log_p, log_q, _ = dense(student, store)
    accepted = torch.minimum(log_p.exp(), log_q.exp()).sum(1).numpy()
    assert (m.accept_low <= accepted + 1e-6).all()
    assert (accepted <= m.accept_high + 1e-6).all()
    assert (m.accept_high - m.accept_low).mean() > 0.01
    # The kept ids' part is exact: what is between the bounds is the smaller of the two tails.
    kept = np.concatenate([r.targets.ids for r in store])
    p, q = (x.exp().numpy() for x in (log_p, log_q))
    at = np.arange(len(kept))[:, None]
    np.testing.assert_allclose(m.accept_low, np.minimum(p, q)[at, kept].sum(1), atol=1e-6)
    tails = np.minimum(1 - p[at, kept].sum(1), 1 - q[at, kept].sum(1))
    np.testing.assert_allclose(m.accept_high - m.accept_low, tails, atol=1e-6)


def test_a_sample_says_nothing_of_the_teacher_at_single_positions(ground, student):
    found = evaluate(student, open_store(ground / "sampled"))
    assert found.nll == pytest.approx(evaluate(student, open_store(ground / "topk")).nll)
    for name in ("kl", "agreement", "top_k_agreement", "acceptance_low", "teacher_accuracy"):
        assert getattr(found, name) is None, name


@pytest.mark.parametrize("bins", [1, 10, 15])
def test_calibration_error_of_random_data(bins):
    g = np.random.default_rng(bins)
    confidence = g.random(5000)
    correct = g.random(5000) < confidence**2
    reference = torchmetrics.classification.BinaryCalibrationError(n_bins=bins, norm="l1")
    # torchmetrics takes max(p, 1-p) for binary input only in the multiclass form; this one is of p itself
    expected = float(reference(torch.from_numpy(confidence), torch.from_numpy(correct).int()))
    assert reliability(confidence, correct, bins).ece == pytest.approx(expected, abs=1e-6)
    found = reliability(confidence, correct, bins)
    assert found.n.sum() == 5000
    assert found.right.sum() == correct.sum()


def random_measured(rows: int, each: int, classes: int, seed: int = 0) -> Measured:
    g = np.random.default_rng(seed)
    n = rows * each
    p, q = (g.dirichlet(np.full(classes, 0.5), n) for _ in range(2))
    label = g.integers(classes, size=n)
    label[g.random(n) < 0.1] = -1
    known = g.random(n) < 0.8
    labelled = label >= 0
    top, first = q.argmax(1), p.argmax(1)
    return Measured(
        row=np.repeat(np.arange(rows) * 3, each),
        token=np.tile(np.arange(each), rows),
        document=np.repeat(np.arange(rows) // 2, each),
        context=np.tile(np.arange(each) + 1, rows),
        label=label,
        nll=np.where(labelled, -np.log(q[np.arange(n), np.maximum(label, 0)]), 0.0),
        top=top,
        confidence=q.max(1),
        soft=known,
        known=known,
        binned=known,
        whole=np.zeros(n, np.bool_),
        kl=np.where(known, (p * np.log(p / q)).sum(1), 0.0),
        kl_dense=np.zeros(n),
        teacher_top=first,
        teacher_confidence=p.max(1),
        rank=(q > q[np.arange(n), first][:, None]).sum(1),
        accept_low=np.minimum(p, q).sum(1),
        accept_high=np.minimum(p, q).sum(1),
    )


def test_scores_of_random_data_with_missing_labels_equal_scikit_learn():
    m = random_measured(20, 15, 7)
    found = scores({name: s.sum(axis=0) for name, s in row_sums(m, 7).items()})
    has, known, both = m.labelled, m.known, m.judged
    assert both.sum() < known.sum() < m.n
    assert found["accuracy"] == sklearn.metrics.accuracy_score(m.label[has], m.top[has])
    f1 = sklearn.metrics.f1_score(m.label[has], m.top[has], average="macro", zero_division=0)
    assert found["macro_f1"] == pytest.approx(f1)
    assert found["nll"] == pytest.approx(m.nll[has].mean())
    agreement = sklearn.metrics.accuracy_score(m.teacher_top[known], m.top[known])
    assert found["agreement"] == pytest.approx(agreement)
    assert found["kl"] == pytest.approx(m.kl[known].mean())
    right = sklearn.metrics.accuracy_score(m.label[both], m.teacher_top[both])
    assert found["teacher_accuracy"] == pytest.approx(right)


# -- bootstrap -------------------------------------------------------------------------------------


def test_each_replicate_is_the_score_of_the_rows_that_were_drawn():
    """Intervals equal those of scikit-learn's scores over the same draws, made row by row."""
    m = random_measured(12, 9, 5)
    sums = row_sums(m, 5)
    found = bootstrap(sums, scores, replicates=60, seed=4, level=0.9)
    (weights,) = row_weights(12, 60, 4)
    assert (weights.sum(1) == 12).all()
    assert weights.max() > 1
    expected: dict[str, list[float]] = {"accuracy": [], "macro_f1": [], "agreement": [], "ece": []}
    for w in weights.astype(int):
        drawn = np.concatenate([np.arange(9) + 9 * r for r in np.repeat(np.arange(12), w)])
        t = drawn[m.labelled[drawn]]
        k = drawn[m.known[drawn]]
        expected["accuracy"].append(sklearn.metrics.accuracy_score(m.label[t], m.top[t]))
        expected["macro_f1"].append(
            sklearn.metrics.f1_score(m.label[t], m.top[t], average="macro", zero_division=0)
        )
        expected["agreement"].append(sklearn.metrics.accuracy_score(m.teacher_top[k], m.top[k]))
        ece = torchmetrics.classification.BinaryCalibrationError(n_bins=BINS, norm="l1")
        right = torch.from_numpy(m.correct[t]).int()
        expected["ece"].append(float(ece(torch.from_numpy(m.confidence[t]), right)))
    for name, values in expected.items():
        assert found[name] == pytest.approx(np.quantile(values, [0.05, 0.95]), abs=1e-6), name


def test_intervals_agree_with_scipy_and_depend_on_the_seed():
    g = np.random.default_rng(1)
    values = g.normal(3.0, 1.0, 80)
    sums = {"n": np.ones(80), "x": values}

    def mean(s):
        return {"mean": s["x"] / s["n"]}

    mine = bootstrap(sums, mean, replicates=4000, seed=0)["mean"]
    assert mine == bootstrap(sums, mean, replicates=4000, seed=0)["mean"]
    assert mine != bootstrap(sums, mean, replicates=4000, seed=1)["mean"]
    theirs = scipy.stats.bootstrap(
        (values,), np.mean, n_resamples=4000, method="percentile", rng=np.random.default_rng(2)
    ).confidence_interval
    assert mine == pytest.approx((theirs.low, theirs.high), abs=0.02)


def test_whole_rows_are_drawn_not_tokens():
    """Tokens of a row that are all alike make the interval as wide as so few independent values."""
    rows = np.random.default_rng(0).normal(size=30)
    one = bootstrap(
        {"n": np.ones(30), "x": rows}, lambda s: {"m": s["x"] / s["n"]}, replicates=500, seed=0
    )
    many = bootstrap(
        {"n": np.full(30, 100.0), "x": 100 * rows},
        lambda s: {"m": s["x"] / s["n"]},
        replicates=500,
        seed=0,
    )
    assert many["m"] == pytest.approx(one["m"])


@pytest.mark.parametrize(("rows", "replicates"), [(1, 100), (5, 0)])
def test_no_interval_where_nothing_can_be_said(rows, replicates):
    sums = {"n": np.ones(rows)}
    assert bootstrap(sums, lambda s: {"n": s["n"]}, replicates=replicates, seed=0) == {}


# -- groups and blind spots ------------------------------------------------------------------------


def test_cells_equal_a_confusion_matrix_in_all_and_by_confidence():
    m = random_measured(10, 20, 6)
    cells = blind_spots.count_cells(m, m.judged)
    t, s = m.teacher_correct[m.judged], m.correct[m.judged]
    ((ww, wr), (rw, rr)) = sklearn.metrics.confusion_matrix(t, s)
    assert (cells.both_right, cells.teacher_only, cells.student_only) == (rr, rw, wr)
    assert cells.copied + cells.both_wrong == ww
    wrong = m.judged & ~m.correct & ~m.teacher_correct
    assert cells.copied == (m.top == m.teacher_top)[wrong].sum() > 0
    bins = blind_spots.confidence_bins(m)
    assert sum(where.sum() for _, where in bins) == m.judged.sum()
    for i, (_, where) in enumerate(bins):
        inside = m.teacher_confidence[where]
        assert ((inside > i / 5) & (inside <= (i + 1) / 5)).all()


def test_listed_errors_are_of_their_kind_surest_first_and_each_kind_once():
    m = random_measured(10, 20, 4)
    for listed, teacher_right in (
        (blind_spots.inherited(m, 100), False),
        (blind_spots.lost(m, 100), True),
    ):
        places = np.array([n for n, _ in listed])
        assert len(places) > 5
        assert m.judged[places].all()
        assert (m.teacher_correct[places] == teacher_right).all()
        assert not m.correct[places].any()
        assert (np.diff(m.confidence[places]) <= 0).all()
        kinds = {(m.label[n], m.teacher_top[n], m.top[n]) for n in places}
        assert len(kinds) == len(places)
    cells = blind_spots.count_cells(m, m.judged)
    assert sum(times for _, times in blind_spots.inherited(m, 100)) == cells.copied
    assert len(blind_spots.lost(m, 2)) == 2


def test_groups_partition_the_positions_and_average_to_the_whole():
    m = random_measured(10, 20, 6)
    for found in (
        groups.by_context(m),
        groups.by_document(m, "document {}".format)[0],
        groups.by_row(m, 100),
    ):
        assert sum(g.positions for g in found) == m.n
        cells = [g.cells for g in found if g.cells is not None]
        assert sum(c.n for c in cells) == m.judged.sum()
    assert [g.name for g in groups.by_context(m)] == ["1", "2-3", "4-7", "8-15", "16-31"]
    by_class = groups.by_class(m, 6, str)
    has = m.labelled
    _, recall, f1, support = sklearn.metrics.precision_recall_fscore_support(
        m.label[has], m.top[has], zero_division=0
    )
    assert [g.positions for g in by_class] == support.tolist()
    assert [g.accuracy for g in by_class] == pytest.approx(recall)
    assert [g.f1 for g in by_class] == pytest.approx(f1)
    worst, documents = groups.by_document(m, "document {}".format)
    assert documents == 5
    assert [g.nll for g in worst] == sorted((g.nll for g in worst), reverse=True)


def test_contexts_are_counted_within_documents(ground, student):
    store = open_store(ground / "topk")
    m = measure(student, store)
    for stored in store:
        at = m.row == stored.index
        np.testing.assert_array_equal(m.token[at], stored.row.positions)
        begin = 0
        for document, length in zip(stored.row.documents, stored.row.segment_lengths, strict=True):
            inside = at & (m.token >= begin) & (m.token < begin + length)
            assert (m.document[inside] == document).all()
            np.testing.assert_array_equal(m.context[inside], m.token[inside] - begin + 1)
            begin += length


# -- a run ------------------------------------------------------------------------------------------


def test_an_assessment_says_what_the_evaluation_says_and_is_read_again(run, ground):
    a = assess_run(run, EvalConfig(store=str(ground / "some"), bootstrap=50), Silent())
    found = a.scores
    assert found == evaluate_run(run, ground / "some")
    assert a.scores.soft_positions < a.scores.positions
    for name in ("nll", "accuracy", "ece", "kl", "agreement", "acceptance_low"):
        x = a.intervals[name]
        assert x.low <= x.value <= x.high, name
    assert a.intervals["nll"].low < a.intervals["nll"].high
    assert sum(a.row_positions) == found.positions
    assert sum(a.row_nll) == pytest.approx(found.nll * found.positions)
    assert sum(b.count for b in a.reliability) == found.positions
    assert a.blind_spots is not None
    assert a.blind_spots.cells.n == found.soft_positions
    assert a.by_class == []
    assert FEW_CLASSES < 300
    path = save_assessment(run, a, print)
    assert find_assessments(run) == [a]
    assert path.name == f"student-{a.store.digest[:12]}.json"
    path.unlink()


def test_the_command_prints_keeps_and_repeats(run, ground):
    arguments = ["eval", str(run), "--store", str(ground / "topk"), "--bootstrap", "20"]
    text = CliRunner().invoke(main, arguments)
    assert text.exit_code == 0, text.output
    for said in ("20", "drafts accepted, at least", "blind spots", "the same error"):
        assert said in text.stdout
    assert "macro-F1" not in text.stdout  # its classes are tokens
    first = json.loads(CliRunner().invoke(main, [*arguments, "--json"]).stdout)
    second = json.loads(CliRunner().invoke(main, [*arguments, "--json"]).stdout)
    assert first == second
    assert Path(first["saved"]).is_file()
    assert first["intervals"]["nll"]["low"] < first["nll"] < first["intervals"]["nll"]["high"]
    other = json.loads(CliRunner().invoke(main, [*arguments, "--seed", "1", "--json"]).stdout)
    assert other["nll"] == first["nll"]
    assert other["intervals"] != first["intervals"]
    assert len(find_assessments(run)) == 1


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{", "not an evaluation that this version can read"),
        ("[" * 100_000, "not an evaluation that this version can read"),
        ('{"format": "other"}', "not an evaluation"),
    ],
)
def test_a_file_that_is_no_evaluation_is_refused(tmp_path, content, said):
    (tmp_path / "evaluations").mkdir()
    path = tmp_path / "evaluations" / "student-0.json"
    path.write_text(content)
    with pytest.raises(RunError, match=said) as e:
        find_assessments(tmp_path)
    assert str(path) in str(e.value)


def test_a_store_without_any_label_cannot_be_evaluated_on(ground, student):
    m = measure(student, open_store(ground / "topk"))
    object.__setattr__(m, "label", np.full(m.n, -1))
    with pytest.raises(RunError, match="none of its positions has a label"):
        summarise(m, open_store(ground / "topk"))
