"""Text of a student's own making, for its teacher to judge: one half of a round of distillation.

`softlabels build` then runs the teacher over it, and a run trains on what the teacher thought of what the student
says: teacher and student are never in memory together.

Written as `.jsonl`, sequences are texts (or conversations) that the builder tokenises again; where that gives other
tokens than
were sampled is counted. As `.parquet`, they are the very ids, with a mask that leaves the prompt unlearnt: `--corpus
ids:FILE`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from softlabels.core.durable import appearing, forget_attempts
from softlabels.core.progress import Reporter
from softlabels.domains import DOMAINS
from softlabels.errors import ConfigError, CorpusError, PairingError
from softlabels.store.reader import open_store
from trainers.generation.config import GenerateConfig, Sampling
from trainers.generation.prompts import Prompt, Words, read_prompts
from trainers.generation.sampling import Sampled, end_ids, sample
from trainers.run.finished import open_finished
from trainers.students import load_student


class Generated(NamedTuple):
    """What was written."""

    sequences: int
    tokens: int
    """Sampled ones, end marks included."""
    unfinished: int
    """Sequences that were cut at `--max-new-tokens`."""
    empty: int
    """Sequences that ended at once."""
    retokenised: int | None
    """Of `.jsonl`: sequences whose text has other tokens than were sampled; None of `.parquet`."""


def generate(run: Path, out: Path, config: GenerateConfig, report: Reporter) -> Generated:
    """Sample `n` sequences for each prompt and write them as a corpus, `.jsonl` or `.parquet`.

    Returns and raises as `trainers.generate`.
    """
    prompts = Path(config.prompts)
    if out.suffix not in (".jsonl", ".parquet"):
        raise ConfigError(f"--out {out}: expected a name that ends in .jsonl or .parquet")
    if out.exists():
        forget_attempts(out)
        raise ConfigError(f"--out {out}: is there already; choose another")
    finished = open_finished(run, config.weights)
    if not DOMAINS.load(finished.domain).chained:
        raise ConfigError(
            f"{run}: its student is of the domain {finished.domain}; only a causal LM writes text"
        )
    student = load_student(finished.folder)
    words = Words(finished.folder)
    if prompts.is_dir():
        finished.check_fits(open_store(prompts))
    ends = end_ids(student.model, words.end)
    asked = read_prompts(prompts, words, prompt_tokens=config.prompt_tokens)
    repeated = (p for p in islice(asked, config.limit) for _ in range(config.n))

    report.stage("generate", None, "sequences")
    counts = dict.fromkeys(("sequences", "tokens", "unfinished", "empty"), 0)

    def made() -> Iterator[tuple[Prompt, Sampled]]:
        while batch := list(islice(repeated, config.batch_size)):
            _check_length(prompts, max(len(p.ids) for p in batch), config, student.model.config)
            largest = max(int(p.ids.max()) for p in batch)
            if largest >= student.vocab_size:
                raise PairingError(
                    f"--prompts {prompts}: holds id {largest}, the student's vocabulary ends at "
                    f"{student.vocab_size - 1}"
                )
            ids = [p.ids for p in batch]
            first = counts["sequences"]
            found = sample(student, ids, config, ends=ends, first=first, device=config.device)
            for prompt, s in zip(batch, found, strict=True):
                counts["sequences"] += 1
                counts["tokens"] += len(s.new)
                counts["unfinished"] += not s.finished
                counts["empty"] += s.finished and len(s.new) == 1
                yield prompt, s
            report.advance(len(batch))

    write = _write_jsonl if out.suffix == ".jsonl" else _write_parquet
    with appearing(out) as temporary:
        retokenised = write(temporary, made(), words)
        if counts["sequences"] == 0:
            raise CorpusError(f"--prompts {prompts}: holds no prompt")
    return Generated(**counts, retokenised=retokenised)


def _check_length(prompts: Path, longest: int, sampling: Sampling, config: Any) -> None:
    most = getattr(config, "max_position_embeddings", None)
    if most is not None and longest + sampling.max_new_tokens > most:
        raise ConfigError(
            f"--max-new-tokens {sampling.max_new_tokens}: after a prompt of {longest} tokens (--prompts {prompts}) "
            "that is more "
            f"than the {most} positions that the student knows"
        )


def _write_jsonl(path: Path, made: Iterator[tuple[Prompt, Sampled]], words: Words) -> int:
    """Returns how many texts have other tokens than were sampled."""
    retokenised = 0
    with path.open("w", encoding="utf-8") as f:
        for prompt, s in made:
            said = s.new[:-1] if s.finished else s.new
            record: dict[str, Any]
            if prompt.messages is not None:
                answer = {"role": "assistant", "content": words.decode(said)}
                record = {"messages": [*prompt.messages, answer]}
                record |= {"tools": prompt.tools} if prompt.tools else {}
                again = words.inner(answer["content"], add_special_tokens=False)["input_ids"]
                same = list(again) == said.tolist()
            else:
                whole = np.concatenate([s.prompt, said])
                record = {"text": words.decode(whole)}
                same = words.encode(record["text"]) == whole.tolist()
            retokenised += not same
            record |= {"sequence": s.number, "finished": s.finished}
            f.write(json.dumps(record, ensure_ascii=False) + "\n")
    return retokenised


def _write_parquet(path: Path, made: Iterator[tuple[Prompt, Sampled]], words: Words) -> None:
    schema = pa.schema(
        {
            "input_ids": pa.list_(pa.int32()),
            "loss_mask": pa.list_(pa.int8()),
            "text": pa.string(),
            "sequence": pa.int64(),
            "finished": pa.bool_(),
        }
    )
    with pq.ParquetWriter(path, schema) as writer:
        while rows := list(islice(made, 256)):
            writer.write_table(pa.Table.from_pylist([_row(s, words) for _, s in rows], schema))


def _row(s: Sampled, words: Words) -> dict[str, Any]:
    ids = np.concatenate([s.prompt, s.new])
    mask = np.arange(len(ids)) >= len(s.prompt)
    return {
        "input_ids": ids.astype(np.int32),
        "loss_mask": mask.astype(np.int8),
        "text": words.decode(ids),
        "sequence": s.number,
        "finished": s.finished,
    }
