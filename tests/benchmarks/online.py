"""Training from a store against running the teacher in each step.

    python tests/benchmarks/online.py --teacher hf:TEACHER --store STORE [--json FILE]

The same student, batches, loss and optimiser in both; one takes its targets from the store, the other runs
the teacher over the batch and keeps the same top k ids with their exact tail. Each way in a process of its
own, in turn, so that the peak of memory is its own.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from statistics import median

STUDENT = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 384,
    "intermediate_size": 1024,
    "num_hidden_layers": 6,
    "num_attention_heads": 6,
    "num_key_value_heads": 6,
    "tie_word_embeddings": True,
}
"""With 49,152 ids 29.5 million parameters."""


def one(args: argparse.Namespace) -> dict[str, float]:
    """Some steps in one of the two ways."""
    import torch

    from softlabels.builder.teach import teach
    from softlabels.core.devices import choose
    from softlabels.estimators import make_estimator
    from softlabels.store.reader import open_store
    from softlabels.teachers import TeacherOptions, open_teacher
    from trainers.data.stream import SoftTargetStream
    from trainers.loss.losses import DistillLoss
    from trainers.students import make_student

    store = open_store(args.store, cached_shards=16)
    identity = store.manifest.identity
    v = identity.teacher.vocab_size
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "student.json")
        path.write_text(json.dumps({**STUDENT, "vocab_size": v}))
        student = make_student(f"hf-config:{path}", seed=0).train()
    choice = choose("cpu", args.dtype)
    mixed = choice.dtype != torch.float32
    student.head_dtype = choice.dtype if mixed else None
    optimizer = torch.optim.AdamW(student.parameters(), lr=1e-3)
    loss = DistillLoss(alpha=0.9, temperature=1.0)
    teacher = estimator = None
    if args.way == "online":
        teacher = open_teacher(args.teacher, TeacherOptions(dtype=args.dtype))
        estimator = make_estimator(
            "topk", {"k": identity.targets.k, "temperatures": tuple(identity.targets.temperatures)}
        )
    stream = SoftTargetStream(store, batch_size=args.batch_size, seed=0, order="store", lanes=1)
    seconds, tokens = [], args.batch_size * identity.corpus.seq_len
    batches = iter(stream)
    for _ in range(args.steps + 1):
        start = time.perf_counter()
        batch = next(batches)
        if teacher is not None:
            targets, _ = teach(
                [store.row(r).row for r in batch.rows],
                identity,
                estimator,
                teacher,
                start_row=0,
                batch_tokens=tokens,
                advance=lambda _: None,
            )
            batch = replace(batch, targets=targets)
        with torch.autocast("cpu", dtype=choice.dtype, enabled=mixed):
            hidden = student.hidden(batch)
        loss(hidden, student.head(), batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        seconds.append(time.perf_counter() - start)
    batches.close()
    return {
        "tokens_per_second": tokens / median(seconds[1:]),
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "parameters": student.parameter_count,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--teacher", required=True)
    parser.add_argument("--store", required=True, help="of estimator topk, made by that teacher")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--way", choices=["store", "online"], help="one way, in this process")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    if args.way:
        print(json.dumps(one(args)))
        return
    found: dict[str, list[dict[str, float]]] = {"store": [], "online": []}
    for _ in range(args.rounds):
        for way, runs in found.items():
            command = [sys.executable, *sys.argv, "--way", way]
            out = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
            runs.append(json.loads(out.splitlines()[-1]))
    table = {
        way: {name: median(r[name] for r in runs) for name in runs[0]}
        for way, runs in found.items()
    }
    print("| targets | tokens/s | peak MiB |\n|---|---|---|")
    for way, row in table.items():
        print(f"| {way} | {row['tokens_per_second']:,.0f} | {row['peak_mib']:,.0f} |")
    ratio = table["store"]["tokens_per_second"] / table["online"]["tokens_per_second"]
    print(f"{ratio:.2f} times as fast, {table['store']['parameters']:,.0f} parameters")
    if args.json:
        args.json.write_text(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
