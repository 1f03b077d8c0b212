"""Peak memory of students that learn whole, or by an adapter, over a base of few bits too; with and without a teacher.

    python tests/benchmarks/memory.py --model MODEL --store STORE [--json FILE]

The same store, batches and loss in all; STORE is of estimator topk, made by `hf:MODEL`, which also stands in for the
teacher that an online run would hold beside its student. Each way in a process of its own, from whose start to its last
step the peak of resident memory is taken. AdamW, float32, one thread.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

LORA = "?lora=r:16,alpha:32,targets:all-linear"
WAYS = {
    "whole": "",
    "adapter": LORA,
    "adapter over int8": f"{LORA}&quant=int8",
    "adapter over nf4": f"{LORA}&quant=nf4",
    "few bits, whole (fake-quant)": "?fake-quant=int4-g64",
}


def one(args: argparse.Namespace) -> dict[str, float]:
    """Some steps of one way."""
    import torch

    from softlabels.builder.teach import teach
    from softlabels.estimators import make_estimator
    from softlabels.store.reader import open_store
    from softlabels.teachers import TeacherOptions, open_teacher
    from trainers.data.stream import SoftTargetStream
    from trainers.loss.losses import DistillLoss
    from trainers.students import make_student

    torch.set_num_threads(1)
    store = open_store(args.store)
    identity = store.manifest.identity
    teacher = estimator = None
    if args.teacher:
        teacher = open_teacher(f"hf:{args.model}", TeacherOptions(dtype="float32"))
        kept = {"k": identity.targets.k, "temperatures": tuple(identity.targets.temperatures)}
        estimator = make_estimator("topk", kept)
    student = make_student(f"hf:{args.model}{WAYS[args.way]}", seed=0).train()
    learning = [p for p in student.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(learning, lr=1e-4, foreach=False)
    loss = DistillLoss(alpha=1.0, temperature=1.0)
    batches = iter(
        SoftTargetStream(store, batch_size=args.batch_size, seed=0, order="store", lanes=1)
    )
    values = []
    for _ in range(args.steps):
        batch = next(batches)
        if teacher is not None:
            rows = [store.row(r).row for r in batch.rows]
            tokens = args.batch_size * identity.corpus.seq_len
            targets, _ = teach(
                rows,
                identity,
                estimator,
                teacher,
                start_row=0,
                batch_tokens=tokens,
                advance=lambda _: None,
            )
            batch = replace(batch, targets=targets)
        value = loss(student.hidden(batch), student.head(), batch).loss
        value.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        values.append(value.item())
    batches.close()
    return {
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "trained": student.trained_count,
        "first_loss": values[0],
        "last_loss": values[-1],
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", required=True)
    parser.add_argument("--store", required=True)
    parser.add_argument("--batch-size", type=int, default=2)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--way", choices=list(WAYS), help="one way, in this process")
    parser.add_argument("--teacher", action="store_true", help="with the teacher in memory")
    parser.add_argument(
        "--json", type=Path, help="where results are kept; what is there is not measured again"
    )
    args = parser.parse_args()
    if args.way:
        print(json.dumps(one(args)))
        return
    kept = args.json is not None and args.json.exists()
    found = json.loads(args.json.read_text()) if kept else {}
    for way in WAYS:
        for teacher in (False, True):
            name = f"{way}{' + teacher' if teacher else ''}"
            if name in found:
                continue
            command = [sys.executable, *sys.argv, "--way", way, *(["--teacher"] if teacher else [])]
            out = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
            found[name] = json.loads(out.splitlines()[-1])
            if args.json:
                args.json.write_text(json.dumps(found, indent=2))
    print("| what learns | trained | peak MiB | with the teacher in memory |\n|---|---|---|---|")
    for way in WAYS:
        alone, beside = found[way], found[f"{way} + teacher"]
        print(
            f"| {way} | {alone['trained']:,.0f} | {alone['peak_mib']:,.0f} | {beside['peak_mib']:,.0f} |"
        )


if __name__ == "__main__":
    main()
