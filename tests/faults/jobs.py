"""What the writers do, and what they start from: jobs that a forked child of the warm process runs in a folder.

All paths are relative to that folder, so that nothing that is written tells which folder it was.
"""

from __future__ import annotations

import dataclasses
import json
import random
import shutil
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

from softlabels.teachers import TEACHERS

__all__ = ["COMMANDS", "JOBS"]

TEACHERS.builtin["fake"] = "tests.fakes:load_tiny"
JOBS: dict[str, Callable[[], None]] = {}
BUILD = "build --teacher fake:0 --estimator topk --k 4 --seq-len 24 --shard-rows 3 --out out"
WORDS = "truth fortune wife however feelings views neighbourhood mind family daughter"


def job(function: Callable[[], None]) -> Callable[[], None]:
    """Make a function a job, by its name."""
    JOBS[function.__name__] = function
    return function


def run_softlabels(line: str) -> None:
    """Run the command, as its console script does."""
    from softlabels.cli.main import main

    main(line.split(), prog_name="softlabels")


def run_softtrain(line: str) -> None:
    """Run the command, as its console script does."""
    from trainers.cli import main

    main(line.split(), prog_name="softtrain")


COMMANDS: dict[str, str] = {}
"""`PROGRAM COMMAND` of each job that is one."""


def command(name: str, line: str, of: Callable[[str], None] = run_softlabels) -> None:
    """A job that is one command."""
    COMMANDS[name] = f"{of.__name__.removeprefix('run_')} {line.split()[0]}"
    JOBS[name] = lambda: of(line)


# -- what they start from ----------------------------------------------------------------------------------------------


def _texts(folder: Path, *, documents: int, seed: int) -> None:
    """Text in which no row occurs twice."""
    folder.mkdir()
    words = WORDS.split()
    rng = random.Random(seed)
    for i in range(documents):
        text = " ".join(f"{rng.choice(words)} {rng.randrange(1000)}" for _ in range(5))
        (folder / f"{i}.txt").write_text(text, encoding="utf-8")


def _store(out: str, corpus: str) -> None:
    from tests.fakes import build_tiny

    build_tiny(
        Path(out), f"text:{corpus}/*.txt", k=4, shard_rows=3, seq_len=24, licence="CC-BY-4.0"
    )


@job
def ground_text() -> None:
    """A corpus."""
    _texts(Path("text"), documents=3, seed=0)


@job
def ground_book() -> None:
    """A text that is large enough for a part to be held out."""
    rng = random.Random(1)
    lines = (f"{rng.choice(WORDS.split())} {rng.randrange(1000)}\n" for _ in range(2000))
    Path("book.txt").write_text("".join(lines), encoding="utf-8")


@job
def ground_stores() -> None:
    """Two stores, and text to append."""
    for name, documents in (("a", 3), ("b", 1)):
        _texts(Path(f"text-{name}"), documents=documents, seed=documents)
        _store(name, f"text-{name}")
    _texts(Path("new"), documents=1, seed=9)


@job
def ground_store() -> None:
    """One store."""
    _texts(Path("text"), documents=3, seed=3)
    _store("a", "text")


@job
def ground_paged() -> None:
    """One store, in pages."""
    _in_pages()
    ground_store()


def _in_pages() -> None:
    """Have every store of this process in pages, of a shard each."""
    from softlabels.format import pages

    pages.PAGED_ABOVE = pages.PAGE_SHARDS = 1


@job
def ground_torn_page() -> None:
    """A store of which a page of the manifest is torn."""
    ground_paged()
    page = sorted(Path("a/pages").glob("manifest-*"))[1]
    page.write_bytes(page.read_bytes()[:-1])


@job
def ground_paged_address() -> None:
    """A store in pages, which is at an address, too."""
    ground_paged()
    _upload()


@job
def ground_dense() -> None:
    """A store of whole distributions."""
    from tests.fakes import build_tiny

    _texts(Path("text"), documents=1, seed=3)
    settings = {"estimator": "dense", "k": 300, "shard_rows": 3, "seq_len": 24}
    build_tiny(Path("a"), "text:text/*.txt", **settings)


