"""What tests of `SoftLabelSFTTrainer`, and the processes that they start, train: a real student's first and last layer.

python tests/trainers/trl_ground.py GROUND OUT fsdp     one process of those that share the weights (FSDP2)
python tests/trainers/trl_ground.py GROUND OUT ddp      one of those that have all of them
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch

from trainers.loss.losses import DistillLoss

LOSS = DistillLoss(temperature=2.0, alpha=0.7)
STEPS = int(os.environ.get("SOFTLABELS_TRL_STEPS", "20"))
WHOLE = bool(os.environ.get("SOFTLABELS_TRL_WHOLE"))
"""Whether the student is all of SmolLM2, and rows have 128 tokens: minutes."""
ROWS = int(os.environ.get("SOFTLABELS_TRL_ROWS", "2" if WHOLE else "4"))
"""Of a step."""
SEED = 42
"""TRL's own, of adapter and order."""
LR, DECAY, BETA2 = 1e-3, 0.1, 0.95


def student(ground: Path) -> Any:
    """A model of transformers in float32, in training mode."""
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(
        ground / "student", dtype=torch.float32
    )
    return model.train()


def lora() -> Any:
    import peft

    return peft.LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM")


def arguments(out: Path, **changes: Any) -> Any:
    from trl import SFTConfig

    values = {
        "per_device_train_batch_size": ROWS,
        "max_steps": STEPS,
        "learning_rate": LR,
        "lr_scheduler_type": "constant",
        "weight_decay": DECAY,
        "adam_beta2": BETA2,
        "max_grad_norm": 1.0,
        "logging_steps": 1,
        "report_to": "none",
        "save_strategy": "no",
        "disable_tqdm": True,
        "use_cpu": True,
        "bf16": False,
        "seed": SEED,
        "gradient_checkpointing": None,
        "activation_checkpointing": True,
        "dataloader_pin_memory": False,
    }
    return SFTConfig(str(out), **(values | changes))


def trainer(ground: Path, out: Path, *, adapter: bool = True, **changes: Any) -> Any:
    """As users write it; keeps the gradients of the first step."""
    from trainers.integrations.trl import SoftLabelSFTTrainer

    class Watched(SoftLabelSFTTrainer):
        gradients: dict[str, torch.Tensor]

        def create_optimizer(self, *args: Any, **kwargs: Any) -> Any:
            made = super().create_optimizer(*args, **kwargs)
            self.gradients = {}
            self.optimizer.register_step_pre_hook(self._keep)
            return made

        def _keep(self, *_: Any) -> None:
            if not self.gradients:
                self.gradients = {
                    n: (p.grad.full_tensor() if hasattr(p.grad, "full_tensor") else p.grad).clone()
                    for n, p in self.model.named_parameters()
                    if p.grad is not None
                }

    return Watched(
        student(ground),
        arguments(out, **changes),
        store=ground / "store",
        distill=LOSS,
        peft_config=lora() if adapter else None,
    )


def losses(made: Any) -> list[float]:
    return [line["loss"] for line in made.state.log_history if "loss" in line]


def run_of_several(ground: Path, out: Path, *, sharded: bool) -> None:
    """Train as one of several processes, and write what came of it."""
    world = int(os.environ["WORLD_SIZE"])
    how: dict[str, Any] = {"ddp_backend": "gloo", "per_device_train_batch_size": ROWS // world}
    if sharded:
        pretend_cpus_can_share()
        layers = {"transformer_layer_cls_to_wrap": ["LlamaDecoderLayer"]}
        how |= {"fsdp": True, "fsdp_config": layers}
    made = trainer(ground, out / "out", **how)
    made.train()
    assert made.accelerator.num_processes == world
    if sharded:
        assert made.accelerator.is_fsdp2
        shared = [n for n, p in made.model.named_parameters() if hasattr(p, "full_tensor")]
        assert any("lm_head" in n or "embed" in n for n in shared), shared[:5]
    made.save_model(str(out / "adapter"))
    if made.args.process_index == 0:
        torch.save(made.gradients, out / "gradients.pt")
        (out / "losses.json").write_text(json.dumps(losses(made)))


def pretend_cpus_can_share() -> None:
    """Accelerate shards weights over GPUs and the like only: for it, these CPUs are some."""
    from accelerate import state
    from accelerate.utils import DistributedType

    begin = state.AcceleratorState.__init__

    def shared(self: Any, *args: Any, **kwargs: Any) -> None:
        begin(self, *args, **kwargs)
        if kwargs.get("fsdp_plugin") is not None:
            self.distributed_type, self.fsdp_plugin = DistributedType.FSDP, kwargs["fsdp_plugin"]
            state.PartialState._shared_state["distributed_type"] = DistributedType.FSDP

    state.AcceleratorState.__init__ = shared


if __name__ == "__main__":
    run_of_several(Path(sys.argv[1]), Path(sys.argv[2]), sharded=sys.argv[3] == "fsdp")
