"""What the pages take for granted, small: models, texts, stores, a run, by the names that the pages give them."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from click.testing import CliRunner

from softlabels.cli.main import main as softlabels
from tests.domains import models
from tests.fakes import TEXT
from trainers.cli import main as softtrain

MAINS = {"softlabels": softlabels, "softtrain": softtrain}
STUDENT = "new:51768"
SMALLER = [
    (r"--steps \d+", "--steps 2"),
    (r"--epochs \d+", "--epochs 1"),
    (r"new:[\d.]+[kMB]\b", STUDENT),
    (r"keep=[\d,]+", "keep=0"),
    (r"--limit \d+", "--limit 2"),
    (r"--n 8", "--n 2"),
    (r"--max-new-tokens \d+", "--max-new-tokens 4"),
    (r"--limit-rows \d+", "--limit-rows 4"),
    (r"--batch-size \d+", "--batch-size 2"),
    (r"int4-g64", "int4-g16"),
    (r"--vocab trim:49152", "--vocab trim:400"),
    (r"hf:\$TEACHER", "hf:models/teacher"),
    (r"\$TEACHER", "models/teacher"),
    (r"--max-kl \S+", "--max-kl 20"),
    (r"'mean_entropy > 2 AND positions >= 64'", "'mean_entropy > 0 AND positions >= 2'"),
    (r"--sample 0\.1", "--sample 0.5"),
    (r"/shared/store", "store"),
    (
        r"softtrain watch ",
        "softtrain watch --once ",
    ),  # the process of the ground's runs is this one
]
"""What makes a printed command small; all else is as it is printed."""
CHAT = [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": "A man."}]


def smaller(text: str) -> str:
    for pattern, replacement in SMALLER:
        text = re.sub(pattern, replacement, text)
    return text


def invoke(program: str, words: list[str]) -> Any:
    """A command in this process."""
    return CliRunner().invoke(MAINS[program], words)


def done(line: str) -> None:
    program, *words = line.split()
    result = invoke(program, words)
    assert result.exit_code == 0, (line, result.output, result.exception)


def write_ground(folder: Path) -> None:
    """All of it, in the working directory `folder`."""
    from tests.teachers.tiny import write_model

    for name, seed in (("teacher", 0), ("base", 3), ("parent", 0)):
        write_model(folder / "models" / name, seed=seed)
        config = folder / "models" / name / "config.json"
        longer = json.loads(config.read_text()) | {"max_position_embeddings": 512}
        config.write_text(json.dumps(longer))
    for name in ("A", "B"):
        (folder / name).symlink_to("models/parent" if name == "A" else "models/teacher")
    for name in ("books", "other", "more"):
        (folder / name).mkdir()
        (folder / name / "a.txt").write_text(name + " " + TEXT * 4)
    for name in ("my", "other", "book"):
        (folder / f"{name}.txt").write_text(name + " " + TEXT * (60 if name == "my" else 4))
    (folder / "chats.jsonl").write_text(f"{json.dumps({'messages': CHAT})}\n" * 4)
    (folder / "web").mkdir()
    pq.write_table(pa.table({"content": [TEXT, TEXT]}), folder / "web" / "a.parquet")
    build = "softlabels build --teacher hf:models/teacher --seq-len 32 --shard-rows 4"
    done(f"{build} --corpus text:books/*.txt --k 12 --out store")
    done(f"{build} --corpus text:other/*.txt --estimator topk --k 20 --out heldout")
    done(f"{build} --corpus text:more/*.txt --k 12 --out new")
    for name, texts in (("austen", "books"), ("dickens", "other")):
        done(f"{build} --corpus text:{texts}/*.txt --estimator topk --k 20 --out {name}")
    done("softlabels card heldout")
    done("softlabels merge austen dickens --out novels")
    done("softlabels states heldout --teacher hf:models/teacher --out heldout-states")
    done("softlabels states store --teacher hf:models/teacher --out states")
    run = f"softtrain run --store store --steps 2 --batch-size 2 --student {STUDENT}"
    done(f"{run} --heldout heldout --eval-every 1 --out run")
    for name in ("soft", "hard", "draft"):
        shutil.copytree(folder / "run", folder / name)
    shutil.copytree(folder / "run" / "student", folder / "student")


def write_latency(folder: Path) -> None:
    """What `softtrain latency` prints; it starts processes, so only where a block asks for it."""
    words = ["latency", str(folder / "run"), "--store", str(folder / "heldout"), "--json"]
    result = invoke("softtrain", [*words, "--rounds", "1", "--repeats", "1"])
    assert result.exit_code == 0, result.output
    (folder / "latency.json").write_text(result.stdout)


def write_seeds(folder: Path) -> None:
    """Two settings with two seeds each; only where a block asks for them."""
    for name, alpha in (("soft", 0.9), ("hard", 0.0)):
        for seed in (0, 1):
            run = f"softtrain run --store {folder / 'store'} --student {STUDENT} --alpha {alpha}"
            out = folder / f"{name}-seed{seed}"
            done(f"{run} --seed {seed} --steps 2 --batch-size 2 --out {out}")
            done(f"softtrain eval {out} --store {folder / 'heldout'} --bootstrap 50")


def write_seq2seq(folder: Path) -> None:
    """For the page on an encoder and a decoder."""
    models.save_seq2seq(folder / "t5-teacher", models.t5())
    models.write_pairs(folder / "pairs.jsonl")
    models.write_pairs(folder / "other.jsonl", seed=1)
    build = "softlabels build --domain seq2seq --teacher hf:t5-teacher --seq-len 128"
    done(f"{build} --corpus jsonl:other.jsonl --estimator topk --k 12 --out heldout")


def write_encoders(folder: Path) -> None:
    """For the page on encoders: a classifier, and a masked LM."""
    import transformers

    names = dict(enumerate(("negative", "positive")))
    labels = {"id2label": names, "label2id": {n: i for i, n in names.items()}}
    for kind, name, settings in (
        (transformers.BertForSequenceClassification, "classifier", labels),
        (transformers.BertForMaskedLM, "masked", {}),
    ):
        config = models.config(**settings)
        config.max_position_embeddings = 512
        kind(config).save_pretrained(folder / name)
        models.save_tokenizer(folder / name)
    (folder / "data" / "vader").mkdir(parents=True)
    (folder / "data" / "austen" / "train").mkdir(parents=True)
    (folder / "data" / "austen" / "train" / "a.txt").write_text("a good film was sad " * 20)
    lines = [json.dumps({"text": t, "label": "positive"}) for t in models.texts(24)]
    (folder / "data" / "vader" / "sample.jsonl").write_text("\n".join(lines))
    build = "softlabels build --domain sequence-classification --teacher hf:classifier --estimator dense --k 2"
    done(f"{build} --corpus jsonl:data/vader/sample.jsonl --out heldout-store")


def lay(ground: Path, folder: Path, *, without: set[str]) -> None:
    """The ground's things in a folder of a block's own, but those that the block makes."""
    for path in ground.iterdir():
        if path.name in without:
            continue
        if path.name == "models" or path.is_symlink():
            (folder / path.name).symlink_to(path.resolve())
        elif path.is_dir():
            shutil.copytree(path, folder / path.name)
        else:
            shutil.copy2(path, folder / path.name)
