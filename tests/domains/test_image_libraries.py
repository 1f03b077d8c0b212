"""timm's and torchvision's models as teachers and as students, where these libraries run.

They are not among the development extras: their wheels go with one build of torch, and break others.
"""

from __future__ import annotations

import importlib
from pathlib import Path

import numpy as np
import pytest
import torch

from softlabels.builder.build import build
from softlabels.builder.config import BuildConfig
from softlabels.errors import ConfigError, MissingExtraError, TeacherError
from softlabels.store.reader import open_store
from tests.domains import pictures
from tests.students import evaluate_run
from trainers.data.tasks import Task
from trainers.run.config import RunConfig
from trainers.run.setup import train
from trainers.students import make_student

MODELS = {"timm": "resnet10t", "torchvision": "mobilenet_v3_small"}


@pytest.fixture(params=list(MODELS))
def library(request):
    try:
        importlib.import_module(request.param)
    except Exception as e:  # a wheel for another build of torch fails in its own ways
        pytest.skip(f"{request.param} does not run here: {type(e).__name__}: {e}")
    return request.param


def model_of(library: str):
    torch.manual_seed(0)
    if library == "timm":
        import timm

        return timm.create_model(MODELS[library], num_classes=10).eval()
    import torchvision

    return torchvision.models.get_model(MODELS[library], num_classes=10).eval()


def config(library: str, folder: Path, **settings: object) -> BuildConfig:
    (folder / "classes.txt").write_text("\n".join(pictures.CLASSES))
    return BuildConfig(
        **{
            "teacher": f"{library}:{MODELS[library]}?weights={folder / 'w.pt'}&classes={folder / 'classes.txt'}",
            "corpus": (pictures.IMAGES,),
            "domain": "image-classification",
            "augment": "flip",
            "image_size": 64,
            "estimator": "dense",
            "k": 10,
            "values": "float32",
            "limit_rows": 16,
            "dtype": "float32",
            **settings,
        }
    )


def test_from_weights_to_store_to_student(library, tmp_path):
    model = model_of(library)
    torch.save(model.state_dict(), tmp_path / "w.pt")
    made = build(config(library, tmp_path), tmp_path / "store")
    assert made.identity.classes == list(pictures.CLASSES)
    mean = [123.675, 116.28, 103.53]
    if library == "torchvision":
        np.testing.assert_allclose(made.identity.images.mean, mean)
    store = open_store(tmp_path / "store", images=pictures.IMAGES)
    for row in store:
        with torch.no_grad():
            logits = model(torch.from_numpy(row.inputs["pixels"])[None])
        expected = torch.softmax(logits.double(), dim=1)[0].numpy()
        np.testing.assert_allclose(row.targets.dense(1.0)[0], expected, atol=1e-5)
    student = f"{library}:{MODELS[library]}"
    a, b = (make_student(student, seed=3, task=Task.of(store)) for _ in range(2))
    assert all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters(), strict=True))
    run = RunConfig(
        store=str(tmp_path / "store"),
        images=(pictures.IMAGES,),
        student=student,
        alpha=1.0,
        steps=2,
        batch_size=8,
        threads=1,
        dtype="float32",
    )
    train(run, tmp_path / "run")
    found = evaluate_run(tmp_path / "run", tmp_path / "store", images=run.images)
    assert found.positions == 16
    with pytest.raises(ConfigError, match="cannot be made"):
        make_student(f"{library}:nothing", seed=3, task=Task.of(store))


def test_weights_of_another_model_are_refused(library, tmp_path):
    torch.save({"a": torch.zeros(3)}, tmp_path / "w.pt")
    with pytest.raises(TeacherError, match="with these weights"):
        build(config(library, tmp_path), tmp_path / "store")
    torch.save(model_of(library), tmp_path / "w.pt")
    with pytest.raises(TeacherError, match="cannot be read as weights"):
        build(config(library, tmp_path), tmp_path / "store")


@pytest.mark.parametrize("name", list(MODELS))
def test_without_them_the_extra_is_named(name, tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, name, None)
    with pytest.raises(MissingExtraError, match=r"\[timm\]'"):
        build(config(name, tmp_path), tmp_path / "store")
    task = Task(domain="image-classification", classes=pictures.CLASSES)
    with pytest.raises(MissingExtraError, match=r"\[timm\]'"):
        make_student(f"{name}:{MODELS[name]}", seed=0, task=task)


@pytest.mark.parametrize("name", list(MODELS))
def test_bad_specs(name, tmp_path):
    with pytest.raises(ConfigError, match=r"expected .*\?weights=FILE"):
        build(config(name, tmp_path, teacher=f"{name}:x"), tmp_path / "store")
    with pytest.raises(ConfigError, match="give --domain image-classification"):
        build(
            BuildConfig(teacher=f"{name}:x?weights=w", corpus=(f"text:{__file__}",)),
            tmp_path / "store",
        )
    with pytest.raises(ConfigError, match="do not serve a store of the domain causal-lm"):
        make_student(f"{name}:{MODELS[name]}", seed=0)
