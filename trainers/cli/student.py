"""`softtrain student`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from softlabels.console.options import Command, Seed
from softlabels.console.terminal import Bar, LocalPath, StorePlace, emit, json_option, wants_json
from softlabels.core.folder_record import seal_folder
from softlabels.core.folders import filling, publish_folder
from softlabels.errors import ConfigError
from softlabels.store.tokenizer_files import is_tokenizer_file

if TYPE_CHECKING:
    from softlabels.store.reader import Store


@click.command("student", cls=Command)
@click.argument("spec", required=False)
@click.option(
    "--params",
    metavar="SIZE",
    help="Parameters of a new student that fits the store of --like, such as 10M: the same as the SPEC new:SIZE.",
)
@click.option(
    "--like",
    type=StorePlace(),
    help="Store that the student must fit: its vocabulary, its classes, and rows as long as its own.",
)
@click.option("--out", required=True, type=LocalPath(), help="Folder to write.")
@click.option("--seed", type=Seed(), default=0, show_default=True, help="Seed of random weights.")
@json_option
def student_command(
    spec: str | None,
    params: str | None,
    like: Path | str | None,
    out: Path,
    seed: int,
) -> None:
    """Make a student once, offline, and save it; runs then start from hf:OUT without its source.

    Beside it lies the tokenizer of --like, or of the model that it is of, by which runs know what its ids mean.

    SPEC is what `softtrain run --student` takes: new:SIZE, hf-config:FILE, layers-of:PATH?keep=…, hf:PATH, or for
    images cnn:WIDTHxDEPTH, timm:NAME, torchvision:NAME.

    \b
    Examples:
      softtrain student --params 10M --like store --out student
      softtrain student 'layers-of:models/teacher?keep=0,10,20,29' --out student
      softtrain student hf-config:student.json --like store --out student

    hf-config:FILE reads a configuration of transformers. --params writes one to OUT/config.json; one that fits a store
    of 49,152 ids and rows of 512 tokens (a 10M causal LM) is:

    \b
      {"model_type": "llama", "vocab_size": 49152, "hidden_size": 160, "intermediate_size": 416,
       "num_hidden_layers": 7, "num_attention_heads": 5, "max_position_embeddings": 512,
       "tie_word_embeddings": true}
    """
    if (spec is None) == (params is None):
        raise ConfigError(
            "SPEC is missing: name a student (see --help), or have one made with --params 10M --like STORE"
            if spec is None
            else f"--params {params}: makes the student; leave out {spec}"
        )
    if out.exists():
        raise ConfigError(f"--out {out}: is there already; choose another")
    from softlabels.store.reader import open_store
    from trainers.data.tasks import CAUSAL, Task
    from trainers.run.folder import add_tokenizer
    from trainers.students import make_student
    from trainers.students.context import check_student, context_of

    spec = spec if spec is not None else f"new:{params}"
    store = None if like is None else open_store(like)
    student = make_student(spec, seed=seed, task=CAUSAL if store is None else Task.of(store))
    unknown = None if store is None else check_student(student, store, where=spec)
    with Bar(quiet=wants_json()) as bar, filling(out) as temporary:
        student.save(temporary)
        if unknown is not None:
            bar.notice(f"{spec}: {unknown}; no tokenizer is saved beside the student")
        elif store is not None or student.source is not None:
            add_tokenizer(temporary, _tokenizer(student.source, store, bar.notice), out)
        seal_folder(temporary, kind="student")
        publish_folder(temporary, out, bar.notice)
    facts = _facts(student.model) | {"context": context_of(student.model)}
    shown = ", ".join(f"{name} {value}" for name, value in facts.items() if value is not None)
    text = f"{out}: {student.parameter_count:,} parameters" + (f" ({shown})" if shown else "")
    if like is not None:
        text += f"\nnext: softtrain run --store {like} --student hf:{out} --out run"
    result: dict[str, Any] = {"student": str(out), "parameters": student.parameter_count}
    emit(result | {"shape": facts}, text)


def _tokenizer(
    source: Path | None, store: Store | None, notice: Callable[[str], None]
) -> dict[str, bytes]:
    """The store's tokenizer, which is then the student's; without one, what lies beside the weights."""
    from trainers.run.folder import student_tokenizer

    if store is not None:
        return student_tokenizer(store, notice)
    assert source is not None
    if not source.is_dir():  # GGUF, which holds its own
        return {}
    found = (path.name for path in source.iterdir() if path.is_file())
    return {name: (source / name).read_bytes() for name in found if is_tokenizer_file(name)}


def _facts(model: Any) -> dict[str, Any]:
    """Kind and shape of a model of transformers."""
    config = getattr(model, "config", None)
    names = {
        "kind": "model_type",
        "width": "hidden_size",
        "layers": "num_hidden_layers",
        "heads": "num_attention_heads",
        "vocabulary": "vocab_size",
    }
    return {word: getattr(config, name, None) for word, name in names.items()}