@job
def ground_half_built() -> None:
    """A build that was killed when it was about to record its second shard: the shard is there."""
    ground_text()
    from softlabels.making.claims import Claims

    _store("out", "text")
    out = Path("out")
    for path in (
        out / "manifest.json",
        out / "README.md",
        *sorted((out / "commits").iterdir())[1:],
    ):
        path.unlink()
    for shard in sorted((out / "data").iterdir())[2:]:
        shard.unlink()
    Claims(out).take([1])


@job
def ground_capture() -> None:
    """Another tool's file."""
    ground_store()
    quietly(run_softlabels, "export a axolotl --out rows.parquet")
    shutil.rmtree("a")


@job
def ground_broken() -> None:
    """A store without its manifest, with a shard that nobody recorded, and a card that is not the manifest's."""
    from softlabels.core.durable import temporary_beside

    ground_store()
    for name in ("manifest.json", "commits/00001.json"):
        (Path("a") / name).unlink()
    Path("a/README.md").write_text("Altered.\n", encoding="utf-8")
    temporary_beside(Path("a/manifest.json")).write_text(
        "Of a process that died.\n", encoding="utf-8"
    )


@job
def ground_flipped() -> None:
    """A store with a damaged shard."""
    ground_store()
    shard = sorted(Path("a/data").iterdir())[1]
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.write_bytes(data)


@job
def ground_keys() -> None:
    """A store, and a key to sign it with."""
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    ground_store()
    pem = serialization.Encoding.PEM
    kind = serialization.PrivateFormat.PKCS8
    key = ec.generate_private_key(ec.SECP256R1())
    Path("key.pem").write_bytes(key.private_bytes(pem, kind, serialization.NoEncryption()))


@job
def ground_pulled() -> None:
    """A part of the store that is at the address."""
    ground_store()
    _upload()
    quietly(run_softlabels, f"pull {ADDRESS} pulled --rows 1")


@job
def ground_edited() -> None:
    """The store that is at the address, pulled whole; its user has edited the card, and signed it."""
    ground_store()
    _upload()
    quietly(run_softlabels, f"pull {ADDRESS} pulled")
    Path("pulled/README.md").write_text("My notes.\n", encoding="utf-8")
    Path("pulled/manifest.json.sig").write_text("My own.\n", encoding="utf-8")


@job
def ground_address() -> None:
    """A store, which is at an address, too."""
    ground_store()
    _upload()


