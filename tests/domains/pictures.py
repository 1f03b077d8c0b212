"""A small ViT whose random head has opinions, and real images."""

from __future__ import annotations

import json
from pathlib import Path

import torch
import transformers

SAMPLE = Path(__file__).parents[2] / "data" / "fashion-mnist" / "sample.npz"
IMAGES = f"arrays:{SAMPLE}"
CLASSES = ("t-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "boot")  # fmt: skip


def save_vit(folder: Path, *, seed: int = 0, classes: tuple[str, ...] = CLASSES) -> Path:
    names = dict(enumerate(classes))
    torch.manual_seed(seed)
    config = transformers.ViTConfig(
        image_size=28,
        patch_size=7,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        initializer_range=0.3,
        id2label=names,
        label2id={n: i for i, n in names.items()},
    )
    transformers.ViTForImageClassification(config).save_pretrained(folder)
    facts = {"size": {"height": 28, "width": 28}, "image_mean": [0.5] * 3, "image_std": [0.25] * 3}
    (folder / "preprocessor_config.json").write_text(json.dumps(facts))
    return folder
