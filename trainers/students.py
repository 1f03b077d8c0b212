"""Students: made from a configuration, from a teacher's layers, or loaded.

    hf-config:FILE             from scratch, weights drawn from the run's seed
    layers-of:PATH?keep=0,2,4  some layers of a model, with its embeddings, final norm and head
    hf:PATH                    a student saved earlier, or any model in a folder
    cnn:, timm:, torchvision:  of images, see `pictures.py`

A store's domain decides what kind of model that is: a causal LM, or an encoder with a head over the store's classes
(`encoders.py`). An encoder that comes without a head gets one drawn from the seed.

`layers-of` reads the model at PATH once; what `softtrain student` writes (and what a run's checkpoints
hold) no longer needs it. DistilBERT's rule (Sanh et al. 2019, §3) is to keep every other layer.
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import parse_qsl

import torch
from torch import Tensor, nn

from softlabels.errors import ConfigError, MissingExtraError, PairingError, TokenizerError
from softlabels.registry import Registry, split_spec
from softlabels.store.reader import Store
from trainers.stream import Batch
from trainers.tasks import CAUSAL, LOADERS, Task
from trainers.topk_tail import Head

__all__ = [
    "STUDENTS",
    "Student",
    "check_tokenizer",
    "check_vocab",
    "load_student",
    "make_student",
]


class MakeStudent(Protocol):
    """What an entry of `STUDENTS` is."""

    def __call__(self, argument: str, *, seed: int, task: Task) -> Student:
        """Make the student for a task; random weights are a function of `seed`."""


STUDENTS: Registry[MakeStudent] = Registry(
    "trainers.students",
    {
        "hf-config": "trainers.students:from_config",
        "layers-of": "trainers.students:from_layers",
        "hf": "trainers.students:from_folder",
        "cnn": "trainers.pictures:from_cnn",
        "timm": "trainers.pictures:from_timm",
        "torchvision": "trainers.pictures:from_torchvision",
    },
)


def make_student(spec: str, *, seed: int, task: Task = CAUSAL) -> Student:
    """Make or load `name:argument`, for a task.

    Raises:
        ConfigError: unknown kind, no such file, layers that are not there.
    """
    name, argument = split_spec(spec, flag="--student")
    return STUDENTS.load(name)(argument, seed=seed, task=task)


class Student(nn.Module):
    """A causal LM whose body and head are called apart."""

    def __init__(self, model: Any, *, source: Path | None = None) -> None:
        super().__init__()
        self.model = model
        self.source = source
        """Folder its weights came from; None if they were drawn."""
        config = getattr(model, "config", None)  # of transformers
        scale = float(getattr(config, "logit_scale", None) or 1.0)
        self._scale = scale / float(getattr(config, "logits_scaling", None) or 1.0)
        self._softcap = getattr(config, "final_logit_softcapping", None)
        self.head_dtype: torch.dtype | None = None
        """In what the head's products run; None: as its weight is."""

    @property
    def vocab_size(self) -> int:
        """V: the width of the head."""
        return int(self.model.get_output_embeddings().weight.shape[0])

    @property
    def parameter_count(self) -> int:
        """Parameters, tied ones once."""
        return sum(p.numel() for p in self.parameters())

    def hidden(self, batch: Batch) -> Tensor:
        """Last hidden states `[B, S, D]`."""
        extra = {} if batch.position_ids is None else {"position_ids": batch.position_ids}
        out = self.model.base_model(input_ids=batch.input_ids, use_cache=False, **extra)
        hidden: Tensor = out.last_hidden_state
        return hidden

    def hidden_and_layer(self, batch: Batch) -> tuple[Tensor, Tensor | None]:
        """`hidden`, and `[N, D]` of the last layer at the positions, where the student can show it."""
        return self.hidden(batch), None

    def layers(self) -> list[nn.Module]:
        """The repeated layers of the body: its longest list of modules."""
        lists = [list(m) for m in self.model.base_model.modules() if isinstance(m, nn.ModuleList)]
        return max(lists, key=len, default=[])

    def head(self) -> Head:
        """The head as it is now."""
        layer = self.model.get_output_embeddings()
        return Head(
            weight=layer.weight,
            bias=getattr(layer, "bias", None),
            softcap=self._softcap,
            scale=self._scale,
            compute_dtype=self.head_dtype,
        )

    def save(self, folder: Path, weights: dict[str, Tensor] | None = None) -> None:
        """Write `config.json` and `model.safetensors`; `from_pretrained` reads them.

        Args:
            folder: where to.
            weights: by the model's own names, where they are not the student's present ones.
        """
        self.model.save_pretrained(folder, state_dict=weights)


