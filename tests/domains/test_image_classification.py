"""One class for a view of an image: from a ViT to a store, and from the store to a CNN."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from click.testing import CliRunner
from torch.utils.data import DataLoader

from softlabels.builder.build import build
from softlabels.builder.config import BuildConfig
from softlabels.builder.dry_run import dry_run
from softlabels.cli.main import main
from softlabels.core.rows import UNLABELLED
from softlabels.domains.image_classification import DOMAIN, ImageRow
from softlabels.errors import (
    ConfigError,
    CorpusError,
    IntegrityError,
    PairingError,
    PlanError,
    TeacherError,
)
from softlabels.store.reader import open_store
from softlabels.store.verify import verify_store
from softlabels.testing import check_domain, check_images
from tests.domains import pictures
from tests.students import evaluate_run
from trainers.data.batch import collate
from trainers.data.dataset import SoftTargetDataset
from trainers.data.stream import SoftTargetStream
from trainers.data.tasks import Task
from trainers.evaluation.evaluate import evaluate
from trainers.run.config import RunConfig
from trainers.run.setup import train
from trainers.students import load_student, make_student
from trainers.testing import check_student

AUGMENT = "crop:2,flip,colour:0.2,mixup:0.2,cutmix:0.2"
VIEWS = 2


@pytest.fixture(scope="module")
def ground(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    pictures.save_vit(folder / "teacher")
    build(config(folder), folder / "store")
    return folder


def config(ground: Path, **settings: object) -> BuildConfig:
    return BuildConfig(
        **{
            "teacher": f"hf:{ground / 'teacher'}",
            "corpus": (pictures.IMAGES,),
            "domain": "image-classification",
            "augment": AUGMENT,
            "views": VIEWS,
            "estimator": "dense",
            "k": 10,
            "temperature": (1.0, 2.0),
            "shard_rows": 64,
            "values": "float32",
            "dtype": "float32",
            "seed": 7,
            **settings,
        }
    )


def run_config(ground: Path, **settings: object) -> RunConfig:
    return RunConfig(
        **{
            "store": str(ground / "store"),
            "images": (pictures.IMAGES,),
            "student": "cnn:8x2",
            "temperature": 2.0,
            "alpha": 1.0,
            "steps": 30,
            "batch_size": 32,
            "lr": 1e-2,
            "threads": 1,
            "device": "cpu",
            "dtype": "float32",
            **settings,
        }
    )


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_a_store_holds_what_the_teacher_says_of_the_pixels_that_its_rows_make(ground, temperature):
    store = open_store(ground / "store", images=pictures.IMAGES)
    model = transformers.ViTForImageClassification.from_pretrained(ground / "teacher")
    assert len(store) == 120 * VIEWS
    spread = []
    for row in list(store)[::7]:
        x = torch.from_numpy(row.inputs["pixels"])[None]
        raw = (row.row.pixels().transpose(2, 0, 1).astype(np.float32) - 127.5) / 63.75
        np.testing.assert_array_equal(x[0].numpy(), raw)
        with torch.no_grad():
            logits = model(pixel_values=x).logits.double()
        expected = torch.softmax(logits / temperature, dim=1)[0].numpy()
        np.testing.assert_allclose(row.targets.dense(temperature)[0], expected, atol=3e-6)
        spread.append(expected)
    assert np.std(spread, axis=0).max() > 0.01, "a teacher without opinions proves nothing"


@pytest.mark.parametrize("container", ["parquet", "zarr"])
@pytest.mark.parametrize("profile", ["open", "packed"])
def test_profiles_and_containers_agree(ground, tmp_path, profile, container):
    changes = {"profile": profile, "container": container, "estimator": "topk", "k": 4}
    build(config(ground, **changes), tmp_path / "store")
    assert not verify_store(tmp_path / "store").problems
    for a, b in zip(open_store(ground / "store"), open_store(tmp_path / "store"), strict=True):
        assert a.row.digest() == b.row.digest()
        assert (a.row.document, a.row.view) == (b.row.document, b.row.view)
        kept = b.targets.ids[0]
        np.testing.assert_allclose(
            b.targets.probs(2.0)[0], a.targets.dense(2.0)[0][kept], rtol=0, atol=2e-6
        )


def test_a_label_is_known_where_one_class_is_seen(ground):
    labels = np.load(pictures.SAMPLE)["labels"]
    store = open_store(ground / "store", images=pictures.IMAGES)
    mixed = 0
    for i, stored in enumerate(store):
        row = stored.row
        assert (row.document, row.view) == divmod(i, VIEWS)
        mix = store.images.mix(row.document, row.view)
        same = mix is None or labels[mix.partner] == labels[row.document]
        assert row.label == (labels[row.document] if same else UNLABELLED)
        mixed += not same
    assert 0.25 < mixed / len(store) < 0.5  # of 0.4, a tenth has a partner of its own class
    assert store.manifest.statistics.labelled == len(store) - mixed


@pytest.mark.slow
def test_another_process_makes_the_same_pixels(ground):
    """Named by digests, in a process that reads the rows backwards."""
    program = (
        "import sys, softlabels\n"
        "from softlabels.domains.image_classification.views import digest_of\n"
        "store = softlabels.open_store(sys.argv[1], images=sys.argv[2])\n"
        "for i in reversed(range(len(store))): print(i, digest_of(store.row(i).row.pixels()).hex())\n"
    )
    out = subprocess.run(
        [sys.executable, "-c", program, str(ground / "store"), pictures.IMAGES],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[2],
    )
    found = dict(line.split() for line in out.stdout.splitlines())
    store = open_store(ground / "store", images=pictures.IMAGES)
    from softlabels.domains.image_classification.views import digest_of

    assert found == {str(i): digest_of(stored.row.pixels()).hex() for i, stored in enumerate(store)}
    assert len(set(found.values())) == len(found), "views that are alike prove nothing"


def test_a_store_whose_replay_differs_is_refused(ground, monkeypatch):
    from softlabels.domains.image_classification import pixels

    whole = pixels.resized
    monkeypatch.setattr(
        "softlabels.domains.image_classification.pixels.resized",
        lambda image, size: whole(image, size) ^ np.uint8(1),
    )
    monkeypatch.setattr("softlabels.domains.image_classification.views.np.__version__", "99.0")
    with pytest.raises(CorpusError, match=r"replay of row 0 .*made with numpy .*, here 99\.0"):
        train(run_config(ground), ground / "refused")
    assert not (ground / "refused").exists()


@pytest.mark.parametrize("every", [1, 3, 16])
def test_an_image_that_changed_is_found_when_its_turn_comes(ground, tmp_path, every):
    with np.load(pictures.SAMPLE) as file:
        images, labels = file["images"].copy(), file["labels"]
    build(config(ground, check_every=every), tmp_path / "store")
    store = open_store(tmp_path / "store", images=pictures.IMAGES)
    checked = {(r.row.document, r.row.view) for r in store if r.row.check is not None}
    assert checked == {(i, v) for i in range(120) for v in range(VIEWS) if (i + v) % every == 0}
    views = store.images
    sampled = {s.document for s in store.manifest.identity.images.replay}
    partners = {m.partner for i in sampled for v in range(VIEWS) if (m := views.mix(i, v))}
    alone = (
        i for i, v in sorted(checked) if i >= 20 and views.mix(i, v) is None
    )  # nothing is pasted over it
    changed = next(i for i in alone if i not in sampled | partners)
    images[changed, 14, 14] ^= 255
    np.savez(tmp_path / "other.npz", images=images, labels=labels)
    opened = open_store(tmp_path / "store", images=f"arrays:{tmp_path / 'other.npz'}")
    with pytest.raises(CorpusError, match=rf"image {changed}, view .*not those that the teacher"):
        [row.row.pixels() for row in opened]


def test_a_check_where_there_is_none_is_refused(ground):
    identity = open_store(ground / "store").manifest.identity
    row = ImageRow(document=15, view=1, label=0, check=7)
    assert DOMAIN.rows_of(DOMAIN.columns([row]), identity, where="shard")[0].check == 7
    stray = DOMAIN.columns([replace(row, view=0)])
    with pytest.raises(IntegrityError, match=r"shard: image 15, view 0 has the check 7.* 16"):
        DOMAIN.rows_of(stray, identity, where="shard")


def test_a_plan_of_other_checks_is_not_gone_on_with(ground, tmp_path):
    build(config(ground, check_every=1), tmp_path / "store")
    with pytest.raises(PlanError, match=r"images check_every = 1, this build has 16"):
        build(config(ground), tmp_path / "store")
    with pytest.raises(
        ConfigError, match="--check-every 4: belongs to --domain image-classification, not"
    ):
        BuildConfig(teacher="hf:x", corpus=("text:x",), check_every=4)
    with pytest.raises(ConfigError, match=r"--check-every 0"):
        config(ground, check_every=0)


def test_inspect_says_which_view_a_row_is(ground):
    done = CliRunner().invoke(main, ["inspect", str(ground / "store"), "--row", "5"])
    assert done.stdout.startswith("row 5: image 2, view 1\n       At T=1. ")
    assert (
        len(done.stdout.splitlines()) == 6
    )  # three of head, a blank, names of columns, the one position


def test_other_images_are_refused(ground, tmp_path):
    with np.load(pictures.SAMPLE) as file:
        np.savez(tmp_path / "few.npz", images=file["images"][:60], labels=file["labels"][:60])
        np.savez(tmp_path / "turned.npz", images=file["images"][::-1])
    with pytest.raises(CorpusError, match=r"made from 120 images, and there are 60"):
        open_store(ground / "store", images=f"arrays:{tmp_path / 'few.npz'}")
    with pytest.raises(CorpusError, match=r"replay of row 0 .* differs"):
        open_store(ground / "store", images=f"arrays:{tmp_path / 'turned.npz'}")


def test_pixels_need_images(ground, tmp_path):
    row = open_store(ground / "store").row(3)
    assert "pixels" not in row.inputs
    with pytest.raises(PairingError, match="holds no pixels"):
        collate([row])
    with pytest.raises(ConfigError, match="--images is missing"):
        train(run_config(ground, images=()), tmp_path / "run")
    build(config(ground, limit_rows=16, seed=8), tmp_path / "heldout")
    with pytest.raises(ConfigError, match="--heldout-images is missing"):
        train(run_config(ground, heldout=str(tmp_path / "heldout")), tmp_path / "run")


@pytest.mark.parametrize("spec", ["cnn:8x2", "hf-config:GROUND/teacher/config.json"])
def test_students_keep_the_contract(ground, spec):
    check_student(spec.replace("GROUND", str(ground)), ground / "store", images=[pictures.IMAGES])


def test_the_domain_keeps_the_contract(ground):
    check_domain(ground / "store", images=[pictures.IMAGES])
    check_images(pictures.IMAGES)


@pytest.mark.parametrize("student", ["cnn:8x2", "hf-config"])
def test_a_student_learns_the_teacher_from_the_store(ground, tmp_path, student):
    if student == "hf-config":
        settings = json.loads((ground / "teacher" / "config.json").read_text())
        settings |= {"initializer_range": 0.02}
        (tmp_path / "student.json").write_text(json.dumps(settings))
        student = f"hf-config:{tmp_path / 'student.json'}"
    run = run_config(ground, student=student)
    train(run, tmp_path / "run")
    store = open_store(ground / "store", images=pictures.IMAGES)
    before = evaluate(make_student(run.student, seed=0, task=Task.of(store)), store)
    after = evaluate_run(tmp_path / "run", ground / "store", images=run.images)
    assert after.kl < 0.6 * before.kl
    loaded = load_student(tmp_path / "run" / "student", Task.of(store))
    assert evaluate(loaded, store).kl == after.kl


def test_a_saved_student_begins_another_run(ground, tmp_path):
    train(run_config(ground, steps=2), tmp_path / "one")
    again = run_config(ground, steps=1, student=f"hf:{tmp_path / 'one' / 'student'}", lr=1e-9)
    train(again, tmp_path / "two")
    a, b = (
        evaluate_run(tmp_path / n, ground / "store", images=again.images) for n in ("one", "two")
    )
    assert a.kl == pytest.approx(b.kl, rel=1e-4)


class Normed(torch.nn.Module):
    """With batch statistics, as most networks of images have."""

    def __init__(self) -> None:
        super().__init__()
        self.body = torch.nn.Sequential(
            torch.nn.Conv2d(3, 8, 3, stride=2), torch.nn.BatchNorm2d(8), torch.nn.ReLU()
        )
        self.head = torch.nn.Linear(8, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(x).mean(dim=(2, 3)))


@pytest.fixture
def normed(monkeypatch):
    """A kind of student like those of timm and torchvision, without these."""
    from trainers.students import images as trainers_pictures

    def from_normed(argument, *, seed, task):
        return trainers_pictures._make(f"cnn:{argument}", seed, task, Normed)

    monkeypatch.setattr("trainers.students.images.from_cnn", from_normed)


def test_batch_statistics_survive_a_checkpoint_and_are_averaged(ground, tmp_path, normed):
    from safetensors.torch import load_file

    settings = {"steps": 8, "checkpoint_every": 4, "keep_last": 2, "ema": 0.5}
    train(run_config(ground, **settings), tmp_path / "whole")
    for name in ("one", "checkpoints"):
        (tmp_path / "cut" / name).mkdir(parents=True)
    (tmp_path / "cut" / "one").rmdir()
    (tmp_path / "cut" / "run.json").write_bytes((tmp_path / "whole" / "run.json").read_bytes())
    (tmp_path / "whole" / "checkpoints" / "step-00000004").rename(
        tmp_path / "cut" / "checkpoints" / "step-00000004"
    )
    train(run_config(ground, **settings), tmp_path / "cut", resume=True)
    for folder in ("student", "student-ema"):
        a, b = (load_file(tmp_path / n / folder / "model.safetensors") for n in ("whole", "cut"))
        assert {n.rpartition(".")[2] for n in a} >= {"running_mean", "running_var"}
        for name in a:
            assert torch.equal(a[name], b[name]), name
        means = "body.1.running_mean"
        assert a[means].abs().sum() > 0
    last, averaged = (
        load_file(tmp_path / "whole" / f / "model.safetensors")["body.1.running_var"]
        for f in ("student", "student-ema")
    )
    assert not torch.equal(last, averaged)


def test_exact_sums_are_not_promised_of_batch_statistics(ground, tmp_path, normed):
    run = run_config(ground, accumulate=2, exact_ranks=True)
    with pytest.raises(ConfigError, match="has batch normalisation"):
        train(run, tmp_path / "run")


def test_micro_batches_change_nothing_in_a_student_without_batch_statistics(ground, tmp_path):
    for parts in (1, 4):
        train(run_config(ground, steps=3, accumulate=parts), tmp_path / str(parts))
    a, b = (
        evaluate_run(tmp_path / n, ground / "store", images=(pictures.IMAGES,)) for n in ("1", "4")
    )
    assert a.kl == pytest.approx(b.kl, rel=1e-3)


@pytest.mark.slow
def test_workers_of_a_data_loader_make_the_same_batches(ground):
    options = {"batch_size": 16, "seed": 3, "images": (pictures.IMAGES,)}
    stream = iter(SoftTargetStream(ground / "store", **options))
    dataset = SoftTargetDataset(ground / "store", **options)
    loader = DataLoader(dataset, batch_size=None, num_workers=2)
    for mine, theirs, _ in zip(stream, loader, range(5), strict=False):
        assert mine.rows == theirs.rows
        assert torch.equal(mine.inputs["pixel_values"], theirs.inputs["pixel_values"])
    stream.close()


def test_a_dry_run_counts_views(ground, tmp_path):
    found = dry_run(config(ground), tmp_path / "s")
    assert (found.documents, found.rows, found.positions) == (120, 240, 240)


def test_a_build_goes_on_only_with_the_same_views(ground, tmp_path):
    build(config(ground, limit_rows=8), tmp_path / "s")
    with pytest.raises(PlanError, match=r"images augment = .*flip"):
        build(config(ground, limit_rows=8, augment="flip"), tmp_path / "s")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"augment": "rotate:3"}, "--augment 'rotate:3': expected centre:SHARE"),
        ({"augment": "flip,flip"}, "flip is given twice"),
        ({"augment": "flip:1"}, "--augment 'flip:1'"),
        ({"augment": "mixup:0.7,cutmix:0.7"}, "at most 1 together"),
        ({"augment": "crop:x"}, "'x' is not a number"),
        ({"augment": "", "views": 2}, "--views 2: all views of an image are the same"),
        (
            {"domain": "causal-lm"},
            "--augment crop.*: belongs to --domain image-classification, not",
        ),
        (
            {"domain": "causal-lm", "augment": None},
            "belongs to --domain image-classification or masked-lm",
        ),
    ],
)
def test_bad_recipes(ground, settings, message):
    with pytest.raises(ConfigError, match=message):
        config(ground, **settings)


def test_bad_teachers(ground, tmp_path):
    folder = pictures.save_vit(tmp_path / "t")
    (folder / "preprocessor_config.json").unlink()
    with pytest.raises(TeacherError, match="does not say how its images are made"):
        build(config(tmp_path, teacher=f"hf:{folder}"), tmp_path / "s")
    three = pictures.save_vit(tmp_path / "three", classes=("a", "b", "c"))
    with pytest.raises(CorpusError, match="label 9 is none of the teacher's 3 classes"):
        build(config(tmp_path, teacher=f"hf:{three}", k=3), tmp_path / "s")
    with pytest.raises(TeacherError, match=r"fails on images .*Its own is 28"):
        build(config(ground, image_size=32), tmp_path / "s")


def test_replay_is_of_rows_from_end_to_end(ground):
    record = open_store(ground / "store").manifest.identity.images
    assert (record.images, record.views, record.size) == (120, VIEWS, 28)
    rows = [s.document * VIEWS + s.view for s in record.replay]
    assert (rows[0], rows[-1], len(rows)) == (0, 239, 16)
