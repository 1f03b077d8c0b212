"""`hf:PATH`: a model that is on this machine (`local_model.py`), as transformers loads it; GGUF files included.

What loads it and how rows are fed to it is its domain's (`RowMaker.transformers_teacher`).
"""

from __future__ import annotations

from importlib import import_module

from softlabels.core.local_model import find_model, offline_transformers
from softlabels.domains import DOMAINS
from softlabels.errors import ConfigError, TeacherError
from softlabels.teachers import Teacher, TeacherOptions
from softlabels.teachers.hf_source import HFSource


def load_hf(path: str, options: TeacherOptions) -> Teacher:
    """Load model and tokenizer of a folder, a `.gguf` file or the hub cache.

    Raises:
        ConfigError: transformers have no models of the domain.
        TeacherError: no such model, or one that cannot teach in the domain.
        MissingExtraError: transformers (or gguf) is not installed.
    """
    found = find_model(path, where=f"hf:{path}", error=TeacherError)
    transformers = offline_transformers("--teacher hf:PATH")
    domain = DOMAINS.load(options.domain)
    if found.gguf is not None and not domain.chained:
        raise TeacherError(
            f"hf:{path}: a GGUF file holds a causal LM; give the folder of a {options.domain} model"
        )
    if (teacher := domain.maker.transformers_teacher) is None:
        raise ConfigError(f"--teacher hf:{path}: serves no rows of the domain {options.domain}")
    module, _, attribute = teacher.partition(":")
    made: Teacher = getattr(import_module(module), attribute)(
        HFSource(argument=path, found=found, options=options, transformers=transformers)
    )
    return made
