"""How far stored targets are from the teacher's dense distributions, position by position, in float64.

What is compared is what a trainer would use, `SoftTargets.log_bins`: the kept ids and the tail, or the weights of a
sample. Divergences are sums over the whole vocabulary; nothing is estimated but their mean over the text.

The gradient is that of the soft cross-entropy with respect to the *logits of a student*: `q - p` if the target
is dense. From the store it is what the losses of the trainer make of it: with a tail bucket, an id outside the
kept set is pushed towards the tail's mass in proportion to the student's own `q`; a sample has weights only.
Logits, because every head's gradient is a linear map of this one, and no head has to be chosen. Of the student
only q matters: it is the teacher with a standard normal number added to each logit, about half a nat away, as a
good student is. Far from the teacher every target looks right, since q - p is then mostly q; a student that *is*
the teacher has no gradient to compare with.

Shapes: n positions of a chunk, K kept ids, V vocabulary.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from softlabels.core.kept import KeptSet
from softlabels.core.rows import UNLABELLED
from softlabels.core.targets import SoftTargets
from softlabels.format.certificate import Estimate, FidelityAt, LogProbError, SampleCheck
from softlabels.format.identity import EncodingRecord

Float64 = npt.NDArray[np.float64]

BINS = 15
"""Of the calibration error."""
RESAMPLES = 2000
MANY_ROWS = 2000
"""Up to so many are drawn again."""
NORMAL_95 = 1.959964
ROUNDING = 1e-5
"""Nats: what float32 logits and log-sum-exps leave open, whatever the encoding promises."""


class Resampling:
    """95 % intervals from rows: positions of one row are not independent, rows nearly are.

    Rows are drawn again with replacement; where there are very many, the normal approximation is as good and
    needs no draws.
    """

    def __init__(self, positions: Float64, seed: int) -> None:
        """`positions [R]`: how many were measured in each row."""
        self._n = positions
        r = len(positions)
        self._times: Float64 | None = None
        if r <= MANY_ROWS:
            key = np.array([seed, r], np.uint64)
            rng = np.random.Generator(np.random.Philox(key=key))
            times = rng.multinomial(r, np.full(r, 1 / r), size=RESAMPLES).astype(np.float64)
            self._times = times[times @ positions > 0]

    def estimate(self, sums: Float64) -> Estimate:
        """Mean over positions and its interval, from each row's sum `[R]`."""
        mean = float(sums.sum() / self._n.sum())
        if not np.isfinite(mean):
            return Estimate(mean=None)
        r = len(sums)
        if r < 2:
            return Estimate(mean=_rounded(mean))
        if self._times is None:
            spread = np.square(sums - mean * self._n).sum() * r / (r - 1)
            half = NORMAL_95 * float(np.sqrt(spread)) / float(self._n.sum())
            low, high = mean - half, mean + half
        else:
            means = (self._times @ sums) / (self._times @ self._n)
            low, high = np.quantile(means, (0.025, 0.975))
        return Estimate(mean=_rounded(mean), low=_rounded(low), high=_rounded(high))


