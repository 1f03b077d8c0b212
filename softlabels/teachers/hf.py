"""`hf:PATH`: a causal LM that is on this machine (`local_model.py`), as transformers loads it; GGUF files included.

The body runs once for a batch of rows; the head is applied to chunks of positions, so that no more
than a byte budget of logits exists at a time. The head computes in float32 whatever the body's dtype:
bfloat16 logits of a large vocabulary are rounded by up to 1/16 nat, more than most codecs lose.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from softlabels.core.devices import choose
from softlabels.core.local_model import find_model, load_weights, loading, offline_transformers
from softlabels.core.registry import without_folder
from softlabels.core.rows import Row, pad_rows
from softlabels.errors import TeacherError
from softlabels.teachers import MIB, Teacher, TeacherOptions
from softlabels.teachers.hf_encoder import HEADS, load_hf_encoder
from softlabels.teachers.hf_source import PROBE_IDS, HFSource, check_head
from softlabels.teachers.hf_vision import load_hf_vision
from softlabels.teachers.tokenizer import HFTokenizer, check_covers, repair_pre_tokenizer

__all__ = ["HFTeacher", "context_of", "digest_files", "load_hf", "weight_files"]

IMAGES = "image-classification"


def load_hf(path: str, options: TeacherOptions) -> Teacher:
    """Load model and tokenizer of a folder, a `.gguf` file or the hub cache; in other domains, see `hf_encoder.py`.

    Raises:
        TeacherError: no such model, or its head is not a linear map of the last hidden state.
        MissingExtraError: transformers (or gguf) is not installed.
    """
    found = find_model(path, where=f"hf:{path}", error=TeacherError)
    transformers = offline_transformers("--teacher hf:PATH")
    if options.domain in HEADS or options.domain == IMAGES:
        if found.gguf is not None:
            raise TeacherError(
                f"hf:{path}: a GGUF file holds a causal LM; give the folder of a {options.domain} model"
            )
        weights_sha256 = digest_files(weight_files(found.folder))
        if options.domain == IMAGES:
            return load_hf_vision(path, found, options, transformers, weights_sha256)
        return load_hf_encoder(path, found, options, transformers, weights_sha256)
    choice = choose(options.device, options.dtype)
    options.notice(f"teacher: {choice.reason}")
    with loading(f"hf:{path}", TeacherError):
        model = load_weights(
            transformers.AutoModelForCausalLM,
            found,
            dtype=choice.dtype if found.gguf is None else torch.float32,
        )
        tokenizer = transformers.AutoTokenizer.from_pretrained(found.folder, **found.settings)
        if found.gguf is not None:
            declared = _declared_pre_tokenizer(found.folder / found.gguf)
            repair_pre_tokenizer(tokenizer, declared, options.notice)
    weights = found.weight_files if found.gguf is not None else weight_files(found.folder)
    source = HFSource(
        spec=without_folder(f"hf:{path}"),
        name=found.name,
        weights_sha256=digest_files(weights),
        engine=f"transformers {transformers.__version__}, torch {torch.__version__}",
    )
    return HFTeacher(
        model.to(choice.device, choice.dtype).eval(),  # type: ignore[arg-type, unused-ignore]
        HFTokenizer(tokenizer),
        source,
        head_bytes=options.head_bytes or (256 if choice.device.type == "cuda" else 16) * MIB,
    )


class HFTeacher(Teacher):
    """A causal LM of transformers."""

    def __init__(
        self,
        model: Any,
        tokenizer: HFTokenizer,
        source: HFSource,
        *,
        head_bytes: int,
    ) -> None:
        self._body = model.base_model
        self._head = model.get_output_embeddings()
        if self._head is None or self._body is model:
            raise TeacherError(
                f"{source.spec}: {type(model).__name__} has no separate head over the vocabulary"
            )
        self._transform = _logit_transform(model.config)
        self._weight = self._head.weight.detach().float()
        bias = getattr(self._head, "bias", None)
        self._bias = None if bias is None else bias.detach().float()
        self.device = self._weight.device
        # Hidden states and weights of a bfloat16 body are exact in bfloat16: on a CPU their products may be
        # taken there, 1.7 times as fast, with sums and results still in float32.
        exact = self._head.weight.dtype == torch.bfloat16 and self.device.type == "cpu"
        self._exact_in = "medium" if exact else None
        self.tokenizer = tokenizer
        self.record = source.record(model, vocab_size=int(self._weight.shape[0]))
        self.context = context_of(model.config)
        check_covers(tokenizer.vocab_size, self.record)
        self._chunk = max(1, head_bytes // (4 * self.record.vocab_size))
        self._check_head(model)

    @torch.no_grad()
    def _check_head(self, model: Any) -> None:
        """Compare the head as applied here with the model's own logits on a few ids."""
        ids = torch.arange(PROBE_IDS, device=self.device)[None] + 1
        expected = model(input_ids=ids, use_cache=False).logits[0].float()
        found = self._logits(self._body(input_ids=ids, use_cache=False).last_hidden_state[0])
        check_head(model, found, expected, spec=self.record.spec)

    def _logits(self, hidden: Tensor) -> Tensor:
        with _products_of(self._exact_in):
            logits = torch.nn.functional.linear(hidden.float(), self._weight, self._bias)
        return self._transform(logits)

    @torch.no_grad()
    def logits(self, rows: Sequence[Row]) -> Iterator[Tensor]:
        """Chunks `[n, V] float32` of the positions of all rows, in order."""
        padded = pad_rows(rows)
        ids = torch.from_numpy(padded.input_ids).to(self.device)
        extra = {}
        if padded.position_ids is not None:
            # transformers keeps documents apart where positions start again.
            extra["position_ids"] = torch.from_numpy(padded.position_ids).to(self.device)
        hidden = self._body(input_ids=ids, use_cache=False, **extra).last_hidden_state
        flat = torch.from_numpy(padded.flat_positions).to(self.device)
        hidden = hidden.flatten(0, 1).index_select(0, flat)
        for chunk in hidden.split(self._chunk):
            yield self._logits(chunk)


