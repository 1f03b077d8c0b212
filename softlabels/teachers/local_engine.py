"""An engine on this machine that runs the model of a folder: what it may be given, and what its teachers share."""

from __future__ import annotations

import gc
from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np

from softlabels.capture import BadLogitError, Job, Kept
from softlabels.capture.request import Wanted, request
from softlabels.capture.wire import unpacked
from softlabels.core.devices import choose
from softlabels.core.local_model import LocalModel
from softlabels.core.registry import name_of, without_folder
from softlabels.errors import ConfigError, SoftLabelsError, TeacherError, first_line
from softlabels.format.identity import TeacherRecord
from softlabels.teachers import Teacher, TeacherOptions, causal_only
from softlabels.teachers.hf import second_path
from softlabels.teachers.hf_source import context_of, digest_weights
from softlabels.teachers.segments import Segment, segments_of
from softlabels.teachers.tokenizer import HFTokenizer, check_covers, load_tokenizer

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """What may stand after the `?`."""

    tp: int = 1
    """Devices that share each layer."""
    gpu_memory: float | None = None
    """Share of a device's memory that the engine takes."""
    max_len: int | None = None
    """Tokens of a document, at most, if that is less than the model reads."""
    step_tokens: int | None = None
    """Tokens that are scheduled at a time; longer documents are computed in pieces."""
    seam: str = ""
    """One of the engine's; by default its first."""

    @staticmethod
    def parse(written: Sequence[tuple[str, str]], *, spec: str, seams: Sequence[str]) -> Arguments:
        """Of names and values, as of `tp=8&gpu_memory=0.85`; `seams` of an engine with one alone are empty.

        Raises:
            ConfigError: an unknown name, or a value that is none.
        """
        kinds = {"tp": int, "gpu_memory": float, "max_len": int, "step_tokens": int, "seam": str}
        assert set(kinds) == {f.name for f in fields(Arguments)}
        try:
            given = {n: kinds[n](v) for n, v in written}
            if seams:
                given.setdefault("seam", seams[0])
            found = Arguments(**given)
            counts = [n for n in (found.tp, found.max_len, found.step_tokens) if n is not None]
            share = 1.0 if found.gpu_memory is None else found.gpu_memory
            if min(counts) < 1 or not 0 < share <= 1 or found.seam not in (seams or ("",)):
                raise ValueError
        except (KeyError, ValueError) as e:
            some = ["tp=DEVICES", "gpu_memory=SHARE", "max_len=TOKENS", "step_tokens=TOKENS"]
            some += [f"seam={'|'.join(seams)}"] if seams else []
            raise ConfigError(
                f"--teacher {spec}: expected {spec.partition(':')[0]}:PATH, or after a ? some of "
                f"{', '.join(some[:-1])} and {some[-1]}, joined by &"
            ) from e
        return found


@dataclass(frozen=True, kw_only=True)
class LocalEngine:
    """A model that is here, and the engine that is to run it."""

    kind: ClassVar[str]
    """Before the colon of `--teacher`, and in the record."""
    called: ClassVar[str]
    """As people write it."""
    seams: ClassVar[tuple[str, ...]] = ()
    module: Any
    """The engine's."""
    model: LocalModel
    arguments: Arguments
    record: TeacherRecord
    tokenizer: HFTokenizer
    architecture: str
    reads: int | None
    """Tokens that the model reads at a time."""
    head_bytes: int

    @property
    def context(self) -> int | None:
        """Tokens of a document, at most."""
        return self.reads if self.arguments.max_len is None else self.arguments.max_len

    @classmethod
    def at(
        cls,
        argument: str,
        options: TeacherOptions,
        load: Callable[[Arguments], tuple[Any, str]],
    ) -> Self:
        """Look at the folder of `PATH?…`; `load` gives the engine's module, and the device that it runs on.

        Raises:
            TeacherError: no such folder, no weights, or no tokenizer.
            ConfigError: a malformed argument, or a device that this engine does not run on.
            MissingExtraError: it is not installed.
        """
        path, written = name_of(argument)
        arguments = Arguments.parse(written, spec=f"{cls.kind}:{argument}", seams=cls.seams)
        seam = "" if arguments.seam in cls.seams[:1] or not cls.seams else f"?seam={arguments.seam}"
        given = f"{cls.kind}:{path}"
        spec = without_folder(given) + seam
        causal_only(options, spec)
        folder = Path(path)
        if not folder.is_dir():
            raise TeacherError(f"{given}: no such folder; give the path of a model folder")
        module, device = load(arguments)
        if options.device not in ("auto", device):
            raise ConfigError(f"--device {options.device}: this {cls.called} runs on {device}")
        import transformers

        config = transformers.AutoConfig.from_pretrained(folder)
        architectures = list(getattr(config, "architectures", None) or ())
        if len(architectures) != 1:
            raise TeacherError(
                f"{given}: its config.json names {architectures}, expected one architecture"
            )
        model = LocalModel(folder=folder, gguf=None, name=folder.resolve().name)
        record = TeacherRecord(
            spec=spec,
            name=model.name,
            revision=None,
            weights_sha256=digest_weights(model, given),
            dtype=cls._dtype(options, config, device),
            device=device,
            engine=f"{cls.kind} {module.__version__}",
            vocab_size=int(config.get_text_config().vocab_size),
            parameters=0,
        )
        tokenizer = load_tokenizer(folder, spec=spec)
        check_covers(tokenizer.vocab_size, record)
        reads = context_of(config)
        if reads is not None and (arguments.max_len or 0) > reads:
            raise ConfigError(
                f"--teacher {cls.kind}:{argument}: max_len is {arguments.max_len}, the model reads {reads} tokens at "
                "most"
            )
        return cls(
            module=module,
            model=model,
            arguments=arguments,
            record=record,
            tokenizer=tokenizer,
            architecture=architectures[0],
            reads=reads,
            head_bytes=options.chunk_bytes(device),
        )

    @classmethod
    def _dtype(cls, options: TeacherOptions, config: Any, device: str) -> str:
        """`auto`: on a CPU what is measured to be faster, else bfloat16, or float16 if the weights are of that."""
        if options.dtype != "auto" or device == "cpu":
            choice = choose("cpu", options.dtype)
            options.notice(
                f"teacher: {cls.called} on {device}; dtype: {choice.reason.rpartition('dtype: ')[2]}"
            )
            return choice.dtype_name
        own = str(getattr(config, "dtype", None) or "float32").removeprefix("torch.")
        return own if own == "float16" else "bfloat16"

    @contextmanager
    def running(self) -> Iterator[None]:
        """What the engine raises, as a sentence.

        Raises:
            TeacherError: it failed.
        """
        try:
            yield
        except SoftLabelsError:
            raise
        except Exception as e:  # whatever an engine of many libraries may raise
            raise TeacherError(
                f"{self.record.spec}: {self.called} failed: {first_line(e)}; its own messages are above. If it ran out "
                "of memory, give ?gpu_memory=SHARE, a smaller ?max_len=TOKENS, or more devices with ?tp=DEVICES"
            ) from e


