"""What training from an address waits for: 50 ms of latency, a cold and a warm cache, a network that is cut.

    python tests/benchmarks/remote.py [--steps 60] [--latency-ms 50] [--cut-seconds 20] [--json FILE]

Builds a store from text that ships with the project and a made-up teacher of a real one's shape, puts it on an S3
server (moto) in a process of its own, behind a proxy that delays whatever a client says, and trains the same
student four times: from the folder, from the address with an empty cache, again with the cache full, and with an
empty cache and a network that is cut in mid-epoch. Waiting is what the loop measures: seconds in which it had no
batch. The first step waits for the first block of shards to be read, wherever they are, and stands apart.
"""

from __future__ import annotations

import os

os.environ["OMP_NUM_THREADS"] = "1"

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from softlabels.core.progress import Silent  # noqa: E402
from softlabels.format.manifest import load_manifest  # noqa: E402
from tests.benchmarks.loader import make_store  # noqa: E402
from tests.store.s3 import Proxy, environment, s3_server, upload  # noqa: E402
from trainers.run.config import RunConfig  # noqa: E402
from trainers.run.setup import train  # noqa: E402

STUDENT = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 49_152,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "max_position_embeddings": 256,
    "tie_word_embeddings": True,
}


class Server:
    """The S3 server and its proxy, in another process, so that they do not take the trainer's time."""

    def __init__(self, store: Path, latency: float) -> None:
        command = [sys.executable, __file__, "--serve", str(store), "--latency-ms", f"{latency}"]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.endpoint = self._ask()

    def _ask(self, word: str | None = None) -> str:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        if word is not None:
            print(word, file=self._process.stdin, flush=True)
        return self._process.stdout.readline().strip()

    def say(self, word: str) -> str:
        """`cut`, `mend`, or `requests`, which gives how many there were."""
        return self._ask(word)

    def close(self) -> None:
        self._process.terminate()
        self._process.wait()


def serve(store: Path, latency: float) -> None:
    """Until standard input ends."""
    with s3_server() as url, Proxy(url, latency=latency / 1000) as proxy:
        upload(store, url, "store")
        print(proxy.url, flush=True)
        for word in sys.stdin:
            if word == "cut\n":
                proxy.cut()
            elif word == "mend\n":
                proxy.mend()
            print(len(proxy.requests), flush=True)


class Watcher(Silent):
    """A reporter that cuts the network after some steps, for some seconds."""

    def __init__(self, server: Server | None = None, after: int = 0, seconds: float = 0.0) -> None:
        self._server, self._after, self._seconds = server, after, seconds
        self._steps = 0
        self.thread: threading.Thread | None = None

    def advance(self, amount: int, note: str | None = None) -> None:
        self._steps += 1
        if self._server is not None and self._steps == self._after:
            self.thread = threading.Thread(target=self._outage, args=(self._server,))
            self.thread.start()

    def _outage(self, server: Server) -> None:
        server.say("cut")
        time.sleep(self._seconds)
        server.say("mend")


def measure(store: str, folder: Path, args: argparse.Namespace, watcher: Watcher) -> dict[str, Any]:
    """One run: waits of its steps, in seconds, and a digest of what was learnt."""
    student = folder.parent / "student.json"
    student.write_text(json.dumps(STUDENT))
    config = RunConfig(
        store=store,
        student=f"hf-config:{student}",
        steps=args.steps,
        batch_size=args.batch_size,
        log_every=1,
        checkpoint_every=10**6,
        dtype="float32",
        device="cpu",
        threads=1,
    )
    weights = load_file(train(config, folder, reporter=watcher) / "model.safetensors")
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    waits, seconds = np.array([(r["loader_wait"], r["seconds"]) for r in lines]).T
    return {
        "first_wait_s": float(waits[0]),
        "share": float(waits[1:].sum() / seconds[1:].sum()),
        "median_step_s": float(np.median(seconds[1:])),
        "longest_wait_s": float(waits[1:].max()),
        "weights": weights,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--store", type=Path, help="One that is there already, instead of making it."
    )
    parser.add_argument("--rows", type=int, default=256)
    parser.add_argument("--shard-rows", type=int, default=4)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--latency-ms", type=float, default=50.0)
    parser.add_argument("--cut-seconds", type=float, default=20.0)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--serve", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve is not None:
        serve(args.serve, args.latency_ms)
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        store = args.store or make_store(folder / "store", args, "open")
        shards = len(load_manifest(store).shards)
        server = Server(store, args.latency_ms)
        address = "s3://bucket/store"
        os.environ.update(environment(server.endpoint, folder / "cache"))
        runs = [
            ("folder", str(store), "cache", Watcher()),
            ("address, cache cold", address, "cache", Watcher()),
            ("address, cache warm", address, "cache", Watcher()),
            (
                f"address, cache cold, cut for {args.cut_seconds:g} s",
                address,
                "another",
                Watcher(server, args.steps // 4, args.cut_seconds),
            ),
        ]
        try:
            found = {}
            for i, (title, where, cache, watcher) in enumerate(runs):
                os.environ["SOFTLABELS_CACHE"] = str(folder / cache)
                before = int(server.say("requests"))
                found[title] = measure(where, folder / f"run{i}", args, watcher)
                if watcher.thread is not None:
                    watcher.thread.join()
                found[title]["requests"] = int(server.say("requests")) - before
        finally:
            server.close()
    show(found, args, shards)
    if args.json is not None:
        settings = {k: str(v) for k, v in vars(args).items() if k not in ("json", "serve")}
        args.json.write_text(json.dumps({"settings": settings, "figures": found}, indent=2) + "\n")


def show(found: dict[str, dict[str, Any]], args: argparse.Namespace, shards: int) -> None:
    reference = found["folder"]["weights"]
    print(
        f"{args.steps} steps of {args.batch_size} rows from {shards} shards, {args.latency_ms:g} ms latency\n"
    )
    print(
        "| store | waiting, of the steps | longest wait | first step's wait | median step | requests | student |"
    )
    print("|---|---|---|---|---|---|---|")
    for title, f in found.items():
        weights = f.pop("weights")
        f["same_student"] = all(np.array_equal(weights[n], reference[n]) for n in reference)
        print(
            f"| {title} | {f['share']:.2%} | {1000 * f['longest_wait_s']:.1f} ms | {f['first_wait_s']:.2f} s | "
            f"{1000 * f['median_step_s']:.0f} ms | {f['requests']} | {'same' if f['same_student'] else 'OTHER'} |"
        )


if __name__ == "__main__":
    main()