class Comparison:
    """Running sums at one temperature."""

    def __init__(
        self, temperature: float, keeps: KeptSet, encoding: EncodingRecord, *, rows: int
    ) -> None:
        """`rows` (R): how many are measured."""
        self.temperature = temperature
        self.is_sample = keeps.sample
        # A sample without ids that are sure keeps counts, which are nobody's log-probability.
        self._with_values = keeps.sure or (temperature == 1 and not self.is_sample)
        self._encoding = encoding
        self._rows = rows
        self._sums: dict[str, Float64] = {}
        """Of each figure, each row's sum `[R]`."""
        self._bins = np.zeros((2, 3, BINS))
        """Teacher's and stored: positions, confidence and hits of each bin."""
        self._gradients: Tensor | None = None
        """Sums of the dense and of the stored targets' gradient, `[2, V]`."""
        self._values = 0
        self._largest = 0.0
        self._within = 0

    def add(
        self,
        logits: Tensor,
        noise: Tensor,
        targets: SoftTargets,
        labels: Tensor,
        rows: npt.NDArray[np.int64],
    ) -> None:
        """Compare n positions.

        Args:
            logits: the teacher's, `[n, V] float64`.
            noise: of the student's logits, `[n, V]`.
            targets: as stored, of n positions, all soft.
            labels: `[n] int64`, on the device of the logits; `UNLABELLED` where none is known.
            rows: `[n]`: of which of the R rows each is.
        """
        t = self.temperature
        logp = torch.log_softmax(logits / t, 1)
        q = torch.softmax((logits + noise) / t, 1)
        stored = _Stored(targets, t, logits.device)
        p, kept_logp = logp.exp(), logp.gather(1, stored.ids)
        kept_p = kept_logp.exp().where(stored.kept, 0)
        outside = p.scatter(1, stored.ids, 0).sum(1)
        gradient = q - p
        if self.is_sample:
            mine = q.scatter_add(1, stored.ids, -stored.p)
            figures = _of_sample(p, logp, kept_p, kept_logp, stored)
        else:
            mine = _bucket_gradient(q, stored)
            figures = _divergences(p, logp, kept_p, kept_logp, outside, stored)
            head_only = q.scatter_add(1, stored.ids, -stored.log_head_only.exp())
            figures["gradient_angle_without_tail"] = _angle(gradient, head_only)
        figures["covered_mass"] = kept_p.sum(1)
        figures["gradient_angle"] = _angle(gradient, mine)
        figures["gradient_norm_ratio"] = mine.norm(dim=1) / gradient.norm(dim=1)
        best = logp.argmax(1)
        first, slot = stored.log_p.max(1)
        at_best = stored.log_p.where(stored.kept & (stored.ids == best[:, None]), -torch.inf)
        figures["top1_agreement"] = (at_best.amax(1) == first).double()
        chosen = stored.ids.gather(1, slot[:, None])[:, 0]
        known = labels != UNLABELLED
        self._calibrate(0, p.gather(1, best[:, None])[:, 0][known], (best == labels)[known])
        self._calibrate(1, first.exp()[known], (chosen == labels)[known])
        for name, values in figures.items():
            sums = self._sums.setdefault(name, np.zeros(self._rows))
            sums += np.bincount(rows, weights=values.cpu().numpy(), minlength=self._rows)
        both = torch.stack([gradient.sum(0), mine.sum(0)])
        self._gradients = both if self._gradients is None else self._gradients + both
        if self._with_values:
            self._compare_values(kept_logp, stored)

    def result(self, resampling: Resampling) -> FidelityAt:
        """The figures of all rows."""
        estimates = {name: resampling.estimate(sums) for name, sums in self._sums.items()}
        teacher, stored = (_calibration_error(bins) for bins in self._bins)
        assert self._gradients is not None, "no position was added"
        total = _angle(self._gradients[:1], self._gradients[1:])
        sample = None
        if self.is_sample:
            sample = SampleCheck(
                excess=estimates.pop("excess"), squared_error=estimates.pop("squared_error")
            )
        error = LogProbError(
            values=self._values,
            largest=_rounded(self._largest),
            within=_rounded(self._within / max(self._values, 1)),
        )
        return FidelityAt(
            temperature=self.temperature,
            ece_teacher=None if teacher is None else _rounded(teacher),
            ece_drift=None if teacher is None or stored is None else _rounded(stored - teacher),
            mean_gradient_angle=_rounded(float(total)),
            sample=sample,
            log_prob_error=error if self._with_values and self._values else None,
            **estimates,
        )

    def _calibrate(self, which: int, confidence: Tensor, hit: Tensor) -> None:
        sure, right = confidence.cpu().numpy(), hit.double().cpu().numpy()
        place = np.minimum((sure * BINS).astype(np.int64), BINS - 1)
        for i, weights in enumerate((np.ones_like(sure), sure, right)):
            self._bins[which, i] += np.bincount(place, weights=weights, minlength=BINS)

    def _compare_values(self, kept_logp: Tensor, stored: _Stored) -> None:
        """The largest error of a log-probability, and how many keep the promise of docs/format.md, section 8.

        The encodings in steps promise it of what a reader derives. The floating ones promise it of the values in
        the file; a derived one also has the error of the sum that it is divided by, and of the log-odds.
        """
        relative, absolute = self._encoding.relative_error, self._encoding.absolute_error
        bound = relative * stored.log_p.where(stored.kept, 0).abs() + absolute
        chosen = stored.kept
        if self.is_sample:
            # The ids that were drawn share the smallest weight; those above it are the head.
            smallest = stored.log_p.where(stored.kept, torch.inf).amin(1, keepdim=True)
            margin = 2 * (relative * smallest.abs() + absolute) + ROUNDING
            chosen = chosen & (stored.log_p > smallest + margin)
        if relative:
            of_sum = (stored.log_head_only.exp() * bound).sum(1)
            odds = relative * stored.odds.nan_to_num(neginf=0.0).abs() + absolute
            bound = bound + (of_sum + stored.log_tail.exp() * odds)[:, None]
        error = (stored.log_p - kept_logp).abs()[chosen]
        if error.numel():
            self._values += error.numel()
            self._largest = max(self._largest, float(error.max()))
            self._within += int((error <= bound[chosen] + ROUNDING).sum())


