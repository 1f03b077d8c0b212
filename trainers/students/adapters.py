"""Students that learn a low-rank adapter (LoRA, Hu et al. 2021) beside a frozen base, through PEFT.

    hf:PATH?lora=r:16,alpha:32,targets:all-linear            over the base as it is
    hf:PATH?lora=r:16,alpha:32,targets:all-linear&quant=nf4  over one of few bits (QLoRA, Dettmers et al. 2023)

What is saved is a PEFT adapter: `adapter_config.json` and `adapter_model.safetensors`, and beside them
`softlabels_base.json`, which names the base and the digest of its weights. Checkpoints hold the adapter alone, so a
base whose weights are others is refused wherever the adapter is loaded. There is no `config.json`: where it is,
transformers looks for a whole model.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from softlabels.core.local_model import LocalModel, loading
from softlabels.core.records import sha256_of_files
from softlabels.errors import ConfigError, IntegrityError, MissingExtraError

CONFIG, WEIGHTS, BASE = "adapter_config.json", "adapter_model.safetensors", "softlabels_base.json"
QUANTS = ("nf4", "int8")
NAME = "default"
"""What PEFT calls the adapter in memory."""
PREFIX = "base_model.model."
"""Of names in PEFT's files."""
CONFIG_LIMIT = 2**20
"""Bytes of a configuration that are read."""
SAVED = {
    "r",
    "lora_alpha",
    "lora_dropout",
    "target_modules",
    "inference_mode",
    "peft_version",
    "base_model_name_or_path",
}
"""Settings that are an adapter's own; all others are PEFT's defaults."""


@dataclass(frozen=True, kw_only=True)
class Lora:
    """Shape of an adapter."""

    r: int = 16
    """Rank."""
    alpha: float = 32
    """The product is scaled by alpha / r."""
    dropout: float = 0.0
    targets: str = "all-linear"
    """Names of layers, joined by `+`, or `all-linear`."""

    @classmethod
    def parse(cls, text: str, *, where: str) -> Lora:
        """`r:16,alpha:32,targets:q_proj+v_proj,dropout:0.05`; what is not given is its default.

        Raises:
            ConfigError: something else.
        """
        kinds: dict[str, Any] = {"r": int, "alpha": float, "dropout": float, "targets": str}
        try:
            pairs = [part.split(":") for part in text.split(",")]
            lora = cls(**{name: kinds[name](value) for name, value in pairs})
        except (ValueError, KeyError, TypeError) as e:
            raise _malformed(where, text) from e
        if not lora.is_possible:
            raise _malformed(where, text)
        return lora

    @property
    def is_possible(self) -> bool:
        """Whether its numbers are in bounds."""
        return 0 < self.r <= 65536 and 0 < self.alpha < 1e6 and 0 <= self.dropout < 1

    def config(self, base: Base, *, where: str) -> Any:
        """PEFT's own."""
        targets: str | list[str] = self.targets
        return peft(where).LoraConfig(
            r=self.r,
            lora_alpha=self.alpha,
            lora_dropout=self.dropout,
            target_modules=targets if targets == "all-linear" else self.targets.split("+"),
            task_type="CAUSAL_LM",
            base_model_name_or_path=base.path,
        )


def _malformed(where: str, text: str) -> ConfigError:
    return ConfigError(
        f"{where}: lora={text!r} is no adapter; expected lora=r:16,alpha:32,targets:all-linear, with "
        "targets:q_proj+v_proj for some layers, and dropout:0.05 where wanted"
    )


