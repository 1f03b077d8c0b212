"""`new:SIZE`: a student from scratch that fits its store, e.g. `new:10M`.

Its vocabulary, context, special ids and classes are the store's. Width and depth are chosen so that all parameters
together come to SIZE:

1. The parameters of each width and depth are counted exactly, by the formula of its kind.
2. Of the shapes within 3 % of SIZE, the one is taken whose ratio of width to depth is nearest to 32: small language
   models gain from depth (MobileLLM, Liu et al. 2024, section 3.2), and each layer costs time.
3. Where none is that close, for a vocabulary that is large for so small a model, the error names the nearest size.

A causal LM is a Llama with a tied head (a head of its own would cost a second vocabulary); a masked LM or classifier is
a BERT. Weights are drawn from the seed.
"""

from __future__ import annotations

import math
import re
from typing import NamedTuple

from softlabels.core.local_model import offline_transformers
from softlabels.errors import ConfigError
from trainers.data.tasks import CAUSAL, Task
from trainers.domains import SizedDomain, sized
from trainers.students import Student

UNITS = {"": 1, "k": 10**3, "m": 10**6, "b": 10**9}
CLOSE = 0.03
"""Largest share by which a student's parameters may differ from what was asked for."""
RATIO = 32
"""Width to depth that is aimed at."""
DEEPEST = 64
BLOCK = 64
"""Contexts are multiples of it."""


class Shape(NamedTuple):
    """What is chosen of a model."""

    width: int
    depth: int
    parameters: int


def parse_size(text: str, *, where: str) -> int:
    """`10M`, `1.5B`, `250k` or a plain number, as a number of parameters.

    Raises:
        ConfigError: something else.
    """
    found = re.fullmatch(r"(\d[\d_]*(?:\.\d+)?)([kmb]?)", text.strip().lower())
    size = round(float(found[1].replace("_", "")) * UNITS[found[2]]) if found else 0
    if not 0 < size < 10**12:
        raise ConfigError(f"{where}: expected a number of parameters, such as 10M, 1.5B or 250k")
    return size


def from_size(argument: str, *, seed: int, task: Task = CAUSAL) -> Student:
    """`new:SIZE`.

    Raises:
        ConfigError: not a size, none that this vocabulary allows, or a store that it does not serve.
    """
    from trainers.students.hf import drawn

    where = f"--student new:{argument}"
    size = parse_size(argument, where=where)
    shape = shape_of(size, task, where=where)
    domain, library = sized(task.domain, where=where), offline_transformers(where)
    config = domain.config(task, shape.width, shape.depth, library)
    return drawn(config, f"new:{argument}", seed=seed, task=task)


def shape_of(size: int, task: Task, *, where: str) -> Shape:
    """The shape of a student of about `size` parameters.

    Raises:
        ConfigError: none comes within 3 %; names the nearest.
    """
    domain = sized(task.domain, where=where)
    if not task.vocab_size:
        raise ConfigError(f"{where}: is sized to a store; name one with --like STORE")
    shapes = [s for width in _widths(size, task) for s in _around(domain, width, size, task)]
    close = [s for s in shapes if abs(s.parameters / size - 1) <= CLOSE]
    if close:
        return min(close, key=lambda s: abs(math.log(s.width / s.depth / RATIO)))
    nearest = min(shapes, key=lambda s: abs(math.log(s.parameters / size)))
    table = task.vocab_size * nearest.width
    raise ConfigError(
        f"{where}: no student of this store comes within {CLOSE:.0%} of {size:,} parameters; the nearest has "
        f"{nearest.parameters:,}, of which {table:,} are the embeddings of {task.vocab_size:,} ids at a width of "
        f"{nearest.width}; ask for new:{nearest.parameters}"
    )


def _widths(size: int, task: Task) -> list[int]:
    """Multiples of 8 up to 128, of 32 to 512, of 64 to 2048, then of 128: those whose embeddings fit, and one more."""
    every = [*range(16, 128, 8), *range(128, 512, 32), *range(512, 2048, 64)]
    every += range(2048, 16385, 128)
    return every[: sum(w * task.vocab_size <= size for w in every) + 1]


def _around(domain: SizedDomain, width: int, size: int, task: Task) -> list[Shape]:
    """The two depths whose sizes lie around `size`; none deeper than half the width."""
    one, two = (domain.parameters(task, width, depth) for depth in (1, 2))
    layer = two - one
    deepest = min(DEEPEST, width // 2)
    depth = min(deepest, max(1, 1 + (size - one) // layer))
    depths = range(depth, min(depth + 1, deepest) + 1)
    return [Shape(width, d, one + (d - 1) * layer) for d in depths]


def heads(width: int) -> int:
    """Heads of 64 from a width of 512 on, below of 32, 16 or 8, whichever divides it."""
    return width // (64 if width >= 512 else next(h for h in (32, 16, 8) if width % h == 0))


def context_of_rows(task: Task) -> int:
    """A context that takes any row of the store."""
    return -(-task.row_tokens // BLOCK) * BLOCK
