"""The report of runs: what it says is what was measured, and nothing in a file becomes markup."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import asdict
from pathlib import Path

import msgspec
import pytest
from click.testing import CliRunner

from softlabels.core.progress import Silent
from softlabels.errors import RunError
from softlabels.format.certificate import Estimate, Fidelity, FidelityAt
from softlabels.store.reader import open_store
from tests.fakes import build_tiny, write_corpus
from tests.pages import HOSTILE, browser, check_page, look_at
from tests.students import llama
from trainers.cli import main
from trainers.evaluation.assess import assess_run
from trainers.evaluation.config import EvalConfig
from trainers.evaluation.evaluations import find_assessments, save_assessment
from trainers.report.entries import difference, entries_of
from trainers.report.findings import Findings
from trainers.report.page import render
from trainers.report.runs import gather
from trainers.run.config import RunConfig
from trainers.run.setup import train

LLAMA = llama(width=16)


@pytest.fixture(scope="module")
def ground(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs, soft and hard, evaluated on one store; a second store."""
    folder = tmp_path_factory.mktemp("report")
    corpus = write_corpus(folder / "corpus")
    build_tiny(folder / "train", corpus)
    for repeat, name in ((2, "heldout"), (1, "other")):
        build_tiny(
            folder / name,
            write_corpus(folder / f"text-{name}", documents=5, repeat=repeat),
            limit_rows=12,
            shard_rows=6,
        )
    (folder / "student.json").write_text(json.dumps(LLAMA))
    for name, alpha in (("soft", 0.9), ("hard", 0.0)):
        config = RunConfig(
            store=str(folder / "train"),
            student=f"hf-config:{folder / 'student.json'}",
            steps=40,
            batch_size=4,
            lr=3e-2,
            alpha=alpha,
            log_every=4,
            dtype="float32",
        )
        train(config, folder / name)
        config = EvalConfig(store=str(folder / "heldout"))
        save_assessment(folder / name, assess_run(folder / name, config, Silent()), print)
    return folder


@pytest.fixture
def runs(ground: Path, tmp_path: Path) -> list[Path]:
    return [Path(shutil.copytree(ground / name, tmp_path / name)) for name in ("soft", "hard")]


def report(*arguments: object, exit_code: int = 0) -> str:
    words = [str(a) for a in arguments]
    words += [] if "--texts" in words else ["--texts", "0"]
    result = CliRunner().invoke(main, ["report", *words])
    assert result.exit_code == exit_code, result.output
    assert "Traceback" not in result.output
    return result.output


def test_the_page_says_what_was_measured(runs, ground, tmp_path):
    out = tmp_path / "page.html"
    assert report(*runs, "--out", out) == f"report: {out}\n"
    page = out.read_text(encoding="utf-8")
    text = check_page(page)
    soft, hard = gather(runs, digest=None, weights="student")
    d = difference(*entries_of([soft, hard]))
    assert d.value == pytest.approx(hard.found.scores.nll - soft.found.scores.nll)
    assert d.low is not None
    assert d.low < d.value < d.high
    # Drawn for both together: narrower than the two intervals by themselves.
    apart = [r.score("nll") for r in (soft, hard)]
    assert d.high - d.low < sum(x.high - x.low for x in apart)
    for run in (soft, hard):
        s = run.found.scores
        for said in (f"{s.nll:.3f}", f"{s.kl:.3f}", f"{s.agreement:.1%}", f"{s.ece:.1%}"):
            assert said in text
        assert run.command in text
        assert run.found.command in text
        assert run.record["store_digest"] in text
        assert run.found.weights_sha256 in text
    assert soft.found.store.digest in text
    for part in (
        "Blind spots",
        "Can its confidence be believed?",
        "Learning curves",
        "Sizes",
        "Repeat it",
    ):
        assert part in text
    assert f"softtrain report {runs[0]} {runs[1]} --out {out}" in text
    verdict = ("beat", "lose to") if d.clear else ("made no clear difference",)
    assert any(f"Soft targets {v}" in text for v in verdict)
    c = soft.found.blind_spots.cells
    assert f"wrong at {c.teacher_wrong / c.n:.1%}" in text