@dataclass(frozen=True, kw_only=True)
class Base:
    """What an adapter was learnt over."""

    path: str
    """Folder, or name on the hub."""
    weights_sha256: str
    quant: str | None
    """One of `QUANTS`; None: as it is, in float32."""

    @classmethod
    def of(cls, argument: str, found: LocalModel, quant: str | None) -> Base:
        """A model that is here."""
        path = str(Path(argument).resolve()) if Path(argument).exists() else argument
        return cls(path=path, weights_sha256=sha256_of_files(found.weight_files), quant=quant)

    @classmethod
    def read(cls, folder: Path) -> Base | None:
        """Of a folder with an adapter; None if it holds something else.

        Raises:
            ConfigError: it holds an adapter that this project did not save, or not whole.
        """
        if not (folder / CONFIG).is_file():
            return None
        try:
            return cls(**json.loads((folder / BASE).read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError) as e:
            raise ConfigError(
                f"--student hf:{folder}: holds an adapter, and no {BASE} that says over which base it was learnt; "
                "merge it into its base first"
            ) from e


class Adapter:
    """The adapter of a student's model."""

    def __init__(self, config: Any, base: Base) -> None:
        self.base, self._config = base, config

    def state(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The adapter's part of a state by the model's names, by PEFT's."""
        return {_file_name(name): t for name, t in state.items() if f".{NAME}." in name}

    def save(self, folder: Path, state: Mapping[str, Tensor]) -> None:
        """Write what `load` reads, and PEFT."""
        config = self._config.to_dict() | {"inference_mode": True}
        plain = {k: sorted(v) if isinstance(v, set) else v for k, v in config.items()}
        _write_json(folder / CONFIG, plain)
        save_file(
            {n: t.detach().cpu().contiguous() for n, t in state.items()},
            folder / WEIGHTS,
            metadata={"format": "pt"},
        )
        _write_json(folder / BASE, asdict(self.base))


def _write_json(path: Path, value: Any) -> None:
    text = json.dumps(value, indent=2, sort_keys=True, default=str)
    path.write_text(f"{text}\n", encoding="utf-8")


def _file_name(name: str) -> str:
    return PREFIX + name.replace(f".{NAME}.", ".")


def inject(model: Any, lora: Lora, base: Base, *, seed: int, where: str) -> Adapter:
    """Put a new adapter into a model, which is frozen beside it; its weights are drawn from the seed.

    Raises:
        ConfigError: PEFT cannot, or the head is among the targets.
        MissingExtraError: PEFT is not installed.
    """
    config = lora.config(base, where=where)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        _inject(model, config, where)
    return Adapter(config, base)


def load(model: Any, folder: Path, base: Base, *, where: str) -> Adapter:
    """Put a saved adapter into its base; it goes on learning.

    Raises:
        ConfigError: PEFT cannot, or its configuration says what this project does not save.
        IntegrityError: its files are damaged, or not of this base.
    """
    config = _saved_config(folder / CONFIG, base, where)
    _inject(model, config, where)
    own = {_file_name(n): p for n, p in model.named_parameters() if f".{NAME}." in n}
    try:
        saved = load_file(folder / WEIGHTS)
    except (OSError, SafetensorError) as e:
        raise IntegrityError(f"{folder / WEIGHTS}: cannot be read ({e}); copy it again") from e
    if {n: t.shape for n, t in saved.items()} != {n: t.shape for n, t in own.items()}:
        raise IntegrityError(
            f"{folder / WEIGHTS}: holds other weights than {CONFIG} says; copy it again"
        )
    with torch.no_grad():
        for name, parameter in own.items():
            parameter.copy_(saved[name])
    return Adapter(config, base)


def _saved_config(path: Path, base: Base, where: str) -> Any:
    """PEFT's own, of what this project saves; the file is not handed to PEFT, which imports modules that it may name.

    Raises:
        ConfigError: a setting besides the shape that is not PEFT's default, or that PEFT does not know.
        IntegrityError: it cannot be read, or has no such shape.
    """
    try:
        with path.open("rb") as f:
            found = json.loads(f.read(CONFIG_LIMIT))
        r, alpha, dropout = (found[name] for name in ("r", "lora_alpha", "lora_dropout"))
        targets = "+".join(found["target_modules"])
        lora = Lora(r=r, alpha=alpha, dropout=dropout, targets=targets)
        sound = type(found["target_modules"]) is list and type(r) is int and lora.is_possible
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as e:
        raise IntegrityError(f"{path}: is no adapter's configuration ({e!r}); copy it again") from e
    if not sound:
        raise IntegrityError(f"{path}: describes an adapter that cannot be; copy it again")
    config = lora.config(base, where=where)
    usual = config.to_dict()
    for name, value in found.items():
        if (
            name not in SAVED
            and value != usual.get(name)
            and not (_off(value) and _off(usual.get(name)))
        ):
            raise ConfigError(
                f"{where}: its {CONFIG} says {name} = {json.dumps(value):.60}, which an adapter of this project does "
                "not have; merge it into its base with PEFT, and give that model"
            )
    return config


def _off(value: Any) -> bool:
    """Whether a setting is none; versions of PEFT spell that in several ways."""
    return value is None or value is False or value in ({}, [])


def _inject(model: Any, config: Any, where: str) -> None:
    ends = (model.get_output_embeddings(), model.get_input_embeddings())
    names = {name.rpartition(".")[2] for name, m in model.named_modules() if m in ends}
    if not isinstance(config.target_modules, str) and names & set(config.target_modules):
        raise ConfigError(
            f"{where}: targets name the head or the embeddings, which the loss reads as they are; name other layers, "
            "or targets:all-linear, which leaves them out"
        )
    with loading(where, ConfigError):
        peft(where).inject_adapter_in_model(config, model, adapter_name=NAME)
    config.target_modules = sorted(config.target_modules)


def check_base(base: Base, found: LocalModel, *, where: str) -> None:
    """Refuse another base than an adapter was learnt over.

    Raises:
        IntegrityError: its weights are others.
    """
    now = sha256_of_files(found.weight_files)
    if now != base.weights_sha256:
        raise IntegrityError(
            f"{where}: was learnt over a base whose weights have sha256 {base.weights_sha256[:12]}…, and those of "
            f"{base.path} now have {now[:12]}…; put the base back that it was learnt over"
        )


def quantised(quant: str, *, where: str) -> dict[str, Any]:
    """What `from_pretrained` must be told to load a base in few bits.

    Raises:
        ConfigError: no such format.
        MissingExtraError: bitsandbytes is not installed.
    """
    if quant not in QUANTS:
        raise ConfigError(f"{where}: quant={quant!r} is no format; expected {' or '.join(QUANTS)}")
    try:
        import_module("bitsandbytes")
    except ImportError as e:
        raise MissingExtraError("bitsandbytes", "quant", f"quant={quant}") from e
    transformers = import_module("transformers")
    if quant == "int8":
        return {"quantization_config": transformers.BitsAndBytesConfig(load_in_8bit=True)}
    four = transformers.BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32
    )
    return {"quantization_config": four}


def exact_on_cpus(model: Any) -> None:
    """Have a base of 4 bits compute the same when it is evaluated as when it is trained.

    On a CPU, bitsandbytes would else lay its weights out anew at the first evaluation, and round their scales to
    bfloat16, for good.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False


def peft(where: str) -> Any:
    """The library; `MissingExtraError` begins with `where`."""
    try:
        return import_module("peft")
    except ImportError as e:
        raise MissingExtraError("peft", "peft", where) from e