class _Stored:
    """Stored targets at one temperature, in float64: `[n, K]`, and `[n]` of the tail."""

    def __init__(self, targets: SoftTargets, temperature: float, device: torch.device) -> None:
        bins = torch.from_numpy(targets.log_bins(temperature)).to(device)
        odds = targets.log_odds[:, targets.grid_index(temperature)]
        self.kept = torch.from_numpy(targets.kept).to(device)
        self.ids = torch.from_numpy(targets.ids.astype(np.int64)).to(device)
        self.odds = torch.from_numpy(odds.astype(np.float64)).to(device)
        self.log_p, self.log_tail = bins[:, :-1], bins[:, -1]
        self.log_head_only = torch.log_softmax(self.log_p, 1)
        self.p = self.log_p.exp()
        self.ids_outside = targets.vocab_size - self.kept.sum(1)


def _divergences(
    p: Tensor, logp: Tensor, kept_p: Tensor, kept_logp: Tensor, outside: Tensor, stored: _Stored
) -> dict[str, Tensor]:
    """Each `[n]`; +inf where the store leaves no room for what the teacher thinks possible."""
    nothing = outside == 0  # then its share of a sum is 0, whatever the logarithms say
    of_kept = (kept_p * stored.log_p.where(stored.kept, 0)).sum(1)
    even = stored.log_tail - stored.ids_outside.clamp_min(1).log()
    kl = (p * logp).sum(1) - of_kept - (outside * even).where(~nothing, 0)
    bucket = (kept_p * (kept_logp - stored.log_p).where(stored.kept, 0)).sum(1)
    bucket = bucket + (outside * (outside.log() - stored.log_tail)).where(~nothing, 0)
    r = stored.log_head_only
    without = (r.exp() * (r - kept_logp).where(stored.kept, 0)).sum(1)
    # A divergence is not negative: below zero is the rounding of a sum.
    return {
        "kl": kl.clamp_min(0),
        "kl_tail_bucket": bucket.clamp_min(0),
        "kl_without_tail": without.clamp_min(0),
    }


def _of_sample(
    p: Tensor, logp: Tensor, kept_p: Tensor, kept_logp: Tensor, stored: _Stored
) -> dict[str, Tensor]:
    weights = stored.p
    cross = -(weights * kept_logp.where(stored.kept, 0)).sum(1)
    squared = (p * p).sum(1) - (kept_p * kept_p).sum(1) + ((weights - kept_p) ** 2).sum(1)
    return {"excess": cross + (p * logp).sum(1), "squared_error": squared}


def _bucket_gradient(q: Tensor, stored: _Stored) -> Tensor:
    """With respect to a student's logits `[n, V]`, of the cross-entropy on K kept ids and one bucket of all others."""
    others = q.scatter(1, stored.ids, 0)
    mass = others.sum(1)
    share = (stored.log_tail.exp() / mass).where(mass > 0, 0)
    return (q - others * share[:, None]).scatter_add(1, stored.ids, -stored.p)


def _angle(a: Tensor, b: Tensor) -> Tensor:
    """Degrees between rows `[n, V]`, exact for small angles too."""
    a = a / a.norm(dim=1, keepdim=True)
    b = b / b.norm(dim=1, keepdim=True)
    return torch.rad2deg(2 * torch.atan2((a - b).norm(dim=1), (a + b).norm(dim=1)))


def _calibration_error(bins: Float64) -> float | None:
    n, confidence, hits = bins
    if not n.sum():
        return None  # no label is known
    return float(np.abs(confidence - hits).sum() / n.sum())


def _rounded(value: float) -> float:
    """Six digits: more would be noise."""
    return float(f"{value:.6g}")