def test_figures_of_speed_are_shown_and_hostile_ones_are_text(runs, tmp_path):
    figure = {
        "name": HOSTILE,
        "engine": "onnxruntime",
        "format": "onnx-int8",
        "model_bytes": 7_100_000,
        "p50": 0.0123,
    }
    figure |= {"peak_bytes": 90e6, "p95": 0.0456, "throughput": 5432.1, "calls": 60}
    path = tmp_path / "latency.json"
    path.write_text(json.dumps({"threads": 1, "batch_size": 8, "figures": [figure]}))
    report(*runs, "--latency", path, "--out", tmp_path / "x.html")
    text = check_page((tmp_path / "x.html").read_text(encoding="utf-8"))
    for said in (
        "What it costs to run",
        "onnx-int8",
        "7.1 MB",
        "90 MB",
        "12.3",
        "45.6",
        "5,432",
        f"--latency {path}",
    ):
        assert said in text
    path.write_text('{"threads": 1}')
    said = report(*runs, "--latency", path, "--out", tmp_path / "y.html", exit_code=2)
    assert "not what `softtrain latency --json` prints" in said


def test_one_run_alone_and_json(runs, tmp_path):
    out = tmp_path / "new" / "one.html"
    found = json.loads(report(runs[0], "--out", out, "--json"))
    assert found == {"report": str(out), "runs": [str(runs[0])]}
    text = check_page(out.read_text(encoding="utf-8"))
    assert "soft reaches a loss of" in text
    assert "its teacher" in text


def test_runs_are_evaluated_where_that_is_missing(runs, ground, tmp_path):
    shutil.rmtree(runs[0] / "evaluations")
    said = report(*runs, "--out", tmp_path / "x.html", exit_code=1)
    assert "not evaluated on one store" in said
    report(*runs, "--out", tmp_path / "x.html", "--store", ground / "heldout")
    assert len(find_assessments(runs[0])) == 1
    report(*runs, "--out", tmp_path / "y.html", "--store", ground / "other")
    said = report(*runs, "--out", tmp_path / "z.html", exit_code=1)
    assert "evaluated on several stores" in said
    assert "choose with --store" in said
    assert not (tmp_path / "z.html").exists()


def test_a_run_that_cannot_be_written_to_is_evaluated_and_reported(runs, ground, tmp_path):
    run, heldout = runs[0], ground / "heldout"
    shutil.rmtree(run / "evaluations")
    (run / "evaluations").write_bytes(b"")  # so that nothing can be kept there, whoever runs this
    said = report(run, "--store", heldout, "--out", tmp_path / "page.html")
    assert f"{run}: the evaluation is not kept in it (" in said
    assert "ECE" in (tmp_path / "page.html").read_text()
    result = CliRunner().invoke(main, ["eval", str(run), "--store", str(heldout), "--json"])
    assert result.exit_code == 0, result.output
    assert f"{run}: the evaluation is not kept in it (" in result.stderr
    assert json.loads(result.stdout)["saved"] is None


def test_rows_that_were_trained_on_are_no_test(runs, ground, tmp_path):
    report(runs[0], "--out", tmp_path / "x.html", "--store", ground / "train")
    text = check_page((tmp_path / "x.html").read_text(encoding="utf-8"))
    assert "Beware: these are rows that a student was trained on." in text
    assert "held-out text." not in text


def test_an_evaluation_of_other_weights_is_refused(runs):
    path = runs[0] / "student" / "model.safetensors"
    path.write_bytes(path.read_bytes() + b" ")
    with pytest.raises(RunError, match="of other weights than"):
        gather(runs, digest=None, weights="student")


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("run.json", "{", "not the record of a run"),
        ("run.json", '{"config": {}}', "not the record of a run"),
        ("metrics.jsonl", 'x\n{"step": 2}\n', "metrics.jsonl:1: not a line of metrics"),
        ("metrics.jsonl", '{"loss": 2}\n', "metrics.jsonl:1: has no step"),
        ("metrics.jsonl", '{"step": 1' + "0" * 400 + "}\n", "metrics.jsonl:1: has no step"),
    ],
)
def test_damaged_records_of_a_run_are_named(runs, name, content, said):
    (runs[1] / name).write_text(content)
    with pytest.raises(RunError, match=said):
        gather(runs, digest=None, weights="student")