@job
def ground_damaged_cache() -> None:
    """A store at an address; its files in the cache are damaged."""
    ground_address()
    quietly(lambda _: _read_remote(), "")
    for file in Path("cache").iterdir():
        data = bytearray(file.read_bytes())
        if data:
            data[len(data) // 2] ^= 1
        file.write_bytes(data)


SHORT = "run --store a --student hf-config:student.json --out run --batch-size 2 --dtype float32"
RUN = f"{SHORT} --steps 4 --checkpoint-every 2 --keep-last 1 --log-every 1"
RUN += " --heldout b --eval-every 2 --ema 0.9"


@job
def ground_student() -> None:
    """Two stores of a small real model, and a student's configuration."""
    from softlabels.builder.build import build
    from softlabels.builder.config import BuildConfig
    from softlabels.teachers import TeacherOptions, open_teacher
    from tests.students import llama
    from tests.teachers.tiny import VOCAB, write_model

    write_model(Path("teacher"))
    teacher = open_teacher("hf:teacher", TeacherOptions(dtype="float32"))
    for name, documents in (("a", 3), ("b", 1)):
        _texts(Path(f"text-{name}"), documents=documents, seed=documents)
        config = BuildConfig(
            teacher="hf:teacher",
            corpus=(f"text:text-{name}/*.txt",),
            estimator="topk",
            k=4,
            seq_len=24,
            shard_rows=3,
        )
        build(config, Path(name), teacher=teacher)
    shutil.rmtree("teacher")
    Path("student.json").write_text(json.dumps(llama(vocab_size=VOCAB)), encoding="utf-8")
    Path("prompts.txt").write_text("It is a truth\nHowever\n", encoding="utf-8")


@job
def ground_run() -> None:
    """A finished run."""
    ground_student()
    quietly(run_softtrain, RUN)


@job
def ground_stopped_run() -> None:
    """A run that has saved once, and stopped before it was to save again."""
    ground_student()
    from trainers.run.step import Optimisation

    def stop(*arguments: object, **more: object) -> None:
        raise KeyboardInterrupt

    real, count = Optimisation.take, 0

    def step(*arguments: object, **more: object) -> object:
        nonlocal count
        count += 1
        if count == 4:
            raise KeyboardInterrupt
        return real(*arguments, **more)  # type: ignore[arg-type]

    Optimisation.take = step  # type: ignore[assignment,method-assign]
    assert _exit_code(run_softtrain, RUN) == 130
    Path("run/best/notes.txt").write_text("The user's own.\n", encoding="utf-8")


def quietly(of: Callable[[str], None], line: str) -> None:
    """Run a command to its end, which must be a good one."""
    code = _exit_code(of, line)
    assert code == 0, f"{line}: exit {code}"


def _exit_code(of: Callable[[str], None], line: str) -> object:
    try:
        of(line)
    except SystemExit as e:
        return e.code or 0
    return 0


# -- the other side of push and pull -----------------------------------------------------------------------------------

ADDRESS = "s3://bucket/a"


def _upload() -> None:
    import os

    from tests.store.s3 import upload

    _empty_bucket()
    upload(Path("a"), os.environ["AWS_ENDPOINT_URL"], "a")


def _empty_bucket() -> None:
    import os

    endpoint = os.environ["AWS_ENDPOINT_URL"]
    for path, method in (("moto-api/reset", "POST"), ("bucket", "PUT")):
        request = urllib.request.Request(f"{endpoint}/{path}", data=b"", method=method)
        urllib.request.urlopen(request, timeout=20).close()


# -- writers -----------------------------------------------------------------------------------------------------------

command("init", "init --teacher fake:0 --corpus book.txt --disk-gb 1 --out out")
command("build", f"{BUILD} --corpus text:text/*.txt --licence CC-BY-4.0")
command("build_zarr", f"{BUILD} --corpus text:text/*.txt --container zarr")


@job
def build_pages() -> None:
    """A build whose plan and manifest are in pages."""
    _in_pages()
    run_softlabels(f"{BUILD} --corpus text:text/*.txt")


@job
def build_bucket_pages() -> None:
    """The same in a bucket."""
    _in_pages()
    JOBS["build_bucket"]()


@job
def repair_bucket_pages() -> None:
    """A repair in a bucket that makes a page again."""
    _in_pages()
    JOBS["repair_bucket"]()


@job
def build_dictionary() -> None:
    """A packed build that trains a dictionary, on its first shard."""
    import softlabels.making.dictionary

    softlabels.making.dictionary.POSITIONS = 1
    run_softlabels(f"{BUILD} --corpus text:text/*.txt --profile packed --values nat16")


@job
def build_place() -> None:
    """A packed build in a place that is a folder; a dictionary is trained; who planned died."""
    import softlabels.making.dictionary
    import softlabels.making.place.holding
    from softlabels.core.durable import sweep
    from softlabels.making.claims import Holder
    from softlabels.making.place import FolderPlace
    from softlabels.making.place.names import PLANNING, claim_content

    softlabels.making.dictionary.POSITIONS = 1
    softlabels.making.place.holding.RENEWAL = 0.0

    def work() -> None:
        place = FolderPlace(Path("out"))
        if not Path("out/plan.json").exists():  # else there is nothing to take over
            dead = dataclasses.replace(Holder.here(), started="1")
            place.create(f"claims/{PLANNING}.json", claim_content(dead, "", 0))
        _build_over(place, Path("scratch"))
        sweep(Path("out"))  # a bucket holds nothing temporary; who finishes a folder sweeps it

    _as_command(work)


def _build_over(place: Any, scratch: Path) -> None:
    from softlabels.builder.build import build_at
    from softlabels.making.place.plan import Mirror
    from softlabels.making.site import PlaceSite
    from tests.fakes import TinyTeacher, config_of

    changes = {"shard_rows": 3, "seq_len": 24, "k": 4, "profile": "packed", "values": "nat16"}
    site, teacher = PlaceSite(Mirror(place, scratch)), TinyTeacher()
    config = config_of("text:text/*.txt", **changes)
    build_at(config, site, teacher=teacher)


command("build_bucket", f"{BUILD} --corpus text:text/*.txt".replace(" out", " s3://bucket/built"))
command("merge", "merge a b --out out")
command("append", "append a --teacher fake:0 --corpus text:new/*.txt --out out")
command("subset", "subset a --first 7 --k 3 --out out")
command("convert", "convert a --profile packed --values nat16 --out out")
command("view", "view a --vocab trim:280 --out out")
command("import", "import axolotl rows.parquet --teacher fake:0 --shard-rows 3 --out out")
command("export", "export a topk --out out.parquet")
command("export_base", "export a llama-kld --out out.kld")
command("kld", "kld fake:0 --store a --bootstrap 0 --work out-work --out out.html")
command(
    "reference",
    "reference fake:0 --corpus text:text/*.txt --k 4 --wide-k 9 --wide-every 2 --seq-len 24 --shard-rows 3 --out out",
)
command("repair", "repair a")
command("repair_bucket", f"repair {ADDRESS}")
command("sign", "sign a --key key.pem")
command("card", "card a")
command("measure", "measure a --teacher fake:0 --positions 100")
command("states", "states a --teacher fake:0 --out out")
command("check", "check --teacher fake:0 --corpus text:text/*.txt --out out")
command("size", "size --teacher fake:0 --corpus text:text/*.txt")
command("inspect", "inspect a")
command("verify", "verify a")
command("diff", "diff a b")
command("status", "status a")
command("store_report", "report a --out out.html")
command("push", "push a s3://bucket/pushed")
command("pull", f"pull {ADDRESS} pulled")
command("run", RUN, of=run_softtrain)
command("resume", f"{RUN} --resume", of=run_softtrain)
command("run_short", f"{SHORT} --steps 1", of=run_softtrain)
command("resume_short", f"{SHORT} --steps 1 --resume", of=run_softtrain)
command("eval", "eval run --store b", of=run_softtrain)
command("ship", "export run --format safetensors --heldout b --out shipped", of=run_softtrain)
command("run_report", "report run --store b --out out.html", of=run_softtrain)
command("watch", "watch run --once --out out.html", of=run_softtrain)
GENERATE = "generate run --prompts prompts.txt --max-new-tokens 4"
command("generate_jsonl", f"{GENERATE} --out out.jsonl", of=run_softtrain)
command("generate_parquet", f"{GENERATE} --out out.parquet", of=run_softtrain)
command("student", "student hf-config:student.json --out out", of=run_softtrain)


@job
def cache() -> None:
    """Read every row of a store at an address; its files are kept."""
    _read_remote()


ROOM = 7000
"""Bytes: more than a shard, and less than two."""


@job
def small_cache() -> None:
    """Likewise, where one shard has room."""
    _read_remote(gib=ROOM / 2**30)


def _read_remote(gib: float = 1.0) -> None:
    from softlabels.store.reader import open_store
    from softlabels.store.remote.cache import CacheOptions

    def read() -> None:
        for _ in open_store(ADDRESS, cache=CacheOptions(folder="cache", gib=gib)):
            pass

    _as_command(read)


def _as_command(work: Callable[[], None]) -> None:
    """End as a command does."""
    import click

    from softlabels.console.terminal import Commands

    group = Commands("jobs", commands=[click.Command("work", callback=work)])
    group.main(["work"], prog_name="jobs")


@job
def demo_config() -> None:
    """The one file that `softlabels demo` writes itself."""
    from softlabels.cli.demo import write_config

    _as_command(lambda: write_config(Path("demo.json"), Path("a")))


@job
def fill_bucket() -> None:
    """What is at the address before a case begins: the store `a`, and nothing else."""
    _upload()


# -- writers that an injector must find wanting ------------------------------------------------------------------------


@job
def careless() -> None:
    """Write a file under its own name."""
    with Path("out.txt").open("w", encoding="utf-8") as file:
        file.write("A line that is long enough to be torn.\n")


@job
def forgetful() -> None:
    """Write a file beside, and rename it, without a thought of the disk."""
    Path(".tmp-out.txt").write_text("A line.\n", encoding="utf-8")
    Path(".tmp-out.txt").replace("out.txt")


@job
def grasping() -> None:
    """Take a file that cannot be read for a damaged one, and remove it."""
    path = Path("text/0.txt")
    try:
        data = path.read_bytes()
    except OSError:
        path.unlink()
        data = b""
    Path("out.txt").write_bytes(data)


@job
def silent() -> None:
    """Say nothing of an error."""
    from contextlib import suppress

    with suppress(OSError):
        careless()
