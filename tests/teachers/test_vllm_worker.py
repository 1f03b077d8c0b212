"""`vllm:PATH?seam=worker`: the two model runners as stand-ins with the fields that are read of them (vLLM 0.32).

The first of them runs in `test_real_vllm.py`; the second needs a GPU, and was never run.
"""

from __future__ import annotations

import types

import numpy as np
import pytest
import torch

from softlabels.capture import BadLogitError, Job, keep_logits
from softlabels.capture.request import KEY, NUMBER, Wanted, request
from softlabels.capture.vllm_worker import Selecting
from softlabels.capture.wire import unpacked
from softlabels.core.registry import name_of
from softlabels.errors import ConfigError, TeacherError
from softlabels.estimators import make_estimator
from softlabels.teachers import TeacherOptions, open_teacher
from softlabels.teachers.local_engine import Arguments
from softlabels.teachers.segments import Segment
from softlabels.teachers.vllm_engine import Vllm
from softlabels.teachers.vllm_work import VllmWorkers

V, D = 300, 8
HEAD = torch.randn(V, D, generator=torch.Generator().manual_seed(0))
ESTIMATORS = {
    "topk": {"k": 7, "temperatures": (1.0, 2.0)},
    "sampled": {"k": 5, "temperatures": (1.0,)},
}


def wanted_of(job: Job) -> Wanted:
    return Wanted.of(job, architecture="x", head_bytes=4 * V * 3, vocab_size=V)


class First:
    """As `vllm.v1.worker.gpu_model_runner.GPUModelRunner`."""

    def __init__(self) -> None:
        self.model = types.SimpleNamespace(compute_logits=lambda hidden: hidden @ HEAD.T)
        self.requests: dict = {}
        self.input_batch = types.SimpleNamespace(req_id_to_index={})
        self.query_start_loc = types.SimpleNamespace(np=None)

    def _get_prompt_logprobs_dict(self, hidden_states, num_scheduled_tokens):
        return {"own": len(hidden_states)}

    def step(self, pieces) -> None:
        """Of each request its name, parameters, size, and where its scheduled states begin."""
        starts = np.cumsum([0, *(len(hidden) for *_, hidden in pieces)])
        self.query_start_loc.np = starts
        for i, (name, extra, size, begin, _) in enumerate(pieces):
            self.input_batch.req_id_to_index[name] = i
            self.requests[name] = types.SimpleNamespace(
                prompt_token_ids=[0] * size,
                num_computed_tokens=begin,
                sampling_params=types.SimpleNamespace(extra_args=extra),
            )
        hidden = torch.cat([h for *_, h in pieces])
        said = self._get_prompt_logprobs_dict(hidden, {p[0]: len(p[4]) for p in pieces})
        assert said == {"own": starts[-1]}


class Second:
    """As `vllm.v1.worker.gpu.model_runner.GPUModelRunner`."""

    def __init__(self) -> None:
        self.model = types.SimpleNamespace(compute_logits=lambda hidden: hidden @ HEAD.T)
        own = {"add_request": lambda *_: None, "remove_request": lambda _: None}
        self.prompt_logprobs_worker = types.SimpleNamespace(
            **own, compute_prompt_logprobs=lambda logits_fn, hidden, *_: {"own": len(hidden)}
        )
        self.known: dict[str, int] = {}
        self.sizes = np.zeros(10, np.int64)

    def step(self, pieces) -> None:
        worker = self.prompt_logprobs_worker
        for name, extra, size, _, _ in pieces:
            if name not in self.known:
                self.known[name] = 9 - len(self.known)
                self.sizes[self.known[name]] = size
                params = types.SimpleNamespace(extra_args=extra)
                worker.add_request(name, self.known[name], params)
        batch = types.SimpleNamespace(
            req_ids=[p[0] for p in pieces],
            idx_mapping_np=np.array([self.known[p[0]] for p in pieces]),
            query_start_loc_np=np.cumsum([0, *(len(p[4]) for p in pieces)]),
            num_computed_prefill_tokens_np=np.array([p[3] for p in pieces]),
        )
        hidden = torch.cat([p[4] for p in pieces])
        said = worker.compute_prompt_logprobs(None, hidden, batch, None, None, self.sizes)
        assert said == {"own": len(hidden)}


@pytest.fixture(params=[First, Second])
def worker(request):
    made = Selecting()
    made.model_runner = request.param()
    return made


def prompt(number: int, size: int, job: Job) -> tuple[dict, torch.Tensor, tuple]:
    """What is asked of it, its states, and positions, labels and uniform numbers."""
    g = torch.Generator().manual_seed(number)
    hidden = torch.randn(size, D, generator=g)
    positions = np.arange(0, size - 1, 2)
    labels = torch.randint(0, V, (len(positions),), generator=g)
    u = job.estimator.uniforms
    drawn = torch.rand(len(positions), u, generator=g, dtype=torch.float64) if u else None
    asked = request(positions, labels.numpy(), None if drawn is None else drawn.numpy())
    return {KEY: asked[KEY] | {NUMBER: number}}, hidden, (positions, labels, drawn)


