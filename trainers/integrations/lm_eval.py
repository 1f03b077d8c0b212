"""A run's student as a model of lm-evaluation-harness, under the name `softtrain`.

    python -m trainers.integrations.lm_eval run --model softtrain --model_args run=RUN --tasks arc_easy

is the harness's own command line; from Python, import `SoftTrainLM` and give it, or "softtrain", to `simple_evaluate`.
"""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import Any, NoReturn

import torch

from softlabels.core.printable import printable
from softlabels.domains import DOMAINS
from softlabels.errors import ConfigError, MissingExtraError, PairingError, SoftLabelsError
from trainers.generation.prompts import Words
from trainers.run.finished import open_finished
from trainers.run.record import WEIGHTS, is_student


def _stop(error: SoftLabelsError) -> NoReturn:
    sys.stderr.write(f"error: {printable(str(error))}\n")
    sys.exit(error.exit_code)


try:
    from lm_eval.api.registry import register_model
    from lm_eval.models.huggingface import HFLM
except ImportError as e:
    missing = MissingExtraError("lm-eval", "evaluate", "trainers.integrations.lm_eval")
    if __name__ == "__main__":
        _stop(missing)
    raise missing from e

OURS = ("pretrained", "tokenizer", "revision", "subfolder", "gguf_file")
"""Arguments of HFLM that the run decides."""


@register_model("softtrain")
class SoftTrainLM(HFLM):
    """The harness's HFLM over a student and the tokenizer that its run saved.

    Args:
        run: folder of a finished run of a causal LM.
        weights: best, ema or student; by default the best on its held-out rows, of a run without `--heldout` the last.
        device: as for HFLM; by default the GPU, if there is one.
        hf: all else that HFLM takes: batch_size, dtype, max_length, add_bos_token, ...

    Raises:
        ConfigError: an argument that is missing, unknown, or not the user's to set.
        RunError: not a finished run, or it has no such weights or no tokenizer.
        PairingError: the tokenizer has ids that the student lacks.
    """

    add_bos_token: bool | None

    def __init__(
        self,
        run: Path | str | None = None,
        weights: str | None = None,
        device: str | None = None,
        **hf: Any,
    ) -> None:
        if run is None:
            raise ConfigError("--model_args: run=RUN is missing: the folder of a finished run")
        if set_here := [name for name in OURS if name in hf]:
            raise ConfigError(
                f"--model_args {set_here[0]}={hf[set_here[0]]}: is the run's to say; remove it, or use --model hf"
            )
        run = Path(str(run))  # the harness makes a number of what looks like one
        best = is_student(run / "best")
        weights = weights or ("best" if best else "student")
        if weights not in WEIGHTS:
            raise ConfigError(f"--model_args weights={weights}: expected {', '.join(WEIGHTS)}")
        self.finished = open_finished(run, weights)
        if not DOMAINS.load(self.finished.domain).chained:
            raise ConfigError(
                f"{run}: its student is of the domain {self.finished.domain}; the harness asks causal LMs only. "
                "softtrain eval and trainers.integrations.evaluate score the others"
            )
        folder = self.finished.folder.resolve()  # a relative one looks like a name on the Hub
        self._check_marks(Words(folder), hf)
        logging.getLogger(__name__).info("softtrain: %s", folder)
        device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        super().__init__(pretrained=str(folder), device=device, **hf)
        ids, v = len(self.tokenizer), self.model.get_output_embeddings().weight.shape[0]
        if ids > v:
            raise PairingError(
                f"{folder}: its tokenizer has {ids} ids, the student {v}, so text may hold ids that it does not know; "
                "use a run whose --vocab keeps all of the tokenizer's ids"
            )

    @staticmethod
    def _check_marks(words: Words, hf: dict[str, Any]) -> None:
        """The harness puts a mark before a text without context, and wants none after a context."""
        first = words.inner.bos_token_id
        if first is None and words.end is None and hf.get("prefix_token_id") is None:
            raise ConfigError(
                "--model_args: the run's tokenizer has neither a start nor an end mark to put before a text; give "
                "prefix_token_id=ID"
            )
        ids = words.inner("a")["input_ids"]
        if words.end is not None and ids[-1] == words.end and hf.get("add_bos_token") is not False:
            raise ConfigError(
                "--model_args: the run's tokenizer puts an end mark after every text, also after the context that is "
                "to be continued; give add_bos_token=False, which leaves out its marks"
            )

    def loglikelihood_rolling(self, *args: Any, **kwargs: Any) -> Any:
        """HFLM puts a mark before each text: the tokenizer's own would come twice, and be scored as text."""
        asked, self.add_bos_token = self.add_bos_token, False
        try:
            return super().loglikelihood_rolling(*args, **kwargs)
        finally:
            self.add_bos_token = asked

    def get_model_info(self) -> dict[str, Any]:
        """What the harness keeps with its results, and which weights these were."""
        finished, info = self.finished, dict(super().get_model_info())
        named = {n.split("_")[0]: digest for n, digest in finished.named_store().items()}
        return info | {
            "model_sha": finished.digest(),
            "softtrain_run": str(finished.run),
            "softtrain_weights": finished.weights,
            **{f"softtrain_{what}": digest for what, digest in named.items()},
        }


def main() -> None:
    """The harness's command line; our errors end it with a sentence."""
    from lm_eval.__main__ import cli_evaluate

    try:
        cli_evaluate()
    except SoftLabelsError as e:
        _stop(e)


if __name__ == "__main__":
    main()
