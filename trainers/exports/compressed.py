"""`compressed-tensors`: a student that learnt on a grid (`fake-quant`), its weights really in 4 or 8 bits.

Layout `pack-quantized` of the library of that name, which transformers and vLLM read. The levels and scales are those
that the student computed with, so what is loaded is what was trained, to the bit; the scales are bfloat16's numbers,
written as float32, since their reader computes in the dtype of a scale.

A table that is head and embeddings at once stays in float32 (on its grid, if it has one): the format has no tied ones.
"""

from __future__ import annotations

import json
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from softlabels.core.local_model import offline_transformers
from softlabels.domains import DOMAINS
from softlabels.errors import ConfigError, MissingExtraError
from trainers.exports.formats import Format, Job, Runner, Written, in_torch
from trainers.students.fake_quant import KEY, Grid

if TYPE_CHECKING:
    from trainers.exports.domains import Exported, Origin


class CompressedTensors(Format):
    """Packed levels and scales, in a folder that `from_pretrained` loads."""

    name = "compressed-tensors"

    def write(self, job: Job, folder: Path) -> Written:
        """Quantise what the student computed with on a grid; the rest is copied.

        Raises:
            ConfigError: the student learnt on no grid.
        """
        _check_installed()
        packed = _to_pack(job)
        tensors: dict[str, Tensor] = {}
        for path in sorted(job.folder.glob("*.safetensors")):
            with safe_open(path, "pt") as file:
                for name in file.keys():  # noqa: SIM118
                    layer = name.removesuffix(".weight")
                    value = file.get_tensor(name)
                    if layer in packed and name.endswith(".weight"):
                        tensors |= pack(layer, value, packed[layer])
                    else:
                        tensors[name] = value
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        grid = next(iter(packed.values()))
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        del config[KEY]
        config["quantization_config"] = settings(grid, _left_out(job.model, packed))
        text = json.dumps(config, indent=2, sort_keys=True)
        (folder / "config.json").write_text(f"{text}\n", encoding="utf-8")
        bits = {
            "weights": f"int{grid.bits}, symmetric, a scale for each {grid.group or 'output'}",
            "layers": len(packed),
        }
        libraries = ("torch", *job.origin.libraries, "compressed-tensors")
        return Written(model=".", details={"quantisation": bits}, libraries=libraries)

    def load(self, folder: Path, *, domain: Exported | None, threads: int | None) -> Runner:
        """By transformers, as anyone would."""
        assert domain is not None
        _check_installed()
        transformers = offline_transformers("--format compressed-tensors")
        loader = getattr(transformers, str(DOMAINS.load(domain.name).transformers))
        model = loader.from_pretrained(folder, dtype=torch.float32).eval()
        return in_torch(domain.module(model), threads)

    def needs(self, origin: Origin) -> str:
        """What the model needs, and the library that unpacks."""
        return f"{origin.needs} compressed-tensors"

    def snippet(self, origin: Origin) -> str:
        """The model's own: transformers sees what it is."""
        return origin.code


def _check_installed() -> None:
    try:
        import_module("compressed_tensors")
    except ImportError as e:
        raise MissingExtraError(
            "compressed-tensors", "compressed", "--format compressed-tensors"
        ) from e


def _to_pack(job: Job) -> dict[str, Grid]:
    """The linear layers on a grid, but for a head that is the embeddings, too."""
    table = getattr(job.model, "get_input_embeddings", lambda: None)()
    shared = None if table is None else table.weight
    found = {
        name: grid
        for name, grid in job.grids.items()
        if isinstance(layer := job.model.get_submodule(name), torch.nn.Linear)
        and layer.weight is not shared
    }
    if not found:
        raise ConfigError(
            f"--format compressed-tensors: {job.folder} learnt on no grid, so it has no levels to pack; train with "
            "--student 'hf:PATH?fake-quant=int4-g64', or use --format safetensors or onnx-int8"
        )
    return found


def _left_out(model: Any, packed: dict[str, Grid]) -> list[str]:
    """Linear layers that stay as they are."""
    every = [name for name, m in model.named_modules() if isinstance(m, torch.nn.Linear)]
    return [name for name in every if name not in packed]


def settings(grid: Grid, ignore: list[str]) -> dict[str, Any]:
    """`quantization_config` of a config.json."""
    weights = {
        "num_bits": grid.bits,
        "type": "int",
        "symmetric": True,
        "dynamic": False,
        "strategy": "channel" if grid.group is None else "group",
        "group_size": grid.group,
    }
    layers = {"targets": ["Linear"], "weights": weights, "format": "pack-quantized"}
    return {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "quantization_status": "compressed",
        "config_groups": {"group_0": layers},
        "ignore": ignore,
    }


def pack(layer: str, weight: Tensor, grid: Grid) -> dict[str, Tensor]:
    """What the format keeps of a layer's weight `[E, D]`: levels in int32 words, the first in the lowest bits."""
    levels, scales = grid.quantise(weight)
    per_word = 32 // grid.bits
    unsigned = levels.to(torch.int64) + 2 ** (grid.bits - 1)
    unsigned = torch.nn.functional.pad(unsigned, (0, -unsigned.shape[1] % per_word))
    shifts = torch.arange(per_word) * grid.bits
    words = (unsigned.reshape(len(unsigned), -1, per_word) << shifts).sum(dim=-1)
    return {
        f"{layer}.weight_packed": torch.where(words < 2**31, words, words - 2**32).to(torch.int32),
        f"{layer}.weight_scale": scales.squeeze(-1).contiguous(),
        f"{layer}.weight_shape": torch.tensor(weight.shape),
    }


FORMAT = CompressedTensors()