def check_vocab(student: Student, store: Store, *, where: str) -> None:
    """Refuse a student whose head is not the store's vocabulary, or its view's.

    Raises:
        PairingError: the widths differ.
    """
    v, mine = store.vocab_size, student.vocab_size
    if mine != v and store.manifest.identity.classes is not None:
        raise PairingError(
            f"{where}: the student has {mine} classes, the store {v}; use a student of these"
        )
    if mine != v:
        whose = "the store's" if store.view is None else f"that of --vocab {store.view.spec}"
        trim = f", or read the store with --vocab trim:{mine}" if mine < v else ""
        raise PairingError(
            f"{where}: the student's vocabulary has {mine} ids, {whose} {v}; set vocab_size to {v} "
            f"in the student's config{trim}"
        )


def _transformers(purpose: str) -> Any:
    os.environ.setdefault("HF_HUB_OFFLINE", "1")  # a path is local: nothing may be fetched
    try:
        import transformers
    except ImportError as e:
        raise MissingExtraError("transformers", "hf", purpose) from e
    transformers.utils.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    return transformers


def _loader(task: Task, spec: str, purpose: str) -> Any:
    """The class of transformers that loads models for a task.

    Raises:
        ConfigError: transformers has none.
    """
    transformers = _transformers(purpose)
    if task.domain not in LOADERS:
        raise ConfigError(
            f"--student {spec}: is a model of transformers, which do not serve a store of the domain {task.domain}"
        )
    return getattr(transformers, LOADERS[task.domain])


def _student(model: Any, task: Task, spec: str, *, source: Path | None = None) -> Student:
    if task.domain == "causal-lm":
        return Student(model, source=source)
    from trainers.encoders import EncoderStudent, class_head, token_head

    where = f"--student {spec}"
    if task.domain == "masked-lm":
        head = token_head(model, where=where)
    else:
        head = class_head(model, len(task.classes), where=where)
    if task.domain == "image-classification":
        from trainers.pictures import HFImageStudent

        return HFImageStudent(model, head, source=source)
    return EncoderStudent(model, head, source=source)


def from_config(argument: str, *, seed: int, task: Task = CAUSAL) -> Student:
    """`hf-config:FILE`: a transformers `config.json`, weights from the seed."""
    spec = f"hf-config:{argument}"
    loader = _loader(task, spec, "--student hf-config:FILE")
    transformers = _transformers("--student hf-config:FILE")
    path = Path(argument)
    if not path.is_file():
        raise ConfigError(f"--student hf-config:{argument}: no such file")
    try:
        config = transformers.AutoConfig.from_pretrained(path, **task.settings)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = loader.from_config(config)
    except (OSError, ValueError, KeyError) as e:
        raise ConfigError(f"--student hf-config:{argument}: transformers cannot use it: {e}") from e
    return _student(model, task, spec)


def from_folder(argument: str, *, seed: int, task: Task = CAUSAL) -> Student:
    """`hf:PATH`: a model in a folder, as float32; of classification, with a head drawn from the seed if it has none."""
    from trainers.pictures import load_saved, saved_spec

    spec = f"hf:{argument}"
    if (saved := saved_spec(Path(argument))) is not None:
        return load_saved(Path(argument), saved, task)
    loader = _loader(task, spec, "--student hf:PATH")
    if not (Path(argument) / "config.json").is_file():
        raise ConfigError(f"--student hf:{argument}: no config.json there; give a model's folder")
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = loader.from_pretrained(argument, dtype=torch.float32, **task.settings)
    except (OSError, ValueError, KeyError, RuntimeError) as e:
        raise ConfigError(f"--student hf:{argument}: transformers cannot load it: {e}") from e
    return _student(model, task, spec, source=Path(argument))


