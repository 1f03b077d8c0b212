r"""Builders that share a bucket and are killed at random; one is stopped for longer than its claim lasts, and wakes up.

    python -m tests.benchmarks.bucket --kills 100 --builders 4 --shards 1000
    python -m tests.benchmarks.bucket --kills 0 --shards 1024    # requests a shard, with leases of 16

What is shown: every shard has the digest of a build in a folder (each is created only where it is absent), and how many
requests a shard takes, counted by a proxy before the service. The service is moto's, or the one of
`--service`, which must have a bucket `bucket`. LocalStack's S3, in an environment of its own:

    pip install 'localstack-core[base-runtime]==4.7.0' cbor2==5.6.5 pyopenssl==24.2.1 'cryptography<44' \
        'service-identity<25'
    SERVICES=s3 STRICT_SERVICE_LOADING=1 DISABLE_EVENTS=1 SKIP_SSL_CERT_DOWNLOAD=1 FILESYSTEM_ROOT=. \
        GATEWAY_LISTEN=127.0.0.1:4570 python -m localstack.runtime.main
    curl -X PUT http://127.0.0.1:4570/bucket -H 'Authorization: AWS4-HMAC-SHA256 Credential=test/20260101/\
    us-east-1/s3/aws4_request, SignedHeaders=host, Signature=0'
    python -m tests.benchmarks.bucket --service http://127.0.0.1:4570 --kills 100 --shards 400
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
import re
import signal
import sys
import tempfile
import time
from collections import Counter
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from softlabels.format.manifest import load_manifest, read_manifest
from softlabels.store.remote.files import RemoteFiles
from softlabels.store.verify import verify_store
from tests.fakes import TinyTeacher, build_tiny
from tests.faults.service import own_service
from tests.store.s3 import Proxy, environment

CREW = multiprocessing.get_context("forkserver")
"""Builders begin in a process that has read no bucket: a fork of one that has cannot."""
CREW.set_forkserver_preload(["tests.benchmarks.bucket"])
LEASE = 4.0
"""Seconds after which a claim is dead where builders are killed; 300 in life, and where none is."""
CHANGES: dict[str, Any] = {"shard_rows": 1, "seq_len": 24, "k": 4, "batch_tokens": 64}


class Slow(TinyTeacher):
    """Takes its time for each batch."""

    def __init__(self, pause: float) -> None:
        super().__init__()
        self.pause = pause

    def logits(self, rows: Any) -> Any:
        time.sleep(self.pause)
        yield from super().logits(rows)


def _build(url: str, corpus: str, pause: float, torn: bool, settings: dict[str, str]) -> None:
    """One builder, in a process that nobody else's host sees."""
    import softlabels.making.place.builder as builder
    import softlabels.making.place.claims as claims
    import softlabels.making.place.holding as holding
    import softlabels.making.place.watch as watch

    os.environ.update(settings)
    torch.set_num_threads(1)
    if torn:
        _give(claims, EXPIRY=LEASE, FRESH=LEASE / 15)
        _give(holding, RENEWAL=LEASE / 3)
        _give(watch, EXPIRY=LEASE, QUIET=LEASE / 2)
        _give(builder, LONGEST_PAUSE=1.0)
    _give(watch, is_gone=lambda _: False)  # as if each were on a host of its own
    build_tiny(url, corpus, teacher=Slow(pause), **CHANGES)  # type: ignore[arg-type]


def _give(module: ModuleType, **values: Any) -> None:
    """Other values to names that are there: one that is not would change nothing."""
    for name, value in values.items():
        assert hasattr(module, name)
        setattr(module, name, value)


def _write_corpus(folder: Path, shards: int) -> str:
    """Text of so many rows, a shard each, in which none occurs twice."""
    rng = random.Random(0)
    text = "".join(f"{rng.randrange(10**6):07d} " for _ in range(3 * shards - 2))
    folder.mkdir()
    (folder / "text.txt").write_text(text, encoding="utf-8")
    return f"text:{folder}/*.txt"


def torment(
    folder: Path,
    *,
    shards: int,
    builders: int,
    kills: int,
    seed: int = 0,
    pause: float = 0.1,
    service: str | None = None,
) -> dict[str, object]:
    """Build a store in a bucket by builders that are killed; returns what came of it."""
    corpus, rng = _write_corpus(folder / "corpus", shards), random.Random(seed)
    with (
        own_service() if service is None else nullcontext(service) as address,
        Proxy(address) as proxy,
        _set(there := environment(proxy.url, folder / "cache")),
    ):
        url = f"s3://bucket/torment-{os.getpid()}"
        begun = time.perf_counter()

        def start() -> Any:
            child = CREW.Process(target=_build, args=(url, corpus, pause, kills > 0, there))
            child.start()
            return child

        crew = [start() for _ in range(builders)]
        killed, paused, wakes = 0, 0, 0.0
        while any(c.is_alive() for c in crew):
            time.sleep(rng.uniform(0.2, 1.0))
            if kills and paused == 0 and _claims(proxy) >= builders and crew[0].is_alive():
                os.kill(crew[0].pid, signal.SIGSTOP)  # with a lease in hand
                paused, wakes = 1, time.perf_counter() + 2.5 * LEASE
            if wakes and time.perf_counter() > wakes:
                os.kill(crew[0].pid, signal.SIGCONT)
                wakes = 0.0
            if killed < kills and paused:
                slot = rng.randrange(1, builders)
                crew[slot].kill()
                crew[slot].join()
                if crew[slot].exitcode == -signal.SIGKILL:  # else it has seen the store finished
                    killed += 1
                    crew[slot] = start()
        seconds = time.perf_counter() - begun
        in_bucket = read_manifest(RemoteFiles(url))
        requests = list(proxy.requests)
    build_tiny(folder / "store", corpus, **CHANGES)
    in_folder = load_manifest(folder / "store")
    assert verify_store(folder / "store").problems == []
    found = len(in_folder.shards)
    return {
        "shards": found,
        "builders": builders,
        "kills": killed,
        "paused": paused,
        "seconds": round(seconds, 1),
        "exit_codes": [c.exitcode for c in crew],
        "same_digests": in_bucket.content_digest == in_folder.content_digest
        and [s.sha256 for s in in_bucket.shards] == [s.sha256 for s in in_folder.shards],
        "requests_per_shard": round(len(requests) / found, 2),
        "requests": dict(Counter(map(_kind, requests)).most_common()),
    }


def _claims(proxy: Proxy) -> int:
    return sum("/claims/0" in r for r in proxy.requests if r.startswith("PUT"))


def _kind(request: str) -> str:
    """Verb and folder."""
    method, _, path = request.partition(" ")
    if "list-type" in path:
        return f"LIST {path.partition('%2F')[2].partition('%2F')[0].partition('&')[0] or 'all'}"
    match = re.fullmatch(r"/bucket/torment-\d+/([a-z]+/|[^/]*)(.*)", path)
    return f"{method} {match[1] if match else path}"


@contextmanager
def _set(values: dict[str, str]) -> Any:
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.bucket", description=__doc__)
    parser.add_argument("--shards", type=int, default=400)
    parser.add_argument("--builders", type=int, default=4)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--pause", type=float, default=0.1, help="Seconds of the teacher.")
    parser.add_argument("--service", help="Address of a service that speaks S3; moto's if none.")
    with tempfile.TemporaryDirectory() as folder:
        found = torment(Path(folder), **vars(parser.parse_args()))
    print(json.dumps(found, indent=2))
    return int(not found["same_digests"])


if __name__ == "__main__":
    sys.exit(main())
