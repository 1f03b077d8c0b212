"""Every fault at every call of every writer, and every power failure: `python -m tests.faults`.

Prints a table of writers by faults: how many cases there were, and how many were recovered from. Exits with 1 if one
was not.
"""

from __future__ import annotations

import argparse
import json
import queue
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

from tests.faults import trace
from tests.faults.bench import FAULTS, Bench, Case, Failure, cases_of, open_bench, sample
from tests.faults.power import POWER, Outage, outages_of
from tests.faults.table import WRITERS, Writer

Counts = dict[str, dict[str, list[int]]]


def main() -> int:
    """Run the command."""
    arguments = _arguments()
    if why := trace.missing():
        print(f"error: the fault injector {why}", file=sys.stderr)
        return 2
    writers = [WRITERS[n] for n in arguments.writer or WRITERS]
    faults = arguments.fault or [*FAULTS, POWER]
    began = time.monotonic()
    counts: Counts = defaultdict(lambda: defaultdict(lambda: [0, 0, 0]))
    failures: list[Failure] = []
    with ExitStack() as stack:
        remote = any(w.remote for w in writers)
        benches: queue.SimpleQueue[Bench] = queue.SimpleQueue()
        first = open_bench(remote=remote, stack=stack)
        benches.put(first)
        for _ in range(1, arguments.jobs):
            benches.put(open_bench(remote=remote, stack=stack, like=first))
        lock = threading.Lock()

        def one(writer: Writer, case: Case | Outage) -> None:
            bench = benches.get()
            try:
                wrong = (
                    bench.check(writer, case)
                    if isinstance(case, Case)
                    else bench.survive(writer, case)
                )
            finally:
                benches.put(bench)
            with lock:
                found = counts[writer.name][case.fault]
                found[0] += 1
                found[1] += wrong is None
                found[2] += wrong == "not met"
                if wrong not in (None, "not met"):
                    failures.append(Failure(str(case), wrong))
                    print(f"NOT RECOVERED {failures[-1]}", file=sys.stderr, flush=True)

        with ThreadPoolExecutor(arguments.jobs) as pool:
            for writer in writers:
                cases = [*_cases(first, writer, faults, arguments)]
                for _ in pool.map(lambda c, w=writer: one(w, c), cases):
                    pass
                print(_line(writer.name, counts[writer.name]), file=sys.stderr, flush=True)
    seconds = time.monotonic() - began
    print(_table(counts))
    print(f"{_total(counts)}; {seconds:.0f} s")
    if arguments.json is not None:
        value = {"counts": counts, "failures": [vars(f) for f in failures], "seconds": seconds}
        arguments.json.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")
    return 1 if failures else 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument(
        "--writer", action="append", choices=WRITERS, help="Only this one; repeatable."
    )
    parser.add_argument(
        "--fault", action="append", choices=[*FAULTS, POWER], help="Only this one; repeatable."
    )
    parser.add_argument("--jobs", type=int, default=2, help="Cases at a time (default: 2).")
    parser.add_argument("--every", type=int, default=1, help="Only every n-th case (default: all).")
    parser.add_argument(
        "--sample", type=int, help="Only so many cases of each writer, the same for a --seed."
    )
    parser.add_argument(
        "--seed", type=int, default=0, help="Of --sample and of what a power failure takes."
    )
    parser.add_argument("--json", type=Path, help="Write counts and failures there, too.")
    return parser.parse_args()


def _cases(
    bench: Bench, writer: Writer, faults: list[str], arguments: argparse.Namespace
) -> Iterator[Case | Outage]:
    normal = bench.undisturbed(writer)
    cases: list[Case | Outage] = [
        *cases_of(writer, normal.calls, [f for f in faults if f in FAULTS])
    ]
    if POWER in faults:
        cases += outages_of(bench, writer, seed=arguments.seed)
    if arguments.sample is not None:
        cases = sample(cases, arguments.sample, arguments.seed)
    yield from cases[:: arguments.every]


def _line(name: str, found: dict[str, list[int]]) -> str:
    total, good, missed = (sum(c[i] for c in found.values()) for i in range(3))
    return f"{name}: {good} of {total - missed} recovered" + (
        f", {missed} not met" if missed else ""
    )


def _total(counts: Counts) -> str:
    return _line("all", {f"{w} {f}": c for w, by in counts.items() for f, c in by.items()})


def _table(counts: Counts) -> str:
    faults = [f for f in [*FAULTS, POWER] if any(f in by for by in counts.values())]
    head = ["writer", *faults]
    lines = [head, ["---", *["---:"] * len(faults)]]

    def cell(found: list[int]) -> str:
        total, good, missed = found
        return "" if not total else f"{good}/{total - missed}"

    lines += [[name, *(cell(by.get(f, [0, 0, 0])) for f in faults)] for name, by in counts.items()]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


if __name__ == "__main__":
    sys.exit(main())