def test_a_line_that_was_being_written_is_left_out(runs):
    before = gather(runs, digest=None, weights="student")[0].curves
    with (runs[0] / "metrics.jsonl").open("a") as f:
        f.write('{"step": 44, "lo')
    assert gather(runs, digest=None, weights="student")[0].curves == before
    assert [step for step, _ in before["hard"]][:3] == [1, 4, 8]


def hostile_page(runs: list[Path], out: Path) -> None:
    """A report in which every string of an evaluation and of a run's records is hostile."""
    hostile = runs[0].with_name("<img src=x onerror=alert(1)>")
    runs[0].rename(hostile)
    (path,) = (hostile / "evaluations").iterdir()
    value = json.loads(path.read_text())

    def poison(x: object, key: str = "") -> object:
        if isinstance(x, dict):
            return {k: poison(v, k) for k, v in x.items()}
        if isinstance(x, list):
            return [poison(v, key) for v in x]
        keep = key in ("format", "weights", "weights_sha256", "digest")
        return HOSTILE if isinstance(x, str) and not keep else x

    path.write_text(json.dumps(poison(value)))
    record = json.loads((hostile / "run.json").read_text())
    record["config"]["store"] = [HOSTILE, HOSTILE]
    record["config"]["student"] = record["torch"] = record["softlabels"] = HOSTILE
    record["config"]["alpha"] = HOSTILE
    record["store_digest"] = record["dtype"] = HOSTILE
    (hostile / "run.json").write_text(json.dumps(record))
    report(hostile, runs[1], "--out", out)


def test_nothing_from_a_file_becomes_markup(runs, tmp_path):
    out = tmp_path / "page.html"
    hostile_page(runs, out)
    text = check_page(out.read_text(encoding="utf-8"))
    assert "<script>alert('x')</script>" in text
    assert "<img src=x onerror=alert(1)>" in text


@pytest.mark.slow
def test_a_browser_runs_nothing_of_a_hostile_file(runs, tmp_path):
    out = tmp_path / "page.html"
    hostile_page(runs, out)
    with browser() as chromium:
        context = chromium.new_context()
        page = context.new_page()
        said: list[str] = []
        asked: list[str] = []
        page.on("dialog", lambda d: said.append(d.message))
        page.on("console", lambda m: said.append(m.text))
        page.on("request", lambda r: asked.append(r.url))
        page.goto(out.as_uri())
        assert (said, asked) == ([], [out.as_uri()])


@pytest.mark.parametrize("number", ["1e308", "-1e308", "1" + "0" * 400, "NaN", "1e999", "-1"])
def test_hostile_numbers_are_refused_or_left_out(runs, tmp_path, number):
    """In each place of the evaluation in turn, and in the metrics."""
    with (runs[0] / "metrics.jsonl").open("a") as f:
        f.write(f'{{"step": 50, "hard": {number}, "soft": {number}}}\n')
    (path,) = (runs[0] / "evaluations").iterdir()
    before = path.read_text()
    report(*runs, "--out", tmp_path / "x.html")
    for name in (
        "nll",
        "perplexity",
        "ece",
        "low",
        "confidence",
        "copied",
        "level",
        "replicates",
        "parameters",
    ):
        changed, times = re.subn(rf'"{name}": [-\d.e]+', f'"{name}": {number}', before)
        assert times > 0, name
        path.write_text(changed)
        result = CliRunner().invoke(
            main, ["report", *map(str, runs), "--out", str(tmp_path / "x.html")]
        )
        assert result.exit_code in (0, 1), name
        assert result.exception is None or isinstance(result.exception, SystemExit), (
            name,
            result.exception,
        )
        if result.exit_code == 0:
            check_page((tmp_path / "x.html").read_text(encoding="utf-8"))


def test_rows_that_do_not_fit_together_give_no_interval(runs):
    soft, hard = gather(runs, digest=None, weights="student")
    short = msgspec.structs.replace(hard.found, row_nll=hard.found.row_nll[:-1])
    object.__setattr__(hard, "found", short)
    d = difference(*entries_of([soft, hard]))
    assert (d.low, d.high, d.clear) == (None, None, False)
    assert "the rows are too few, or not the same" in check_page(
        render(Findings.of([soft, hard]), command="")
    )


