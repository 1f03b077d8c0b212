"""Students of transformers: `hf-config:FILE`, and `hf:PATH` with what may stand after it."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

import torch

from softlabels.core.local_model import (
    find_model,
    load_weights,
    loading,
    offline_transformers,
)
from softlabels.domains import DOMAINS as FORMATS
from softlabels.errors import ConfigError
from trainers.data.tasks import CAUSAL, Task
from trainers.domains import DOMAINS
from trainers.students import Student
from trainers.students.adapters import (
    Base,
    Lora,
    check_base,
    exact_on_cpus,
    inject,
    load,
    quantised,
)
from trainers.students.fake_quant import KEY, Grid, apply_grid
from trainers.students.images import load_saved, saved_spec

OPTIONS = ("fake-quant", "lora", "quant")
"""Of `hf:PATH?NAME=…`."""


def _loader(task: Task, spec: str, purpose: str) -> Any:
    """The class of transformers that loads models for a task.

    Raises:
        ConfigError: transformers has none.
    """
    transformers = offline_transformers(purpose)
    loader = FORMATS.load(task.domain).transformers
    if loader is None:
        raise ConfigError(
            f"--student {spec}: is a model of transformers, which do not serve a store of the domain {task.domain}"
        )
    return getattr(transformers, loader)


def student_of(model: Any, task: Task, spec: str, *, source: Path | None = None) -> Student:
    """The student of a model; one that was saved on a grid computes on it again."""
    where = f"--student {spec}"
    student = DOMAINS.load(task.domain).student(model, task, where=where, source=source)
    grid = getattr(model.config, KEY, None)
    if grid is not None:
        head = student.head().weight
        apply_grid(model, Grid.parse(str(grid), where=where), head=head, where=where)
    return student


def from_config(argument: str, *, seed: int, task: Task = CAUSAL) -> Student:
    """`hf-config:FILE`: a transformers `config.json`, weights from the seed."""
    spec = f"hf-config:{argument}"
    transformers = offline_transformers("--student hf-config:FILE")
    path = Path(argument)
    if not path.is_file():
        raise ConfigError(
            f"--student {spec}: no such file; `softtrain student --help` shows one, and --student new:10M needs none"
        )
    with loading(f"--student {spec}", ConfigError):
        config = transformers.AutoConfig.from_pretrained(path, **task.settings)
    return drawn(config, spec, seed=seed, task=task)


def drawn(config: Any, spec: str, *, seed: int, task: Task) -> Student:
    """The student of a configuration, weights from the seed.

    Raises:
        ConfigError: transformers cannot make it.
    """
    loader = _loader(task, spec, f"--student {spec}")
    with loading(f"--student {spec}", ConfigError), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = loader.from_config(config)
    return student_of(model, task, spec)


def from_folder(argument: str, *, seed: int, task: Task = CAUSAL) -> Student:
    """`hf:PATH`: a model that is here (`local_model.py`), as float32; a head over classes that it lacks is drawn.

    `?fake-quant=int4-g64` has it learn on a grid (`fake_quant.py`).
    """
    spec = f"hf:{argument}"
    path, options = _options(argument, spec)
    if "lora" in options or "quant" in options:
        return _adapted(path, options, spec, seed=seed, task=task)
    if not options and (saved := saved_spec(Path(path))) is not None:
        return load_saved(Path(path), saved, task)
    if not options and (base := Base.read(Path(path))) is not None:
        return _saved_adapter(Path(path), base, spec, task)
    model, lies = load_model(path, spec, seed=seed, task=task)
    if "fake-quant" in options:
        setattr(model.config, KEY, options["fake-quant"])
    return student_of(model, task, spec, source=lies)


def _adapted(path: str, options: dict[str, str], spec: str, *, seed: int, task: Task) -> Student:
    """A new adapter beside a base.

    Raises:
        ConfigError: there is no adapter to learn, or no base that can have one.
    """
    where = f"--student {spec}"
    if "lora" not in options or "fake-quant" in options:
        raise ConfigError(
            f"{where}: weights of few bits do not learn themselves; add lora=r:16 to learn an adapter beside them"
            if "lora" not in options
            else f"{where}: an adapter learns beside a frozen base, and fake-quant has the base itself learn; take one"
        )
    lora = Lora.parse(options["lora"], where=where)
    found = find_model(path, where=where, error=ConfigError)
    base = Base.of(path, found, options.get("quant"))
    student = _over(base, spec, task)
    student.adapter = inject(student.model, lora, base, seed=seed, where=where)
    student.source = found.source
    return student


def _saved_adapter(folder: Path, base: Base, spec: str, task: Task) -> Student:
    """A student that was saved as an adapter.

    Raises:
        ConfigError: its base is gone.
        IntegrityError: its base is another.
    """
    where = f"--student {spec}"
    found = find_model(base.path, where=f"{where}: its base {base.path}", error=ConfigError)
    check_base(base, found, where=where)
    student = _over(base, spec, task)
    student.adapter = load(student.model, folder, base, where=where)
    student.source = folder
    return student


def _over(base: Base, spec: str, task: Task) -> Student:
    """The student that a base is, before its adapter."""
    where = f"--student {spec}"
    if task.domain != CAUSAL.domain:
        raise ConfigError(f"{where}: adapters are of causal LMs, not of the domain {task.domain}")
    return student_of(load_base(base, where=where), task, spec)


def load_base(base: Base, *, where: str) -> Any:
    """The model that an adapter learns beside, a causal LM; frozen only by its adapter.

    Raises:
        ConfigError: it is not here, or cannot have an adapter.
    """
    found = find_model(base.path, where=where, error=ConfigError)
    settings = {} if base.quant is None else quantised(base.quant, where=where)
    if settings and found.gguf is not None:
        raise ConfigError(f"{where}: a GGUF file is expanded to float32; give a folder for quant=")
    loader = _loader(CAUSAL, base.path, where)
    with loading(where, ConfigError):
        model = load_weights(loader, found, dtype=torch.float32, **settings)
    if settings:
        exact_on_cpus(model)
    if getattr(model.config, KEY, None) is not None:
        raise ConfigError(f"{where}: its base learnt on a grid, where an adapter would not lie")
    return model


def _options(argument: str, spec: str) -> tuple[str, dict[str, str]]:
    """The path of a model, and how it is to learn.

    Raises:
        ConfigError: an option that there is not.
    """
    path, _, query = argument.partition("?")
    options = dict(parse_qsl(query, keep_blank_values=True))
    if "?" in argument and (not options or options.keys() - OPTIONS):
        raise ConfigError(
            f"--student {spec}: expected hf:PATH, or hf:PATH?NAME=… with one of {', '.join(OPTIONS)}"
        )
    return path, options


def load_model(argument: str, spec: str, *, seed: int, task: Task) -> tuple[Any, Path]:
    """A model that is here, as float32, and where it lies; what its task needs and it lacks is drawn from the seed.

    Raises:
        ConfigError: it is not here, or transformers cannot load it.
    """
    where = f"--student {spec}"
    found = find_model(argument, where=where, error=ConfigError)
    loader = _loader(task, spec, where)
    if found.gguf is not None and not FORMATS.load(task.domain).chained:
        raise ConfigError(
            f"{where}: a GGUF file holds a causal LM; give the folder of a {task.domain} model"
        )
    with loading(where, ConfigError), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = load_weights(loader, found, dtype=torch.float32, **task.settings)
    return model, found.source
