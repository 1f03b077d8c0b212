"""Several teachers as one: their probabilities, or their logits, averaged with weights.

    probs     p = sum of w_m p_m, at T=1: an arithmetic mean; another T of the grid tempers the mean
    logits    z = sum of w_m z_m: a geometric mean of the members' probabilities, renormalised, at every T

The members read the same rows, and their chunks are brought into step: beside what each member needs for itself, a
chunk of
of logits of each exist at a time. They must have one tokenizer. Heads that were padded to different widths are cut to
the narrowest, which covers the tokenizer; what mass a member had beyond it is counted, and reported.

Disagreement is measured on every position: the generalised Jensen-Shannon divergence, the mean of KL(p_m || p) with the
weights (0: all agree; at most the weights' entropy), and how often the members' first choices are not all the same.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from softlabels.errors import ConfigError, TokenizerError
from softlabels.format.identity import TeacherRecord
from softlabels.teachers import Teacher, TeacherOptions, open_teacher

AVERAGES = ("probs", "logits")


def open_teachers(specs: str | Sequence[str], average: str, options: TeacherOptions) -> Teacher:
    """One teacher, or an ensemble of `name:argument=WEIGHT`.

    Raises:
        ConfigError: a weight that is none, or a member that cannot be one.
        TokenizerError: the members' tokenizers differ.
        TeacherError: one cannot be loaded.
    """
    shown = specs if isinstance(specs, str) else ", ".join(specs)
    options.notice(f"loading the teacher {shown}")  # may take minutes
    if isinstance(specs, str):
        return open_teacher(specs, options)
    named = parse_weights(specs)
    dtypes = options.dtype.split("+")  # of a plan: each member's own
    if len(dtypes) == 1:
        dtypes *= len(named)
    if len(dtypes) != len(named):
        raise ConfigError(f"--dtype {options.dtype}: names {len(dtypes)} for {len(named)} teachers")
    members = [
        open_teacher(spec, replace(options, dtype=dtype))
        for (spec, _), dtype in zip(named, dtypes, strict=True)
    ]
    return Ensemble(members, [weight for _, weight in named], average)


def parse_weights(specs: Sequence[str]) -> list[tuple[str, float]]:
    """Split `SPEC=WEIGHT`, and divide the weights by their sum; without any, they are equal.

    Raises:
        ConfigError: names the text.
    """
    found: list[tuple[str, float | None]] = []
    for text in specs:
        spec, equals, last = text.rpartition("=")
        of_query = re.search(r"[?&]\w+$", spec) is not None  # `py:m.f?tokenizer=5` names a folder
        try:
            weight = float(last) if equals and not of_query else None
        except ValueError:
            weight = None
        if weight is not None and not 0 < weight < math.inf:
            raise ConfigError(f"--teacher {text!r}: expected a weight above 0, e.g. {spec}=0.5")
        found.append((text if weight is None else spec, weight))
    without = [spec for spec, weight in found if weight is None]
    if without and len(without) < len(found):
        raise ConfigError(
            f"--teacher {without[0]!r}: has no weight, others have; give each one, as NAME:ARGUMENT=WEIGHT, or none"
        )
    total = sum(1.0 if w is None else w for _, w in found)
    return [(spec, (1.0 if w is None else w) / total) for spec, w in found]


class Ensemble(Teacher):
    """Members, their weights, and how they are averaged."""

    def __init__(self, members: Sequence[Teacher], weights: Sequence[float], average: str) -> None:
        assert average in AVERAGES
        assert math.isclose(sum(weights), 1)
        self._members, self._weights, self._average = list(members), list(weights), average
        self.tokenizer = members[0].tokenizer
        self.classes = members[0].classes
        self._check()
        records = [m.record for m in members]
        self._width = min(r.vocab_size for r in records)
        self.context = min((m.context for m in members if m.context is not None), default=None)
        parts = [
            f"{w:.12g} {r.weights_sha256}" for w, r in zip(self._weights, records, strict=True)
        ]
        text = "\n".join(["softlabels ensemble 1", average, *parts, ""])
        of = ", ".join(f"{r.spec}={w:.6g}" for w, r in zip(self._weights, records, strict=True))
        self.record = TeacherRecord(
            spec=f"ensemble:{average}({of})",
            name=" + ".join(r.name for r in records),
            revision=None,
            weights_sha256=hashlib.sha256(text.encode()).hexdigest(),
            dtype=_joined([r.dtype for r in records]),
            device=_joined([r.device for r in records]),
            engine=" + ".join(dict.fromkeys(r.engine for r in records)),
            vocab_size=self._width,
            parameters=sum(r.parameters for r in records),
        )
        self._positions = self._split = 0
        self._divergence = 0.0
        self._beyond = [0.0] * len(members)

    def _check(self) -> None:
        for member in self._members:
            spec = member.record.spec
            if member.listing is not None:
                raise ConfigError(
                    f"--teacher {spec}: lists the most probable ids only, and an average needs whole distributions; "
                    "build a store of its own, and mix stores in training (--store A=0.5 --store B=0.5)"
                )
            if member.selects:
                raise ConfigError(
                    f"--teacher {spec}: selects beside the model, and an average needs its logits; use ?seam=states, "
                    "or build a store of its own, and mix stores in training (--store A=0.5 --store B=0.5)"
                )
            if member.classes != self.classes:
                raise ConfigError(
                    f"--teacher {spec}: its classes are {list(member.classes or ())}, those of "
                    f"{self._members[0].record.spec} {list(self.classes or ())}; average teachers of the same classes, "
                    "in the same order"
                )
            a, b = self.tokenizer.record.sha256, member.tokenizer.record.sha256
            if a != b:
                first = self._members[0].record.spec
                raise TokenizerError(
                    f"--teacher {spec}: its tokenizer (sha256 {b[:12]}…, chat template included) is not that of "
                    f"{first} (sha256 {a[:12]}…), so the same id may mean another token; average "
                    "teachers of one tokenizer"
                )

    @torch.no_grad()
    def logits(self, rows: Sequence[Any]) -> Iterator[Tensor]:
        """Chunks `[n, V] float32` of the positions of all rows, in order, on the first member's device.

        Of `probs` they are log-probabilities.
        """
        for chunks in _in_step([m.logits(rows) for m in self._members]):
            yield self._mean([c.to(chunks[0].device) for c in chunks])

    def _mean(self, chunks: Sequence[Tensor]) -> Tensor:
        """Of one chunk `[n, V_m] float32` of each member, which are overwritten."""
        log_p, cut = [], []
        for m, chunk in enumerate(chunks):
            narrow = chunk[:, : self._width]
            cut.append(narrow)
            log_p.append(torch.log_softmax(narrow, dim=1))
            if chunk.shape[1] > self._width:
                inside = torch.logsumexp(narrow, dim=1) - torch.logsumexp(chunk, dim=1)
                self._beyond[m] += float((-torch.expm1(inside.double())).clamp_min(0).sum())
        mixture = torch.full_like(log_p[0], -torch.inf)
        for w, part in zip(self._weights, log_p, strict=True):
            torch.logaddexp(mixture, part + math.log(w), out=mixture)
        first = torch.stack([part.argmax(dim=1) for part in log_p])
        self._positions += len(mixture)
        self._split += int((first != first[:1]).any(dim=0).sum())
        for w, part in zip(self._weights, log_p, strict=True):
            apart = (part - mixture).masked_fill_(part.isneginf(), 0.0)  # 0 of the mass
            kl = (part.exp() * apart).sum(dim=1, dtype=torch.float64)
            self._divergence += w * float(kl.sum())
        if self._average == "probs":
            return mixture
        mean = cut[0].mul_(self._weights[0])
        for w, narrow in zip(self._weights[1:], cut[1:], strict=True):
            mean.add_(narrow, alpha=w)
        return mean.contiguous()

    def remarks(self) -> list[str]:
        """How far the members disagreed, what lay beyond the common vocabulary, and what they say themselves."""
        lines = []
        if n := self._positions:
            most = -sum(w * math.log(w) for w in self._weights)
            lines.append(
                f"disagreement of {len(self._members)} teachers over {n:,} positions: {self._divergence / n:.4f} "
                f"nats of Jensen-Shannon divergence (at most {most:.4f}); first choices differ at {self._split / n:.1%}"
            )
            lines += [
                f"{m.record.spec}: {beyond / n:.2g} of its mass lay on ids from {self._width} on, which not all "
                "members have; it was left out and the rest renormalised"
                for m, beyond in zip(self._members, self._beyond, strict=True)
                if m.record.vocab_size > self._width
            ]
        return lines + [r for m in self._members for r in m.remarks()]


def _in_step(streams: Sequence[Iterator[Tensor]]) -> Iterator[list[Tensor]]:
    """Chunks of the same positions of all streams, however each was cut."""
    left: list[Tensor | None] = [None] * len(streams)
    while True:
        held = [
            part if part is not None and len(part) else next(stream, None)
            for part, stream in zip(left, streams, strict=True)
        ]
        present = [part for part in held if part is not None]
        if not present:
            return
        assert len(present) == len(streams), "a member gave fewer positions than another"
        n = min(len(part) for part in present)
        yield [part[:n] for part in present]
        left = [part[n:] for part in present]


def _joined(names: Sequence[str]) -> str:
    """One name if all are equal, else each, in order."""
    return names[0] if len(set(names)) == 1 else "+".join(names)