def from_layers(argument: str, *, seed: int, task: Task = CAUSAL) -> Student:
    """`layers-of:PATH?keep=0,2,4`: those layers, in that order, and everything around them."""
    path, query = _split_query(argument)
    spec = f"layers-of:{argument}"
    loader = _loader(task, spec, "--student layers-of:PATH")
    gguf = (
        sorted(p.name for p in Path(path).glob("*.gguf"))
        if not (Path(path) / "config.json").is_file()
        else []
    )
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            source = loader.from_pretrained(
                path,
                dtype=torch.float32,
                **task.settings,
                **({"gguf_file": gguf[0]} if gguf else {}),
            )
    except (OSError, ValueError, KeyError, RuntimeError) as e:
        raise ConfigError(f"--student layers-of:{path}: transformers cannot load it: {e}") from e
    total = int(source.config.num_hidden_layers)
    keep = _parse_keep(query, total, argument)
    settings = {k: v for k, v in source.config.to_dict().items() if k != "quantization_config"}
    settings["num_hidden_layers"] = len(keep)
    for name, value in settings.items():  # e.g. layer_types: one entry for each layer
        if isinstance(value, list) and len(value) == total and name.startswith("layer"):
            settings[name] = [value[i] for i in keep]
    model = type(source)(source.config.__class__(**settings))
    model.load_state_dict(_kept_layers(source.state_dict(), keep))
    model.tie_weights()
    return _student(model, task, spec, source=Path(path))


def _kept_layers(state: dict[str, Tensor], keep: list[int]) -> dict[str, Tensor]:
    """Renumber the kept layers; drop the others."""
    numbered = re.compile(r"^(.*?\.(?:layers?|h|blocks)\.)(\d+)(\..*)$")
    place = {layer: i for i, layer in enumerate(keep)}
    out = {}
    for name, tensor in state.items():
        match = numbered.match(name)
        if match is None:
            out[name] = tensor
        elif int(match[2]) in place:
            out[f"{match[1]}{place[int(match[2])]}{match[3]}"] = tensor
    return out


def _split_query(argument: str) -> tuple[str, dict[str, str]]:
    path, _, query = argument.partition("?")
    values = dict(parse_qsl(query, keep_blank_values=True))
    unknown = sorted(set(values) - {"keep"})
    if unknown or "keep" not in values:
        raise ConfigError(f"--student layers-of:{argument}: expected layers-of:PATH?keep=0,2,4")
    return path, values


def _parse_keep(query: dict[str, str], total: int, argument: str) -> list[int]:
    words = query["keep"].split(",")
    if not all(w.strip().isdigit() for w in words):
        raise ConfigError(
            f"--student layers-of:{argument}: keep={query['keep']!r} is not a list of layer numbers"
        )
    keep = [int(w) for w in words]
    if len(set(keep)) != len(keep) or max(keep) >= total:
        raise ConfigError(
            f"--student layers-of:{argument}: keep={query['keep']} must name different layers of 0..{total - 1}"
        )
    return keep


def load_student(folder: Path, task: Task = CAUSAL) -> Student:
    """A student that a run saved."""
    return from_folder(str(folder), seed=0, task=task)


def check_tokenizer(folder: Path, store: Store, *, where: str) -> None:
    """Refuse pretrained weights whose folder holds another tokenizer than the store was made with.

    A folder without tokenizer.json (GGUF) cannot be compared; `check_vocab` is then all there is.

    Raises:
        TokenizerError: vocabulary or merges differ.
    """
    path, name = folder / "tokenizer.json", "tokenizer/tokenizer.json"
    if not path.is_file() or name not in store.manifest.files:
        return
    mine = _tokenizer_model(path.read_bytes(), str(path))
    theirs = _tokenizer_model(store.file(name), str(store.path / name))
    if mine != theirs:
        raise TokenizerError(
            f"{where}: {path} is not the tokenizer that {store.path} was made with, so the same "
            "id means another token; use a student of the teacher's own family, or hf-config:FILE"
        )


def _tokenizer_model(data: bytes, where: str) -> tuple[Any, ...]:
    try:
        model = json.loads(data)["model"]
        merges = [m if isinstance(m, str) else " ".join(m) for m in model.get("merges", [])]
        return (model.get("type"), model["vocab"], merges)
    except (ValueError, KeyError, TypeError) as e:
        raise TokenizerError(f"{where}: not a tokenizer.json ({e})") from e
