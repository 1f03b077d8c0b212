"""`vllm:PATH`: a causal LM in a local folder, run by vLLM on this machine, on one device or several (`?tp=`).

    vllm:PATH               its pooler selects, beside the model (`vllm_pool.py`): all that `hf:` gives
    vllm:PATH?seam=worker   its workers do, in any engine that generates (`vllm_work.py`)
    vllm:PATH?seam=states   it gives last hidden states, and the model's head runs here (`vllm_states.py`)
    vllm:PATH?seam=list     it lists the top ids' log-probabilities at T=1 (`vllm_list.py`)

Prefix caching is off: what is cached is not computed again, and so is not given. The head computes in float32.
Documents that share a row are sequences of their own.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from softlabels.core.devices import choose
from softlabels.core.local_model import LocalModel
from softlabels.core.registry import name_of, without_folder
from softlabels.errors import ConfigError, TeacherError
from softlabels.format.identity import TeacherRecord
from softlabels.teachers import Teacher, TeacherOptions, causal_only
from softlabels.teachers.hf_source import context_of, digest_weights
from softlabels.teachers.tokenizer import check_covers, load_tokenizer
from softlabels.teachers.vllm_engine import SEAMS, Arguments, Vllm, module_of
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
    path, written = name_of(argument)
    arguments = Arguments.parse(written, spec=f"vllm:{argument}")
    seam = "" if arguments.seam == SEAMS[0] else f"?seam={arguments.seam}"
    spec = without_folder(f"vllm:{path}") + seam
    causal_only(options, spec)
    folder = Path(path)
    if not folder.is_dir():
        raise TeacherError(f"vllm:{path}: no such folder; give the path of a model folder")
    vllm, device = module_of(arguments)
    if options.device not in ("auto", device):
        raise ConfigError(f"--device {options.device}: this vLLM runs on {device}")
    import transformers

    config = transformers.AutoConfig.from_pretrained(folder)
    architectures = list(getattr(config, "architectures", None) or ())
    if len(architectures) != 1:
        raise TeacherError(
            f"vllm:{path}: its config.json names {architectures}, expected one architecture"
        )
    dtype = _dtype(options, config, device)
    model = LocalModel(folder=folder, gguf=None, name=folder.resolve().name)
    record = TeacherRecord(
        spec=spec,
        name=model.name,
        revision=None,
        weights_sha256=digest_weights(model, f"vllm:{path}"),
        dtype=dtype,
        device=device,
        engine=f"vllm {vllm.__version__}",
        vocab_size=int(config.get_text_config().vocab_size),
        parameters=0,
    )
    tokenizer = load_tokenizer(folder, spec=spec)
    check_covers(tokenizer.vocab_size, record)
    reads = context_of(config)
    if arguments.max_len is not None:
        if reads is not None and arguments.max_len > reads:
            raise ConfigError(
                f"--teacher vllm:{argument}: max_len is {arguments.max_len}, the model reads {reads} tokens at most"
            )
        reads = arguments.max_len
    found = Vllm(
        vllm=vllm,
        model=model,
        arguments=arguments,
        record=record,
        tokenizer=tokenizer,
        architecture=architectures[0],
        context=reads,
        head_bytes=options.chunk_bytes(device),
    )
    if arguments.seam == "states":
        return VllmStates(found, options)
    if arguments.seam == "list":
        return VllmLists(found)
    return VllmWorkers(found) if arguments.seam == "worker" else VllmPools(found)


def _dtype(options: TeacherOptions, config: Any, device: str) -> str:
    """`auto`: on a CPU what is measured to be faster, else bfloat16, or float16 if the weights are of that."""
    if options.dtype != "auto" or device == "cpu":
        choice = choose("cpu", options.dtype)
        options.notice(
            f"teacher: vLLM on {device}; dtype: {choice.reason.rpartition('dtype: ')[2]}"
        )
        return choice.dtype_name
    own = str(getattr(config, "dtype", None) or "float32").removeprefix("torch.")
    return own if own == "float16" else "bfloat16"
