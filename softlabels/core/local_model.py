"""Where a model of transformers lies on this machine, and how it is loaded: `hf:` of teachers and of students alike.

    hf:FOLDER      a folder with config.json and weights, or with one .gguf file
    hf:FILE.gguf   one GGUF file
    hf:ORG/NAME    a model of the Hugging Face hub, if the local cache has it

Nothing is fetched: what is not here is refused with the command that fetches it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from softlabels.errors import MissingExtraError, SoftLabelsError

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
WEIGHTS = ("*.safetensors", "*.bin")


@dataclass(frozen=True, kw_only=True)
class LocalModel:
    """A model that is here."""

    folder: Path
    gguf: str | None
    """Name of the GGUF file in the folder that holds it; None for config.json and weights."""
    name: str
    """What records call it."""

    @property
    def source(self) -> Path:
        """The folder, or the GGUF file."""
        return self.folder if self.gguf is None else self.folder / self.gguf

    @property
    def settings(self) -> dict[str, str]:
        """What `from_pretrained` must be told besides the folder."""
        return {} if self.gguf is None else {"gguf_file": self.gguf}

    @property
    def weight_files(self) -> list[Path]:
        """The files that hold the weights, in order of name; none if there are none."""
        if self.gguf is not None:
            return [self.folder / self.gguf]
        return next((f for p in WEIGHTS if (f := sorted(self.folder.glob(p)))), [])


def offline_transformers(purpose: str) -> Any:
    """The transformers library, told to fetch nothing; `MissingExtraError` begins with `purpose`."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    try:
        import transformers
    except ImportError as e:
        raise MissingExtraError("transformers", "hf", purpose) from e
    transformers.utils.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    return transformers


def find_model(argument: str, *, where: str, error: type[SoftLabelsError]) -> LocalModel:
    """Find what `hf:ARGUMENT` names: a folder, a GGUF file, or a hub's model in the local cache.

    Args:
        where: how the message begins, e.g. `--student hf:PATH`.
        error: what to raise.
    """
    path = Path(argument)
    if path.is_file() and path.suffix == ".gguf":
        return LocalModel(folder=path.parent, gguf=path.name, name=path.stem)
    if path.is_dir():
        return _in_folder(path, path.resolve().name, where, error)
    if HUB_ID.fullmatch(argument):
        return _in_cache(argument, where, error)
    raise error(f"{where}: no such folder; give the path of a model folder or a .gguf file")


def _in_folder(folder: Path, name: str, where: str, error: type[SoftLabelsError]) -> LocalModel:
    if (folder / "config.json").exists():
        return LocalModel(folder=folder, gguf=None, name=name)
    ggufs = sorted(p.name for p in folder.glob("*.gguf"))
    if len(ggufs) == 1:
        return LocalModel(folder=folder, gguf=ggufs[0], name=Path(ggufs[0]).stem)
    found = (
        f"{len(ggufs)} .gguf files: name one" if ggufs else "neither config.json nor a .gguf file"
    )
    raise error(f"{where}: the folder holds {found}")


def _in_cache(hub_id: str, where: str, error: type[SoftLabelsError]) -> LocalModel:
    name = hub_id.rpartition("/")[2]
    fetch = f"hf download {hub_id} --local-dir {name}"
    folder, cache = _cached(hub_id)
    if folder is None:
        raise error(
            f"{where}: no such folder here, and no such model in the local hub cache ({cache}); to fetch it from the "
            f"hub, run `{fetch}`, then name hf:{name}"
        )
    model = _in_folder(folder, name, where, error)
    if not model.weight_files:
        raise error(
            f"{where}: the local hub cache ({folder}) has the model without its weights; run `{fetch}`, then name "
            f"hf:{name}"
        )
    return model


def _cached(hub_id: str) -> tuple[Path | None, str]:
    """The folder of a hub's model in the local cache, or None; and the cache."""
    try:
        from huggingface_hub import constants, snapshot_download
        from huggingface_hub.errors import LocalEntryNotFoundError
    except ImportError:
        return None, "huggingface_hub is not installed"
    try:
        return Path(snapshot_download(hub_id, local_files_only=True)), constants.HF_HUB_CACHE
    except LocalEntryNotFoundError:
        return None, constants.HF_HUB_CACHE


@contextmanager
def loading(where: str, error: type[SoftLabelsError]) -> Iterator[None]:
    """Whatever a library raises over a model's files, which may be of any kind, as one sentence of class `error`."""
    try:
        yield
    except (SoftLabelsError, MemoryError):
        raise
    except Exception as e:
        said = str(e) if isinstance(e, OSError | ValueError) else f"{type(e).__name__}: {e}"
        raise error(f"{where}: transformers cannot load it: {said}") from e


def load_weights(loader: Any, model: LocalModel, *, dtype: Any, **settings: Any) -> Any:
    """Load a model by a class of transformers; one from GGUF as if it had never been quantised.

    Raises:
        MissingExtraError: GGUF needs libraries that are not installed.
        Exception: whatever transformers raises; see `loading`.
    """
    try:
        loaded = loader.from_pretrained(model.folder, dtype=dtype, **model.settings, **settings)
    except ImportError as e:
        if model.gguf is None:  # a quantiser's library, which transformers names
            raise
        raise MissingExtraError("gguf", "hf", f"the GGUF file {model.gguf}") from e
    return loaded if model.gguf is None else _clean_copy(loaded)


def _clean_copy(model: Any) -> Any:
    """The same weights in a model that does not remember its GGUF: ties restored, no quantiser.

    As loaded, it would refuse to be saved.
    """
    config = model.config.__class__(
        **{k: v for k, v in model.config.to_dict().items() if k != "quantization_config"}
    )
    clean = type(model)(config)
    clean.load_state_dict(model.state_dict())
    clean.tie_weights()
    return clean
