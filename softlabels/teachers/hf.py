"""`hf:PATH`: a model that is on this machine (`local_model.py`), as transformers loads it; GGUF files included.

What loads it and how rows are fed to it is its domain's (`RowMaker.transformers_teacher`); here is what all have in
common.
"""

from __future__ import annotations

from importlib import import_module

from softlabels.core.local_model import LocalModel, find_model, offline_transformers
from softlabels.core.registry import name_of
from softlabels.domains import DOMAINS
from softlabels.errors import ConfigError, TeacherError
from softlabels.teachers import SecondPath, Teacher, TeacherOptions, open_teacher
from softlabels.teachers.hf_source import HFSource, Placement
from softlabels.teachers.tensor_parallel import TensorParallelTeacher


def load_hf(path: str, options: TeacherOptions) -> Teacher:
    """Load model and tokenizer of a folder, a `.gguf` file or the hub cache.

    Raises:
        ConfigError: transformers have no models of the domain.
        TeacherError: no such model, or one that cannot teach in the domain.
        MissingExtraError: transformers (or gguf) is not installed.
    """
    path, written = name_of(path)
    placement = Placement.parse(written, spec=f"hf:{path}")
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
    if placement.settings and (found.gguf is not None or not domain.chained):
        raise ConfigError(
            f"--teacher hf:{path}: tp and device_map place causal LMs that lie in folders of safetensors"
        )
    source = HFSource(
        argument=path,
        placement=placement,
        found=found,
        options=options,
        transformers=transformers,
    )
    made: Teacher = getattr(import_module(module), attribute)(source)
    if placement.tp:
        return TensorParallelTeacher(made)  # type: ignore[arg-type]  # causal LMs have a head
    return made


def second_path(model: LocalModel, dtype: str) -> SecondPath:
    """`hf:` of a folder, on the CPU: the memory of the device is an engine's."""
    return SecondPath(
        load=lambda: open_teacher(f"hf:{model.folder}", TeacherOptions(device="cpu", dtype=dtype)),
        weights_bytes=sum(path.stat().st_size for path in model.weight_files),
    )
