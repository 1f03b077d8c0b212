"""How students, and a teacher if one is given, go on with beginnings of held-out text, side by side.

1. Rows of the held-out store, evenly spread; of each the first tokens are the prompt, and the next what came.
2. Each model continues each prompt, always with its most probable token: the same text each time it is asked.
3. A model that takes longer than it may leaves the prompts that are left; the page says so.

The price is a model's load and some hundred of its steps; it is paid when a page is drawn, and nothing of it is kept.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt

from softlabels.core.durable import explained
from softlabels.core.progress import Reporter
from softlabels.core.rows import Row
from softlabels.domains import DOMAINS
from softlabels.errors import ConfigError, PairingError
from softlabels.store.reader import Store, open_store
from softlabels.store.token_text import TokenText
from trainers.evaluation.evaluations import StoreFacts
from trainers.report.entries import Entry

if TYPE_CHECKING:
    from trainers.students import Student

Int64 = npt.NDArray[np.int64]
PROMPT = 32
"""Tokens of a prompt."""
LINES = re.compile(r"\n(?:[ \t]*\n){3,}")
"""A weak student may write nothing but line ends."""
LEAST = 8
"""Tokens that a document must have after its prompt, to say how it goes on."""


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What is asked for."""

    prompts: int
    """How many; 0: no text."""
    tokens: int
    """Most to write after each."""
    seconds: float
    """Most that a model may take."""
    teacher: Path | None
    """Folder of a causal LM that writes beside the students."""


class Prompt(NamedTuple):
    """A beginning of a document."""

    row: int
    ids: Int64
    words: str
    came: str
    """How the text goes on."""


class Written(NamedTuple):
    """A model's continuations of all prompts."""

    name: str
    style: str
    """Of its entry; "t" of the teacher."""
    words: list[str | None]
    """None: its time was over."""

    def shown(self, n: int) -> str | None:
        """A continuation as a page shows it: of more than two empty lines, how many there were."""
        words = self.words[n]
        return (
            words
            if words is None
            else LINES.sub(lambda m: f"\n↵ {m[0].count(chr(10))} times\n", words)
        )


class Texts(NamedTuple):
    """What was written; `trouble` says why nothing was."""

    prompts: list[Prompt]
    written: list[Written]
    trouble: str | None = None


def continued_texts(
    entries: Sequence[tuple[Entry, str]],
    asked: Asked,
    *,
    weights: str,
    report: Reporter,
    clock: Callable[[], float] = time.monotonic,
) -> Texts | None:
    """Have the students write; None: they are of a domain that writes no text, or nobody asks for any.

    Args:
        entries: with their styles; the run that is shown of each writes.
        asked: how much.
        weights: which of a run's.
        report: told of each model, and of what keeps all from writing.
        clock: seconds.

    Raises:
        ConfigError: the teacher cannot be used.
        SoftLabelsError: a student or the store is damaged.
    """
    facts = entries[0][0].found.store
    if not asked.prompts or not DOMAINS.load(facts.domain).chained:
        return None
    trouble = _trouble(facts)
    store = None if trouble else open_store(facts.path)
    if store is not None and store.digest != facts.digest:
        trouble = f"{facts.path}: is another store now than the one that was evaluated on"
    if store is None or trouble:
        return _none(trouble, report)
    text = TokenText(store)
    if not text.known:
        return _none(text.error or f"{facts.path}: holds no tokenizer", report)
    prompts = _prompts(store, text, asked)
    if not prompts:
        return _none(
            f"{facts.path}: no document has more than {PROMPT + LEAST} tokens in a row", report
        )
    end = store.identity.tokenizer.special_ids.get("eos")
    written = []
    for name, style, student in _models(entries, asked, store, weights):
        report.stage(f"text of {name}", len(prompts), "prompts")
        deadline = clock() + asked.seconds
        words: list[str | None] = []
        for prompt in prompts:
            late = clock() >= deadline
            words.append(None if late else text.many(_continued(student, prompt.ids, asked, end)))
            report.advance(1)
        written.append(Written(name, style, words))
    return Texts(prompts, written)


def _none(trouble: str | None, report: Reporter) -> Texts:
    report.notice(f"no text is shown: {trouble}")
    return Texts([], [], trouble)


def _trouble(facts: StoreFacts) -> str | None:
    """Why no text can be written."""
    missing = next((n for n in ("torch", "transformers") if find_spec(n) is None), None)
    if missing is not None:
        return f"{missing} is not installed"
    if facts.vocab is not None:
        return "a vocabulary that is renumbered (--vocab) has no tokenizer"
    with explained(Path(facts.path)):
        there = "://" in facts.path or Path(facts.path).exists()
    return None if there else f"{facts.path}: the held-out store is not there; give --store"


def _prompts(store: Store, text: TokenText, asked: Asked) -> list[Prompt]:
    """Of rows that are evenly spread, the document in each that has the most tokens."""
    every = np.unique(np.linspace(0, len(store) - 1, min(len(store), 4 * asked.prompts)).round())
    usable = [p for i in every if (p := _prompt(store, int(i), text, asked)) is not None]
    places = np.unique(np.linspace(0, len(usable) - 1, min(len(usable), asked.prompts)).round())
    return [usable[int(i)] for i in places]


def _prompt(store: Store, number: int, text: TokenText, asked: Asked) -> Prompt | None:
    row = store.row(number).row
    assert isinstance(row, Row)
    longest = int(np.argmax(row.segment_lengths))
    start = int(row.segment_lengths[:longest].sum())
    length = int(row.segment_lengths[longest])
    if length < PROMPT + LEAST:
        return None
    ids = row.input_ids[start : start + length].astype(np.int64)
    came = ids[PROMPT : PROMPT + asked.tokens]
    return Prompt(number, ids[:PROMPT], text.many(ids[:PROMPT].tolist()), text.many(came.tolist()))


def _models(
    entries: Sequence[tuple[Entry, str]], asked: Asked, store: Store, weights: str
) -> Iterator[tuple[str, str, Student]]:
    """The teacher first; one model in memory at a time."""
    from trainers.run.finished import open_finished
    from trainers.students import load_student
    from trainers.students.tokenizers import why_not_compared

    if asked.teacher is not None:
        if not (asked.teacher / "config.json").is_file():
            raise ConfigError(
                f"--teacher {asked.teacher}: is no folder of a model of transformers (it holds no config.json)"
            )
        unknown = why_not_compared(asked.teacher, store, where="--teacher")
        if unknown is not None:
            raise PairingError(
                f"--teacher {asked.teacher}: {unknown}, so nothing says that its ids mean what they mean in the store; "
                "save its tokenizer beside its weights"
            )
        yield "the teacher", "t", load_student(asked.teacher)
    for entry, style in entries:
        finished = open_finished(entry.shown.path, weights)
        finished.check_fits(store)
        yield entry.name, style, load_student(finished.folder)


def _continued(student: Student, prompt: Int64, asked: Asked, end: int | None) -> list[int]:
    from trainers.generation.config import Sampling
    from trainers.generation.sampling import end_ids, sample

    ends = end_ids(student.model, end)
    most = getattr(student.model.config, "max_position_embeddings", None)
    room = asked.tokens if most is None else min(asked.tokens, max(1, int(most) - len(prompt)))
    sampling = Sampling(temperature=0, max_new_tokens=room)
    (found,) = sample(student, [prompt], sampling, ends=ends)
    return [int(i) for i in found.new if int(i) not in ends]
