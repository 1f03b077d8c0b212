"""Every writer of the project: what it starts from, what it may change, and how it is finished after a fault."""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatch

__all__ = ["WRITERS", "Writer"]


@dataclass(frozen=True, kw_only=True)
class Writer:
    """One line of the table. Patterns are of names relative to the folder in which all happens."""

    name: str
    ground: str
    """Job that makes what it starts from."""
    job: str
    """What meets the fault."""
    again: str = ""
    """What finishes it afterwards; empty: the same job."""
    may_change: tuple[str, ...] = ()
    """Files of the ground that it may replace or remove; every other one stays, the same file with the same bytes."""
    may_stay: tuple[str, ...] = ()
    """What was to go and could not be looked at: it stays, whole."""
    promises: bool = True
    """Whether what it publishes survives a power failure; a cache need not, whose every byte is checked when read."""
    may_go: tuple[str, ...] = ()
    """Of these, files that it moves aside before it makes them again."""
    passing: tuple[str, ...] = ("*/claims", "*/claims/*")
    """What is there only while work goes on."""
    growing: tuple[str, ...] = ()
    """Logs: they may be seen with fewer lines."""
    untold: tuple[str, ...] = ("*/quarantine/*", "*/.softtrain.lock")
    """Files of which nothing is promised. What is moved aside stays until its owner looks at it; a kill between the
    move and the proof that it is ours leaves it there, too."""
    exits: int = 0
    """Exit code without a fault."""
    says: str = ""
    """What it then says, where that is an error."""
    declines: str = ""
    """What it says when its result is shown and could not be kept; it then ends well."""
    beside: bool = False
    """Another process does the same at the same time, and meets no fault."""
    remote: bool = False
    """There is a service that speaks S3."""
    once: bool = False
    """Refuses to begin when what it makes is there already."""
    spared: str = ""
    """Folder whose calls meet no fault."""
    only: str = "*"
    """Names whose calls do."""

    @property
    def finish(self) -> str:
        """Job that finishes it."""
        return self.again or self.job

    def changes(self, name: str) -> bool:
        """Whether a file of the ground may change."""
        return _is_one(name, self.may_change)

    def declined(self, output: str) -> bool:
        """Whether it said that its result was not kept."""
        return bool(self.declines) and self.declines in output

    def withdraws(self, name: str) -> bool:
        """Whether a file may be missing in between."""
        return _is_one(name, self.may_go)

    def passes(self, name: str) -> bool:
        """Whether it is there only while work goes on."""
        return _is_one(name, self.passing)

    def grows(self, name: str) -> bool:
        """Whether it is a log."""
        return _is_one(name, self.growing)

    def spares(self, name: str) -> bool:
        """Whether it is in the folder that is spared."""
        return bool(self.spared) and (name + "/").startswith(self.spared + "/")

    def unspared(self, tree: dict[str, bytes | None]) -> dict[str, bytes | None]:
        """What of a folder's content is watched."""
        return {n: d for n, d in tree.items() if not self.spares(n)}

    def is_untold(self, name: str) -> bool:
        """Whether nothing is promised of it."""
        return _is_one(name, self.untold)


def _is_one(name: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatch(name, pattern) for pattern in patterns)


_RUN = {
    "spared": "run/tensorboard",
    "growing": ("run/metrics.jsonl",),
    "untold": ("run/tensorboard/*", "run/tensorboard/", "run/.softtrain.lock"),
}

