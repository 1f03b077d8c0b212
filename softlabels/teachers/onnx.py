"""`onnx:FILE`: a causal LM as an ONNX graph, run by onnxruntime; its tokenizer lies in the same folder.

The graph takes `input_ids [B, S]` and, where it declares them, `attention_mask`, `position_ids`, and the key-value
cache
of exporters that make one graph for prompt and generation (`past_key_values.*`, given empty). It gives `logits [B, S,
V]`. Without an `attention_mask` padding is on the right, where causal attention never looks.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from softlabels.core.records import sha256_of_files
from softlabels.core.registry import without_folder
from softlabels.errors import ConfigError, MissingExtraError, TeacherError
from softlabels.format.identity import TeacherRecord
from softlabels.teachers import TeacherOptions, causal_only
from softlabels.teachers.segments import Rectangle, SegmentTeacher
from softlabels.teachers.tokenizer import check_covers, load_tokenizer

OUTPUT = "logits"
PAST = "past_key_values."
PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
FLOATS = {"tensor(float)": np.float32, "tensor(float16)": np.float16}


class OnnxTeacher(SegmentTeacher):
    """A graph that onnxruntime runs, and the tokenizer beside it.

    Raises:
        TeacherError: no such file, not a graph that is understood, or no tokenizer.
        ConfigError: a device or dtype that it does not run in.
        MissingExtraError: onnx or onnxruntime is not installed.
    """

    def __init__(self, path: str, options: TeacherOptions) -> None:
        self.spec = spec = without_folder(f"onnx:{path}")
        causal_only(options, spec)
        file = Path(path)
        if not file.is_file():
            raise TeacherError(f"onnx:{path}: no such file; give the path of a .onnx file")
        try:
            import onnx
            import onnxruntime
        except ImportError as e:
            raise MissingExtraError("onnxruntime", "onnx", "--teacher onnx:FILE") from e
        device = _device(options.device, onnxruntime.get_available_providers())
        settings = onnxruntime.SessionOptions()
        settings.intra_op_num_threads = torch.get_num_threads()
        try:
            graph = onnx.load(str(file), load_external_data=False).graph
            self._session = onnxruntime.InferenceSession(
                str(file),
                settings,
                providers=[PROVIDERS[device], PROVIDERS["cpu"]][: 1 + (device != "cpu")],
            )
        except Exception as e:  # both libraries raise errors of their own, without a common base
            raise TeacherError(f"{spec}: onnxruntime cannot load it: {e}") from e
        weights = _Weights(graph.initializer, file)
        if options.dtype not in ("auto", weights.dtype):
            raise ConfigError(
                f"--dtype {options.dtype}: {spec} holds {weights.dtype}, and a graph computes as it was exported; "
                "leave --dtype out, or export it again"
            )
        options.notice(f"teacher: {spec} in {weights.dtype} by onnxruntime on {device}")
        self.tokenizer = load_tokenizer(file.parent, spec=spec)
        self.budget = options.chunk_bytes(device)
        self._inputs = {i.name: i for i in self._session.get_inputs()}
        _check_graph(self._inputs, [o.name for o in self._session.get_outputs()], spec)
        self.record = TeacherRecord(
            spec=spec,
            name=spec.removeprefix("onnx:").removesuffix(".onnx"),
            revision=None,
            weights_sha256=weights.sha256,
            dtype=weights.dtype,
            device=device,
            engine=f"onnxruntime {onnxruntime.__version__}",
            vocab_size=int(self.probe().shape[2]),
            parameters=weights.parameters,
        )
        check_covers(self.tokenizer.vocab_size, self.record)

    def forward(self, rectangle: Rectangle) -> Tensor:
        """Logits `[B, S, V]`."""
        b, s = rectangle.input_ids.shape
        given: dict[str, npt.NDArray[Any]] = {
            "input_ids": rectangle.input_ids,
            "attention_mask": rectangle.attention_mask,
            "position_ids": np.tile(np.arange(s), (b, 1)),
            "use_cache_branch": np.zeros(1, np.bool_),
        }
        feed = {}
        for name, declared in self._inputs.items():
            if name.startswith(PAST):
                heads, width = declared.shape[1], declared.shape[3]
                feed[name] = np.zeros((b, heads, 0, width), FLOATS[declared.type])
            elif declared.type == "tensor(int32)":
                feed[name] = given[name].astype(np.int32)
            else:
                feed[name] = given[name]
        try:
            (logits,) = self._session.run([OUTPUT], feed)
        except Exception as e:  # onnxruntime's own kinds, without a common base
            raise TeacherError(f"{self.spec}: failed on ids {[b, s]}: {e}") from e
        return torch.from_numpy(logits)


def _device(wanted: str, available: Sequence[str]) -> str:
    device = "cpu" if wanted == "auto" and PROVIDERS["cuda"] not in available else wanted
    device = "cuda" if device == "auto" else device
    if device not in PROVIDERS:
        raise ConfigError(f"--device {wanted}: an ONNX teacher runs on cpu or cuda")
    if PROVIDERS[device] not in available:
        raise ConfigError(
            f"--device {wanted}: this onnxruntime has no {PROVIDERS[device]}; install onnxruntime-gpu, or use "
            "--device cpu"
        )
    return device


def _check_graph(inputs: dict[str, Any], outputs: Sequence[str], spec: str) -> None:
    known = {"input_ids", "attention_mask", "position_ids", "use_cache_branch"}
    for name, declared in inputs.items():
        past = name.startswith(PAST) and len(declared.shape) == 4 and declared.type in FLOATS
        past = past and all(isinstance(declared.shape[i], int) for i in (1, 3))
        if name not in known and not past:
            raise TeacherError(
                f"{spec}: the graph asks for {name!r} {declared.shape}, which is not known here; expected input_ids, "
                "attention_mask, position_ids and past_key_values.*; export it again, or use a `py:` teacher"
            )
    if "input_ids" not in inputs or OUTPUT not in outputs:
        raise TeacherError(
            f"{spec}: the graph takes {sorted(inputs)} and gives {sorted(outputs)}; expected input_ids and {OUTPUT}"
        )


class _Weights:
    """What the graph's file, and the files that it refers to, say of its numbers."""

    def __init__(self, initializers: Sequence[Any], file: Path) -> None:
        from onnx import TensorProto

        sizes = Counter[str]()
        files = {file.name}
        for tensor in initializers:
            kind = TensorProto.DataType.Name(tensor.data_type).lower()
            sizes[kind] += int(np.prod(tensor.dims, dtype=np.int64))
            if tensor.data_location == TensorProto.EXTERNAL:
                files |= {e.value for e in tensor.external_data if e.key == "location"}
        if not sizes:
            raise TeacherError(f"{file}: the graph holds no weights")
        kind = sizes.most_common(1)[0][0]
        self.dtype = {"float": "float32"}.get(kind, kind)
        """Of most of them."""
        self.parameters = sizes.total()
        self.sha256 = sha256_of_files([file.parent / name for name in sorted(files)])
