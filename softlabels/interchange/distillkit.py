"""DistillKit's captured logits: a folder of Parquet files with `compression_config.yaml` beside them.

A row has `input_ids` and, for each position that predicts a next token, bytes: `bytepacked_indices` (the k ids, most
significant bit first, in as few bits as the vocabulary `d` needs) and `compressed_logprobs`, in descending order: the
`exact_k` first values, the coefficients of a curve through the others, then bins of quantised residuals, each after
its scale. With `delta_encoding` each value but the first is the step from the one before.

What was lost in their quantisation is lost: the mass that a position leaves for its tail is that of the rounded values.
Sums are taken in float64, so that values may differ from DistillKit's own in the last digits of its types.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from softlabels.errors import CorpusError, MissingExtraError
from softlabels.interchange import ForeignRow
from softlabels.interchange.tables import matrix, records, vector

CONFIG = "compression_config.yaml"
FIELDS = ("input_ids", "compressed_logprobs", "bytepacked_indices")
WIDTHS = {"float16": 2, "bfloat16": 2, "float32": 4, "float64": 8}


class _Bin(msgspec.Struct, frozen=True, kw_only=True):
    scale_dtype: str
    element_bits: int
    num_elements: int


class _Config(msgspec.Struct, frozen=True, kw_only=True):
    d: int
    k: int
    exact_k: int
    residual_bins: list[_Bin]
    exact_dtype: str = "float32"
    polynomial_terms: list[int | str] | None = None
    term_dtype: str = "float32"
    delta_encoding: bool = True
    error_diffusion: bool = False
    normalize_t: bool = False

    @property
    def dtypes(self) -> set[str]:
        return {self.exact_dtype, self.term_dtype, *(b.scale_dtype for b in self.residual_bins)}


def read(path: Path) -> Iterator[ForeignRow]:
    """Rows of the folder."""
    config = _config(path / CONFIG)
    bits = max(1, (config.d - 1).bit_length())
    for where, record in records(path, FIELDS):
        input_ids = vector(record["input_ids"], where, "input_ids")
        values = matrix(record["compressed_logprobs"], where, "compressed_logprobs")
        packed = matrix(record["bytepacked_indices"], where, "bytepacked_indices")
        n = len(values)
        if n != len(packed) or n not in (len(input_ids), len(input_ids) - 1):
            raise CorpusError(
                f"{where}: {n} and {len(packed)} targets for {len(input_ids)} input_ids; expected "
                f"{len(input_ids) - 1} of each"
            )
        n = min(n, len(input_ids) - 1)  # nothing follows the last token
        ids = _unpack(packed[:n].astype(np.uint8), bits, config.k, where)
        label_mask = np.zeros(len(input_ids), np.bool_)
        label_mask[:n] = True
        yield ForeignRow(
            where=where,
            input_ids=input_ids.astype(np.int32),
            label_mask=label_mask,
            ids=ids,
            logp=_decode(values[:n].astype(np.uint8), config, where),
        )


def _config(file: Path) -> _Config:
    try:
        import yaml  # type: ignore[import-untyped,unused-ignore]
    except ImportError as e:
        raise MissingExtraError("pyyaml", "hf", "importing DistillKit's logits") from e
    try:
        config = msgspec.convert(yaml.safe_load(file.read_text(encoding="utf-8")), _Config)
    except (OSError, UnicodeDecodeError, yaml.YAMLError, msgspec.ValidationError) as e:
        raise CorpusError(
            f"{file}: is not the configuration of a DistillKit capture ({e}); older captures have none, and cannot be "
            "read"
        ) from e
    unknown = sorted(config.dtypes - WIDTHS.keys())
    terms = [t for t in config.polynomial_terms or [] if t not in ("sqrt", "exp")]
    if unknown or any(isinstance(t, str) for t in terms):
        raise CorpusError(f"{file}: {unknown or terms}: a type or term that is not known here")
    sane = 1 <= config.k <= config.d and 0 <= config.exact_k <= config.k
    quantised = sum(b.num_elements for b in config.residual_bins)
    if not sane or quantised > config.k - config.exact_k:
        raise CorpusError(
            f"{file}: k={config.k}, exact_k={config.exact_k}, {quantised} residuals: impossible"
        )
    return config


def _decode(data: npt.NDArray[np.uint8], config: _Config, where: str) -> npt.NDArray[np.float32]:
    """Bytes `[n, B]` to log-probabilities `[n, k]`."""
    begin = 0

    def take(dtype: str, count: int) -> npt.NDArray[np.float64]:
        nonlocal begin
        end = begin + WIDTHS[dtype] * count
        _need(data, end, where)
        part, begin = np.ascontiguousarray(data[:, begin:end]), end
        if dtype == "bfloat16":  # the upper half of a float32
            wide = part.view("<u2").astype(np.uint32) << np.uint32(16)
            return wide.view(np.float32).astype(np.float64)
        return part.view({"float16": "<f2", "float32": "<f4", "float64": "<f8"}[dtype]).astype(
            np.float64
        )

    exact = take(config.exact_dtype, config.exact_k)
    rest = np.zeros((len(data), config.k - config.exact_k))
    if config.polynomial_terms:
        coefficients = take(config.term_dtype, len(config.polynomial_terms))
        rest += coefficients @ _terms(config, rest.shape[1]).T
    at = 0
    for b in config.residual_bins:
        scale = take(b.scale_dtype, 1)
        end = begin + (b.element_bits * b.num_elements + 7) // 8
        _need(data, end, where)
        steps = _unpack(data[:, begin:end], b.element_bits, b.num_elements, where).astype(float)
        # One bit is a sign; more are counted from the most negative.
        steps = 2 * steps - 1 if b.element_bits == 1 else steps - 2.0 ** (b.element_bits - 1)
        rest[:, at : at + b.num_elements] += scale * steps
        begin, at = end, at + b.num_elements
    if begin != data.shape[1]:
        raise CorpusError(
            f"{where}: {data.shape[1]} bytes of a position, the configuration says {begin}"
        )
    values = np.concatenate([exact, rest], axis=1)
    if config.delta_encoding:
        values = values.cumsum(axis=1)
    return values.astype(np.float32)


def _terms(config: _Config, n: int) -> npt.NDArray[np.float64]:
    """The curve's terms at each of the n places, `[n, terms]`."""
    t = np.linspace(0, 1, n) if config.normalize_t else np.arange(n, dtype=np.float64)
    special: dict[Any, Any] = {"sqrt": np.sqrt, "exp": np.exp}
    columns = [
        special[term](t) if isinstance(term, str) else t**term
        for term in config.polynomial_terms or []
    ]
    return np.stack(columns, axis=1)


def _unpack(
    data: npt.NDArray[np.uint8], bits: int, count: int, where: str
) -> npt.NDArray[np.int64]:
    """Whole numbers `[n, count]` of so many bits each, most significant first."""
    _need(data, (bits * count + 7) // 8, where)
    stream = np.unpackbits(data, axis=1)[:, : bits * count].reshape(len(data), count, bits)
    weights = np.int64(1) << np.arange(bits - 1, -1, -1, dtype=np.int64)
    return np.asarray(stream.astype(np.int64) @ weights)


def _need(data: npt.NDArray[np.uint8], end: int, where: str) -> None:
    if end > data.shape[1]:
        raise CorpusError(
            f"{where}: {data.shape[1]} bytes of a position, the configuration asks for {end} or more"
        )