def test_a_certificate_is_shown_where_the_store_has_one(runs):
    soft, hard = gather(runs, digest=None, weights="student")
    ((spec, manifest),) = soft.training_stores
    assert manifest is not None
    assert manifest.content_digest == soft.record["store_digest"]

    estimate = Estimate(mean=0.125, low=0.1, high=0.15)
    at = FidelityAt(
        temperature=1.0,
        covered_mass=estimate,
        top1_agreement=estimate,
        ece_teacher=0.25,
        ece_drift=None,
        gradient_angle=estimate,
        gradient_norm_ratio=estimate,
        mean_gradient_angle=0.5,
        kl=Estimate(mean=None),
    )
    fidelity = Fidelity(
        measured_by=HOSTILE,
        engine="tests",
        device="cpu",
        dtype="float32",
        seed=0,
        rows=4,
        positions=9,
        temperatures=[at],
    )
    certified = msgspec.structs.replace(manifest, fidelity=fidelity)
    object.__setattr__(soft, "training_stores", [(spec, certified)])
    text = check_page(render(Findings.of([soft, hard]), command="softtrain report"))
    assert "How faithful the store is" in text
    assert "0.12500.1000 to 0.1500" in text  # the interval is a line of its own in the cell
    assert "T=1" in text
    assert "infinite" in text


def test_the_command_of_a_run_makes_its_configuration_again(runs, ground):
    from trainers.cli.run import run_command

    soft = gather(runs, digest=None, weights="student")[0]
    words = soft.command.split()
    assert words[:2] == ["softtrain", "run"]
    context = run_command.make_context("run", words[2:])
    flags = {
        k: v
        for k, v in context.params.items()
        if k not in ("config_file", "out", "resume", "as_json")
    }
    again = asdict(RunConfig.from_sources(None, flags))
    assert json.loads(json.dumps(again)) == json.loads((runs[0] / "run.json").read_text())["config"]


@pytest.mark.slow
def test_a_browser_finds_nothing_to_complain_about(runs, tmp_path):
    report(*runs, "--out", tmp_path / "page.html")
    with browser() as chromium:
        screens = look_at(tmp_path / "page.html", chromium)
    assert all("Soft targets" in s for s in screens)


@pytest.mark.slow
def test_no_model_library_is_needed_for_a_report_of_what_was_evaluated(runs, tmp_path):
    import subprocess
    import sys

    code = (
        "import sys; sys.modules['torch'] = None; sys.modules['transformers'] = None\n"
        "from trainers.cli import main; main(sys.argv[1:])"
    )
    arguments = ["report", *map(str, runs), "--out", str(tmp_path / "page.html")]
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "page.html").stat().st_size > 20_000


def test_a_student_of_few_classes_is_looked_at_class_by_class(runs, tmp_path):
    """The record of a classifier, from the same numbers."""
    soft = gather(runs[:1], digest=None, weights="student")[0]
    a = soft.found
    classes = [
        msgspec.structs.replace(g, name=name, f1=0.25)
        for g, name in zip(a.by_context[:2], ("cat & dog", "<b>"), strict=True)
    ]
    store = msgspec.structs.replace(a.store, domain="sequence-classification")
    object.__setattr__(soft, "found", msgspec.structs.replace(a, by_class=classes, store=store))
    text = check_page(render(Findings.of([soft]), command="softtrain report"))
    for said in ("By class", "cat & dog", "<b>", "0.250", "macro-F1", "nats per answer"):
        assert said in text
    assert "drafts a teacher accepts" not in text  # nobody drafts a class


def test_stores_that_are_gone_are_said_to_be(runs, ground):
    assert open_store(ground / "train")
    record = json.loads((runs[0] / "run.json").read_text())
    record["config"]["store"] = "gone/store"
    (runs[0] / "run.json").write_text(json.dumps(record))
    found = gather(runs, digest=None, weights="student")
    assert "Not found where the run has it: gone/store." in check_page(
        render(Findings.of(found), command="")
    )


def test_a_run_that_was_lengthened_is_said_to_be_another(runs):
    record = json.loads((runs[0] / "run.json").read_text())
    record["length"] = {"changes": [{"after": 20, "from": 20, "to": 40}]}
    (runs[0] / "run.json").write_text(json.dumps(record))
    text = check_page(render(Findings.of(gather(runs, digest=None, weights="student")), command=""))
    assert "The steps of soft were changed while it ran (20 to 40)" in text
    assert "The steps of hard" not in text