@contextmanager
def _products_of(precision: str | None) -> Iterator[None]:
    """Run float32 matrix products at a lower internal precision, for as long as it takes."""
    before = torch.get_float32_matmul_precision()
    if precision is not None:
        torch.set_float32_matmul_precision(precision)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def context_of(config: Any) -> int | None:
    """How many tokens a model of transformers was made to read at a time; None: its configuration sets no limit."""
    longest = getattr(config.get_text_config(), "max_position_embeddings", None)
    return None if longest is None else int(longest)


def _logit_transform(config: Any) -> Callable[[Tensor], Tensor]:
    """What some families do to logits after the linear head."""
    scale = float(getattr(config, "logit_scale", None) or 1.0)
    scale /= float(getattr(config, "logits_scaling", None) or 1.0)
    cap = getattr(config, "final_logit_softcapping", None)

    def transform(logits: Tensor) -> Tensor:
        if scale != 1.0:
            logits = logits * scale
        return torch.tanh(logits / cap) * cap if cap else logits

    return transform


def _declared_pre_tokenizer(path: Path) -> str | None:
    from gguf import GGUFReader

    field = GGUFReader(path).get_field("tokenizer.ggml.pre")
    return None if field is None else str(field.contents())


def weight_files(folder: Path) -> list[Path]:
    """The files that hold a folder's weights, in order of name.

    Raises:
        TeacherError: there are none.
    """
    for pattern in ("*.safetensors", "*.bin"):
        if files := sorted(folder.glob(pattern)):
            return files
    raise TeacherError(f"hf:{folder}: holds no weights (*.safetensors)")


def digest_files(files: Sequence[Path]) -> str:
    """sha256 over names and contents."""
    total = hashlib.sha256()
    for path in files:
        with path.open("rb") as f:
            content = hashlib.file_digest(f, "sha256").hexdigest()
        total.update(f"{path.name}\0{content}\n".encode())
    return total.hexdigest()
