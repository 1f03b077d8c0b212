"""A model of transformers that is on this machine (`local_model.py`), and how a `hf:` teacher runs it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from softlabels.capture.torchrun import agreed, join
from softlabels.core.devices import Choice, choose
from softlabels.core.local_model import LocalModel, loading
from softlabels.core.records import sha256_of_files
from softlabels.core.registry import without_folder
from softlabels.core.rows import PaddedRows
from softlabels.errors import ConfigError, TeacherError
from softlabels.format.identity import TeacherRecord
from softlabels.teachers import TeacherOptions


@dataclass(frozen=True, kw_only=True)
class Placement:
    """What may stand after `hf:PATH?`: where the model lies, if not on one device."""

    tp: bool = False
    """`tp=auto`: a part of each layer on the device of each process (`tensor_parallel.py`)."""
    device_map: bool = False
    """`device_map=auto`: layers on all devices of this process, one after the other, as accelerate places them."""

    @staticmethod
    def parse(written: Sequence[tuple[str, str]], *, spec: str) -> Placement:
        """Of names and values.

        Raises:
            ConfigError: an unknown name or value, or both.
        """
        names = [name for name, value in written if value == "auto"]
        if len(names) != len(written) or len(names) > 1 or not {"tp", "device_map"} >= set(names):
            raise ConfigError(
                f"--teacher {spec}: expected hf:PATH, hf:PATH?tp=auto or hf:PATH?device_map=auto"
            )
        return Placement(**dict.fromkeys(names, True))

    @property
    def settings(self) -> dict[str, str]:
        """Of transformers' `from_pretrained`."""
        if self.tp:
            return {"tp_plan": "auto"}
        return {"device_map": "auto"} if self.device_map else {}


@dataclass(frozen=True, kw_only=True)
class HFSource:
    """A model that is here, and how to run it."""

    argument: str
    """As the user named it, after `hf:`, without what stands after the `?`."""
    found: LocalModel
    options: TeacherOptions
    transformers: Any
    """The module."""
    placement: Placement = Placement()

    @property
    def where(self) -> str:
        """For messages."""
        return f"hf:{self.argument}"

    @property
    def spec(self) -> str:
        """As the user named it, without the folder that it lies in."""
        return without_folder(self.where)

    @property
    def engine(self) -> str:
        """Library and version that runs it."""
        return f"transformers {self.transformers.__version__}, torch {torch.__version__}"

    @cached_property
    def choice(self) -> Choice:
        """Device and dtype; the user is told why."""
        choice = choose(self.options.device, self.options.dtype)
        if self.placement.tp:
            join(choice.device)
            choice = agreed(choice)
        self.options.notice(f"teacher: {choice.reason}")
        return choice

    @cached_property
    def weights_sha256(self) -> str:
        """Of the files that hold the weights."""
        if self.placement.tp and dist.get_rank() > 0:
            return ""  # the first process writes
        return digest_weights(self.found, self.where)

    def model(self, loader: str, **settings: Any) -> Any:
        """The folder's, by this class of transformers; `TeacherError` if it cannot be loaded, or lacks its head."""
        with loading(self.where, TeacherError):
            model, info = getattr(self.transformers, loader).from_pretrained(
                self.found.folder, output_loading_info=True, **settings
            )
        if info["missing_keys"]:
            raise TeacherError(
                f"{self.where}: the folder has no weights for {sorted(info['missing_keys'])[0]}, so a "
                f"{type(model).__name__} would guess at random; fine-tune it first, and give the folder of that model"
            )
        return model

    def placed(self, loader: str) -> Any:
        """`model`, in the dtype and on the device of `choice`."""
        return self.on_device(self.model(loader, dtype=self.choice.dtype))

    def on_device(self, model: Any) -> Any:
        """A model in the dtype and on the device of `choice`, or on the devices that it was loaded to."""
        if self.placement.settings:
            return model.eval()
        return model.to(self.choice.device, self.choice.dtype).eval()

    def tokenizer(self) -> Any:
        """The folder's."""
        with loading(self.where, TeacherError):
            return self.transformers.AutoTokenizer.from_pretrained(
                self.found.folder, **self.found.settings
            )

    def record(self, model: Any, *, vocab_size: int) -> TeacherRecord:
        """What a manifest says of the model; `vocab_size` is the width of its head."""
        return TeacherRecord(
            spec=self.spec,
            name=self.found.name,
            revision=getattr(model.config, "_commit_hash", None),
            weights_sha256=self.weights_sha256,
            dtype=str(model.dtype).removeprefix("torch."),
            device=model.device.type,
            engine=self.engine,
            vocab_size=vocab_size,
            parameters=sum(p.numel() for p in model.parameters()),
        )


def padded_on(padded: PaddedRows, device: torch.device) -> tuple[dict[str, Tensor], Tensor]:
    """What a model is fed of some rows, and where their positions lie, on a device."""
    fed = {name: torch.from_numpy(array).to(device) for name, array in padded.inputs.items()}
    return fed, torch.from_numpy(padded.flat_positions).to(device)


def context_of(config: Any) -> int | None:
    """How many tokens a model of transformers was made to read at a time; None: its configuration sets no limit."""
    longest = getattr(config.get_text_config(), "max_position_embeddings", None)
    return None if longest is None else int(longest)


def digest_weights(model: LocalModel, where: str) -> str:
    """sha256 over a model's weights; `TeacherError` if it has none."""
    if not model.weight_files:
        raise TeacherError(f"{where}: holds no weights (*.safetensors)")
    seen = [(path, path.stat()) for path in model.weight_files]
    return _digest(tuple((p, s.st_size, s.st_mtime_ns, s.st_ino) for p, s in seen))


@lru_cache(maxsize=8)
def _digest(files: tuple[tuple[Path, int, int, int], ...]) -> str:
    """A second path has the same files; they are read once."""
    return sha256_of_files([path for path, *_ in files])