class SelectingTeacher(Teacher):
    """An engine that selects beside its model: what comes back is a few numbers a position, not logits."""

    batches = True
    selects = True

    def __init__(self, found: LocalEngine) -> None:
        self._found = found
        self.tokenizer, self.record = found.tokenizer, found.record
        self.second_path = second_path(found.model, found.record.dtype)
        self.context = found.context
        self._engine: Any = None
        self._wanted: Wanted | None = None

    def logits(self, rows: Sequence[Any]) -> Iterator[Tensor]:
        """Refused: they never leave the engine.

        Raises:
            TeacherError: always.
        """
        raise TeacherError(
            f"{self.record.spec}: selects beside the model, and gives no logits; this needs a teacher that does, such "
            f"as {self._found.kind}:PATH?seam=states, or hf:PATH, of the same folder"
        )

    def selected(self, rows: Sequence[Any], job: Job, uniforms: Tensor | None) -> Iterator[Kept]:
        """What is kept of each document, in order."""
        segments = segments_of(rows)
        if not segments:
            return
        starts = np.cumsum([0, *(len(s.positions) for s in segments)])
        drawn = None if uniforms is None else uniforms.numpy()
        asked = [
            request(
                s.positions,
                s.labels,
                None if drawn is None else drawn[start : start + len(s.positions)],
            )
            for s, start in zip(segments, starts[:-1], strict=True)
        ]
        with self._found.running():
            answers = self._answers(segments, asked, job)
        for segment, start, words in zip(segments, starts[:-1], answers, strict=True):
            try:
                kept = unpacked(words, grid=len(job.estimator.temperatures), summarised=True)
            except BadLogitError as e:
                raise BadLogitError(int(start) + e.index, e.shown) from None
            if len(kept.ids) != len(segment.positions):
                raise TeacherError(
                    f"{self.record.spec}: gave {len(kept.ids)} positions of a document, was asked for "
                    f"{len(segment.positions)}"
                )
            yield kept

    @abstractmethod
    def _answers(
        self, segments: Sequence[Segment], asked: Sequence[dict[str, Any]], job: Job
    ) -> list[Tensor]:
        """Of each segment the words of what was kept (`wire.py`); an error of the engine is told by `running`."""

    def _engine_of(self, job: Job) -> Any:
        """The engine that keeps this; one that keeps something else is stopped first."""
        wanted = self._wanted_of(job)
        if self._engine is None or wanted != self._wanted:
            if self._engine is not None:
                self._stop()
                self._engine = None
                gc.collect()
            self._engine = self._start(wanted)
            self._wanted = wanted
        return self._engine

    @abstractmethod
    def _start(self, wanted: Wanted) -> Any:
        """An engine that keeps this."""

    def _stop(self) -> None:
        """End the engine, where letting go of it is not enough."""

    def _wanted_of(self, job: Job) -> Wanted:
        return Wanted.of(
            job._replace(
                summarise=True
            ),  # cheap beside the rest, and one engine serves whoever asks
            architecture=self._found.architecture,
            head_bytes=self._found.head_bytes,
            vocab_size=self.record.vocab_size,
        )
