"""Every error a user can meet, as one tree.

    SoftLabelsError
    ├── ConfigError      (ValueError)    a flag, a config field or a combination of them
    ├── CorpusError      (ValueError)    the text to be taught on
    ├── TokenizerError   (ValueError)    two things tokenised differently
    ├── TeacherError     (RuntimeError)  the model cannot be loaded or understood
    │   └── NonFiniteError               the model gave NaN or infinity
    ├── TargetError      (ValueError)    a target breaks an invariant of SoftTargets
    ├── PairingError     (ValueError)    a loss, temperature or student that does not fit the store
    ├── FidelityError    (ValueError)    a store that is further from its teacher than was allowed
    ├── StoreError       (OSError)       a store that cannot be used
    │   ├── FormatError                  not a store, malformed, or made by a newer major version
    │   ├── IntegrityError               bytes missing, torn or altered
    │   ├── UnreadableError              a file that is there cannot be read now, and may well be intact
    │   ├── PlanError                    the folder holds another job
    │   ├── UnfinishedError              a store that is followed, and on which nobody is at work
    │   └── RemoteError                  an address that does not answer, or refuses
    ├── RunError         (OSError)       a training run that cannot be used
    ├── ExportError      (ValueError)    an exported student that does not answer as the student does
    └── MissingExtraError (ImportError)  an optional library is not installed

Each message says what was found, what was expected, where, and the way out.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

PACKAGE = Path(__file__).parent


class SoftLabelsError(Exception):
    """Base of every error this project raises on purpose."""

    exit_code = 1


class ConfigError(SoftLabelsError, ValueError):
    """A flag or config field has an impossible value."""

    exit_code = 2


class CorpusError(SoftLabelsError, ValueError):
    """The corpus cannot be read, or holds something that must not be taught."""


class TokenizerError(SoftLabelsError, ValueError):
    """A tokenizer does not match the one a store, a plan or a file declares."""


class TeacherError(SoftLabelsError, RuntimeError):
    """The teacher cannot be loaded, or its head is not understood."""


class NonFiniteError(TeacherError):
    """The teacher produced NaN or infinity."""


class TargetError(SoftLabelsError, ValueError):
    """A soft target breaks an invariant."""


class PairingError(SoftLabelsError, ValueError):
    """The store does not support what the trainer was asked to do with it."""


class FidelityError(SoftLabelsError, ValueError):
    """A store's targets are further from its teacher's distributions than was allowed."""


class StoreError(SoftLabelsError, OSError):
    """A store cannot be used."""


class FormatError(StoreError):
    """Not a store, malformed, or written by a newer major version."""


class IntegrityError(StoreError):
    """Bytes are missing, torn or altered."""


class UnreadableError(StoreError):
    """A file that is there cannot be read: no proof of damage, so nothing may be removed or made again for it."""


class PlanError(StoreError):
    """The output folder already holds a different job."""


class UnfinishedError(StoreError):
    """A store that is followed waits for builders, and none is at work."""


class RemoteError(StoreError):
    """What lies at an address cannot be reached, or may not be."""


class RunError(SoftLabelsError, OSError):
    """A training run's folder cannot be used."""


class ExportError(SoftLabelsError, ValueError):
    """An exported student does not give the student's answers."""


class MissingExtraError(SoftLabelsError, ImportError):
    """An optional library is needed."""

    exit_code = 2

    def __init__(self, library: str, extra: str, purpose: str) -> None:
        super().__init__(
            f"{purpose} needs {library}, which is not installed: {install_hint(extra)}"
        )


def first_line(error: BaseException) -> str:
    """Of what an error of another library says, the rest being its internals; its class if it says nothing."""
    lines = str(error).strip().splitlines()
    return lines[0][:300] if lines else type(error).__name__


def install_hint(extra: str, *, package: Path = PACKAGE, here: Path | None = None) -> str:
    """The command that installs an extra of this copy; it depends on where the copy came from.

    A checkout is installed again with the extra; the name alone finds something only where a package index gave us
    this copy.
    """
    checkout = package.parent
    if (checkout / "pyproject.toml").is_file():
        same = (here or Path.cwd()) == checkout
        return f"pip install -e '{'.' if same else checkout}[{extra}]'"
    source = _source()
    url = str(source.get("url", ""))
    if "dir_info" in source:
        return f"pip install '{unquote(urlsplit(url).path)}[{extra}]'"
    if "vcs_info" in source:
        url = f"{source['vcs_info'].get('vcs', 'git')}+{url}"
    return f"pip install 'softlabels[{extra}]{f' @ {url}' if url else ''}'"


def _source() -> dict[str, Any]:
    """What pip recorded of where it took us from (PEP 610); nothing, if that was an index."""
    from importlib.metadata import PackageNotFoundError, distribution

    try:
        text = distribution("softlabels").read_text("direct_url.json")
        found = json.loads(text) if text else {}
    except (PackageNotFoundError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