WRITERS: dict[str, Writer] = {
    w.name: w
    for w in (
        Writer(name="init", ground="ground_book", job="init", once=True),
        Writer(name="build", ground="ground_text", job="build"),
        Writer(name="build, Zarr", ground="ground_text", job="build_zarr"),
        Writer(name="build, in pages", ground="ground_text", job="build_pages"),
        Writer(name="build, with a dictionary", ground="ground_text", job="build_dictionary"),
        Writer(name="build, beside another", ground="ground_text", job="build", beside=True),
        Writer(
            name="build, taken up again",
            ground="ground_half_built",
            job="build",
            may_change=("out/claims/*",),
        ),
        Writer(
            name="build, in a place",
            ground="ground_text",
            job="build_place",
            untold=(
                "scratch/*",
                "*/quarantine/*",
                "*/claims/",
            ),  # an empty folder, which a bucket has not
            passing=("*/claims", "*/claims/*", "scratch", "scratch/*"),
        ),
        Writer(name="build, in a bucket", ground="ground_text", job="build_bucket", remote=True),
        Writer(
            name="build, in a bucket, in pages",
            ground="ground_text",
            job="build_bucket_pages",
            remote=True,
        ),
        Writer(name="merge", ground="ground_stores", job="merge"),
        Writer(name="append", ground="ground_stores", job="append"),
        Writer(name="subset", ground="ground_store", job="subset"),
        Writer(name="convert", ground="ground_store", job="convert"),
        Writer(name="view", ground="ground_store", job="view"),
        Writer(name="import", ground="ground_capture", job="import"),
        Writer(name="export to another tool", ground="ground_store", job="export", once=True),
        Writer(name="export to llama.cpp", ground="ground_dense", job="export_base", once=True),
        Writer(name="reference", ground="ground_text", job="reference"),
        Writer(name="report of candidates", ground="ground_store", job="kld"),
        Writer(
            name="repair",
            ground="ground_broken",
            job="repair",
            may_change=("a/README.md", "a/.tmp-*"),
            may_go=("a/README.md",),
        ),
        Writer(
            name="repair, withdrawing",
            ground="ground_flipped",
            job="repair",
            may_change=(
                "a/data/train-00001-*",
                "a/commits/00001.json",
                "a/manifest.json",
                "a/README.md",
            ),
            exits=1,
            says="1 shards must be built",
        ),
        Writer(
            name="repair, in pages",
            ground="ground_torn_page",
            job="repair",
            may_change=("a/manifest.json", "a/README.md", "a/pages/manifest-00001-*"),
            may_go=("a/manifest.json", "a/pages/manifest-00001-*"),
        ),
        Writer(
            name="repair, in a bucket",
            ground="ground_flipped",
            job="repair_bucket",
            remote=True,
            exits=1,
            says="1 shards must be built",
        ),
        Writer(
            name="repair, in a bucket, in pages",
            ground="ground_torn_page",
            job="repair_bucket_pages",
            remote=True,
        ),
        Writer(name="sign", ground="ground_keys", job="sign"),
        Writer(
            name="card",
            ground="ground_store",
            job="card",
            may_change=("a/manifest.json", "a/README.md"),
        ),
        Writer(
            name="measure",
            ground="ground_store",
            job="measure",
            may_change=("a/manifest.json", "a/README.md"),
        ),
        Writer(name="states of a teacher", ground="ground_store", job="states"),
        Writer(name="report of a store", ground="ground_store", job="store_report"),
        Writer(name="push", ground="ground_store", job="push", remote=True),
        Writer(name="push, in pages", ground="ground_paged", job="push", remote=True),
        Writer(name="pull, in pages", ground="ground_paged_address", job="pull", remote=True),
        Writer(name="pull", ground="ground_address", job="pull", remote=True),
        Writer(
            name="pull, growing",
            ground="ground_pulled",
            job="pull",
            remote=True,
            may_change=("pulled/part.json", "pulled/manifest.json"),
        ),
        Writer(
            name="pull, over an edited card",
            ground="ground_edited",
            job="pull",
            remote=True,
            may_change=("pulled/README.md",),
            may_go=("pulled/README.md",),
        ),
        Writer(
            name="cache",
            promises=False,
            ground="ground_address",
            job="cache",
            remote=True,
            passing=("cache/*.part",),
        ),
        Writer(
            name="cache, damaged and small",
            promises=False,
            ground="ground_damaged_cache",
            job="small_cache",
            remote=True,
            may_change=("cache/*",),
            passing=("cache/*.part",),
            untold=("cache/*",),
        ),
        Writer(
            name="run",
            ground="ground_student",
            job="run",
            again="resume",
            may_stay=("run/checkpoints/*",),
            **_RUN,
        ),  # type: ignore[arg-type]
        Writer(
            name="run, resumed",
            may_stay=("run/checkpoints/*",),
            ground="ground_stopped_run",
            job="resume",
            may_change=(
                "run/metrics.jsonl",
                "run/checkpoints/*",
                "run/best/*",
                "run/.softtrain.lock",
            ),
            **_RUN,  # type: ignore[arg-type]
        ),
        Writer(
            name="run, TensorBoard",
            ground="ground_student",
            job="run_short",
            again="resume_short",
            only="run/tensorboard*",
            **(_RUN | {"spared": ""}),  # type: ignore[arg-type]
        ),
        Writer(name="evaluation", ground="ground_run", job="eval", declines="is not kept in it"),
        Writer(name="export of a student", ground="ground_run", job="ship", once=True),
        Writer(
            name="report of a run",
            ground="ground_run",
            job="run_report",
            declines="is not kept in it",
        ),
        Writer(name="live page of a run", ground="ground_run", job="watch"),
        Writer(name="generate, texts", ground="ground_run", job="generate_jsonl", once=True),
        Writer(name="generate, ids", ground="ground_run", job="generate_parquet", once=True),
        Writer(name="demo, its student's configuration", ground="ground_store", job="demo_config"),
        Writer(name="student", ground="ground_student", job="student", once=True),
    )
}
