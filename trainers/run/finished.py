"""A finished run, read for what comes after training: its record, one of its students, and stores that go with it."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from softlabels.core.folder_record import RECORD, check_folder, entries
from softlabels.core.records import regular_size, sha256_of_files
from softlabels.errors import (
    ConfigError,
    IntegrityError,
    PairingError,
    RunError,
    SoftLabelsError,
    TokenizerError,
)
from softlabels.store.of_plan import plan_digest
from softlabels.store.reader import Store, open_store
from trainers.data.mixing import Weight, feed_of, mixture_digest, open_stores
from trainers.data.tasks import check_domain, check_rows
from trainers.evaluation.evaluations import tensor_files
from trainers.run.followed import is_same_store, said_of_plan
from trainers.run.record import WEIGHTS, is_of_plan, is_student, named_store, read_run_record
from trainers.run.vocabulary import check_numbering


@dataclass(frozen=True, kw_only=True)
class FinishedRun:
    """One of the students of a run that has finished."""

    run: Path
    facts: dict[str, Any]
    """What `run.json` says."""
    weights: str
    """A key of `WEIGHTS`."""
    folder: Path
    """Where that student lies."""

    @property
    def domain(self) -> str:
        """What it was trained for."""
        return str(self.facts.get("domain", "causal-lm"))

    def digest(self) -> str:
        """sha256 over the student's weights, as stored."""
        return sha256_of_files(tensor_files(self.folder))

    def training_stores(
        self,
        given: tuple[str, ...] = (),
        *,
        inputs: str | None = None,
        images: tuple[str, ...] = (),
        rows: bool = True,
    ) -> list[Store]:
        """The stores that it was trained on.

        Args:
            given: where they lie now, as in `softtrain run --store`; nothing: where they lay then.
            inputs: of a store without inputs, where the store that holds them lies now; None: where it lay then.
            images: of stores of images, where these lie now; nothing: where they lay then.
            rows: False if no row of theirs is read: inputs and images are then opened only where they are given.

        Raises:
            ConfigError: not there, or not those.
        """
        config = self.facts["config"]
        recorded = config["store"]
        texts = given or ((recorded,) if isinstance(recorded, str) else tuple(recorded))
        then = config if rows else {}
        try:
            stores = open_stores(
                texts,
                vocab=config.get("vocab"),
                inputs=inputs or then.get("inputs"),
                images=images or tuple(then.get("images") or ()),
                rows=rows,
            )
        except SoftLabelsError as e:
            ways = [] if given else ["where it lies now with --store"]
            ways += [
                f"where its {part} lie now with --{part}"
                for part in ("inputs", "images")
                if then.get(part)
            ]
            if inputs or images or not ways:
                raise
            raise ConfigError(
                f"{self.run}: the store it was trained on cannot be opened ({e}); say {', and '.join(ways)}"
            ) from e
        if not self._was_trained_on(stores):
            raise ConfigError(
                f"--store {' '.join(map(str, texts))}: not what {self.run} was trained on (digest "
                f"{mixture_digest(stores)[:12]}…, expected {self.facts['store_digest'][:12]}…)"
                f"{said_of_plan(self.facts)}"
            )
        return [store for store, _ in stores]

    def was_trained_on(self, store: Store) -> bool:
        """Whether it was trained on this store, and no other."""
        return self._was_trained_on([(store, 1)])

    def _was_trained_on(self, stores: Sequence[tuple[Store, Weight]]) -> bool:
        facts: dict[str, Any] = {"store_digest": mixture_digest(stores)}
        if is_of_plan(self.facts) and len(stores) == 1:
            facts["plan_digest"] = plan_digest(stores[0][0])
        return is_same_store(self.facts, facts)

    def named_store(self, opened: Sequence[Store] = ()) -> dict[str, str]:
        """As `record.named_store`, by its content where what it was trained on was finished since, and is open."""
        whole = [s for s in opened if s.finished and is_of_plan(self.facts)]
        if len(whole) == 1 and self.was_trained_on(whole[0]):
            return {"store_digest": whole[0].digest}
        return named_store(self.facts)

    def open_store(
        self,
        path: Path | str,
        *,
        vocab: str | None,
        inputs: str | None = None,
        images: tuple[str, ...] = (),
        flag: str = "--images",
    ) -> Store:
        """Open a store whose rows the student can be asked about; arguments as of `softlabels.open_store`.

        Raises:
            ConfigError: it is a store of images, and nobody says with `flag` where they lie.
            TokenizerError: it was tokenised otherwise.
            PairingError: it is of another domain, the run numbered its ids or fed its images otherwise, or the store's
                inputs are elsewhere.
        """
        opened = open_store(path, vocab=vocab, inputs=inputs, images=images)
        check_domain(opened, self.domain, of=self.run, where=opened.path)
        check_rows(opened, flag)
        self.check_fits(opened)
        self._check_feed(opened)
        return opened

    def _check_feed(self, store: Store) -> None:
        mine, then = feed_of(store.identity), self.facts.get("feed")  # not of earlier versions
        if then is not None and mine is not None and list(mine) != list(then):
            raise PairingError(
                f"{store.path}: its images are fed at size, mean and deviation {mine}, {self.run} was trained at "
                f"{tuple(then)}; build it with the run's teacher and --image-size"
            )

    def check_fits(self, store: Store) -> None:
        """Refuse a store whose ids mean something else to the student.

        Raises:
            TokenizerError: it was tokenised otherwise.
            PairingError: the run numbered its ids otherwise.
        """
        found, expected = store.identity.tokenizer.sha256, self.facts["tokenizer_sha256"]
        if found != expected:
            raise TokenizerError(
                f"{store.path}: its tokenizer (sha256 {found[:12]}…) is not the one that {self.run} was trained with "
                f"(sha256 {expected[:12]}…), so the same id means another token; build a store of that text with the "
                "run's teacher"
            )
        check_numbering(self.facts, store, self.run)


def open_finished(run: Path, weights: str = "student") -> FinishedRun:
    """Find a student of a finished run.

    Raises:
        RunError: not a run, not finished, it has no such weights, or they are not what the run saved.
        IntegrityError: a pipe or a device is among the student's files.
    """
    facts = read_run_record(run)
    if not is_student(run / "student"):
        raise RunError(f"{run}: the run has not finished; `softtrain run --resume` goes on with it")
    name, flag = WEIGHTS[weights]
    if not is_student(run / name):
        raise RunError(
            f"{run}: has no {name}, for it was made without {flag}; use --weights student"
        )
    for path in entries(run / name).values():
        regular_size(path)
    try:
        with suppress(FileNotFoundError):  # one of an earlier version has no record
            check_folder(run / name)
    except IntegrityError as e:
        raise RunError(
            f"{e}. If you changed the student on purpose, delete {run / name / RECORD}, the record of what was saved"
        ) from e
    return FinishedRun(run=run, facts=facts, weights=weights, folder=run / name)


def provenance(run: Path, store: Store) -> dict[str, Any]:
    """What a run that goes on from another's student records of it.

    Raises:
        RunError: not a finished run.
        TokenizerError: it was trained on another tokenizer's ids than the store's.
        PairingError: it numbered the ids otherwise.
    """
    finished = open_finished(run)
    finished.check_fits(store)
    return {
        "run": run.resolve().name,
        "weights_sha256": finished.digest(),
        **finished.named_store([store]),
        "steps": finished.facts["config"]["steps"],
        "init": finished.facts.get("init"),
    }