@pytest.mark.parametrize("name", ESTIMATORS)
def test_chunks_preemptions_and_strangers_leave_what_one_look_keeps(worker, name):
    job = Job(make_estimator(name, ESTIMATORS[name]))
    worker.softlabels_begin(wanted_of(job).text())
    a, hidden_a, of_a = prompt(4, 23, job)
    b, hidden_b, of_b = prompt(9, 11, job)
    stranger = torch.zeros(3, D)
    run = worker.model_runner
    run.step([("a", a, 23, 0, hidden_a[:10]), ("s", None, 3, 0, stranger)])
    run.step([("b", b, 11, 0, hidden_b[:4]), ("a", a, 23, 10, hidden_a[10:15])])
    assert worker.softlabels_take() == []
    run.step([("a", a, 23, 0, hidden_a[:20])])  # it was preempted, and begins again
    run.step([("a", a, 23, 20, hidden_a[20:]), ("b", b, 11, 4, hidden_b[4:])])
    run.step([("a", a, 23, 23, stranger[:1])])  # a token that was sampled
    taken = {number: (shape, words) for number, shape, words in worker.softlabels_take()}
    assert worker.softlabels_take() == []
    assert sorted(taken) == [4, 9]
    for number, hidden, (positions, labels, drawn) in ((4, hidden_a, of_a), (9, hidden_b, of_b)):
        shape, words = taken[number]
        matrix = torch.from_numpy(np.frombuffer(words, np.int32).copy()).view(*shape)
        found = unpacked(matrix, grid=len(job.estimator.temperatures), summarised=True)
        expected = keep_logits(hidden[positions] @ HEAD.T, labels, drawn, job)
        assert torch.equal(found.ids, expected.ids)
        torch.testing.assert_close(found.logp, expected.logp, rtol=0, atol=1e-5)
        torch.testing.assert_close(found.label_logp, expected.label_logp, rtol=0, atol=1e-5)


def test_another_job_is_begun_without_another_wrapper(worker):
    for name in ("topk", "topk", "sampled"):
        job = Job(make_estimator(name, ESTIMATORS[name]))
        worker.softlabels_begin(wanted_of(job).text())
        asked, hidden, _ = prompt(1, 6, job)
        worker.model_runner.step(
            [(f"{name}{len(worker.model_runner.__dict__)}", asked, 6, 0, hidden)]
        )
        ((number, shape, _),) = worker.softlabels_take()
        assert (number, shape[0]) == (1, 3)


def test_a_runner_without_such_a_method_is_refused():
    worker = Selecting()
    worker.model_runner = types.SimpleNamespace(
        model=types.SimpleNamespace(compute_logits=lambda hidden: hidden)
    )
    with pytest.raises(RuntimeError, match="no method that is known"):
        worker.softlabels_begin(wanted_of(Job(make_estimator("topk", ESTIMATORS["topk"]))).text())


class Engine:
    """As vLLM's `LLM`, of one worker."""

    lost = False

    def __init__(self, hidden: dict[int, torch.Tensor]) -> None:
        self.worker, self.hidden = Selecting(), hidden
        self.worker.model_runner = First()

    def collective_rpc(self, method, args=()):
        return [getattr(self.worker, method)(*args)]

    def generate(self, prompts, parameters, *, use_tqdm):
        out = []
        for i, (p, params) in enumerate(zip(prompts, parameters, strict=True)):
            ids = p["prompt_token_ids"]
            if not (self.lost and i == 0):
                self.worker.model_runner.step(
                    [(str(i), params.extra_args, len(ids), 0, self.hidden[i])]
                )
            out.append(types.SimpleNamespace(prompt_token_ids=ids))
        return out


def teacher_of(engine, monkeypatch) -> VllmWorkers:
    record = types.SimpleNamespace(vocab_size=V, spec="vllm:model?seam=worker", dtype="float32")
    started: list = []
    found = types.SimpleNamespace(
        module=types.SimpleNamespace(SamplingParams=types.SimpleNamespace),
        record=record,
        tokenizer=None,
        model=types.SimpleNamespace(weight_files=()),
        context=64,
        architecture="x",
        head_bytes=4 * V * 3,
        start=lambda **settings: (started.append(settings), engine)[1],
        check_answer=lambda *_: None,
        running=lambda: types.SimpleNamespace(__enter__=None),
    )
    from contextlib import nullcontext

    found.running = nullcontext
    teacher = VllmWorkers(found)
    teacher.started = started
    monkeypatch.setattr(
        "softlabels.teachers.local_engine.segments_of", lambda rows: [r.segment for r in rows]
    )
    return teacher


def test_documents_come_back_in_order_and_none_may_be_missing(monkeypatch):
    job = Job(make_estimator("topk", ESTIMATORS["topk"]))
    hidden = {i: torch.randn(8 + i, D) for i in range(3)}
    segments = [Segment(input_ids=np.arange(8 + i), positions=np.arange(3 + i)) for i in range(3)]
    rows = [types.SimpleNamespace(segment=s) for s in segments]
    engine = Engine(hidden)
    teacher = teacher_of(engine, monkeypatch)
    assert teacher.context == 63  # a token is sampled
    for _ in range(2):
        found = list(teacher.selected(rows, job, None))
        for i, kept in enumerate(found):
            expected = (hidden[i][: 3 + i] @ HEAD.T).topk(7).indices
            assert torch.equal(kept.ids, expected)
    assert teacher.started == [{"worker_extension_cls": "softlabels.capture.vllm_worker.Selecting"}]
    hidden[1][2] = torch.nan
    with pytest.raises(BadLogitError, match="position 5"):  # of all: three of the first, then it
        list(teacher.selected(rows, job, None))
    engine.lost = True
    with pytest.raises(TeacherError, match="of 2 documents, was asked for 3"):
        list(teacher.selected(rows, job, None))


def test_the_seam_has_a_name():
    _, written = name_of("m?seam=worker")
    assert Arguments.parse(written, spec="vllm:m", seams=Vllm.seams).seam == "worker"
    with pytest.raises(ConfigError, match="joined by"):
        Arguments.parse([("seam", "other")], spec="vllm:m", seams=Vllm.seams)
    with pytest.raises(TeacherError, match="no such folder"):
        open_teacher("vllm:nowhere?seam=worker", TeacherOptions())
