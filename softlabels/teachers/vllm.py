"""`vllm:PATH`: a causal LM in a local folder, run by vLLM on this machine, on one device or several (`?tp=`).

    vllm:PATH               its pooler selects, beside the model (`vllm_pool.py`): all that `hf:` gives
    vllm:PATH?seam=worker   its workers do, in any engine that generates (`vllm_work.py`)
    vllm:PATH?seam=states   it gives last hidden states, and the model's head runs here (`vllm_states.py`)
    vllm:PATH?seam=list     it lists the top ids' log-probabilities at T=1 (`vllm_list.py`)

Prefix caching is off: what is cached is not computed again, and so is not given. The head computes in float32.
Documents that share a row are sequences of their own.
"""

from __future__ import annotations

from softlabels.teachers import Teacher, TeacherOptions
from softlabels.teachers.vllm_engine import Vllm, module_of
from softlabels.teachers.vllm_list import VllmLists
from softlabels.teachers.vllm_pool import VllmPools
from softlabels.teachers.vllm_states import VllmStates
from softlabels.teachers.vllm_work import VllmWorkers


def load_vllm(argument: str, options: TeacherOptions) -> Teacher:
    """Look at the folder; the engine starts when it is first needed.

    Raises:
        TeacherError: no such folder, no weights, or no tokenizer.
        ConfigError: a malformed argument, or a device that this vLLM does not run on.
        MissingExtraError: vLLM is not installed.
    """
    found = Vllm.at(argument, options, module_of)
    if found.arguments.seam == "states":
        return VllmStates(found, options)
    if found.arguments.seam == "list":
        return VllmLists(found)
    return VllmWorkers(found) if found.arguments.seam == "worker" else VllmPools(found)
