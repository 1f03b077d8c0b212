"""`py:MODULE.FUNCTION`: any callable from a batch to logits.

    def function(input_ids, attention_mask):
        \"\"\"[B, S] int64 and [B, S] int64 (0: padding, on the right), torch, on the CPU -> [B, S, V] floating
        point.\"\"\"

It may return a torch tensor on any device, or anything that NumPy reads. Each line of the batch is one document, or a
piece of one. Attributes of the callable, all optional, say what can't be seen from outside:

    tokenizer        path of a folder with tokenizer.json; `?tokenizer=PATH` in the argument wins
    weights_sha256   64 hex digits that change whenever its numbers do
    parameters       how many it has

The record's digest is over the source of the module that defines the callable, and `weights_sha256`. Without the latter
other weights behind the same source are not noticed; the user is told so.
"""

from __future__ import annotations

import hashlib
import importlib
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from softlabels.core.registry import name_of
from softlabels.errors import ConfigError, TeacherError
from softlabels.format.identity import TeacherRecord
from softlabels.teachers import TeacherOptions, causal_only
from softlabels.teachers.segments import Rectangle, SegmentTeacher
from softlabels.teachers.tokenizer import check_covers, load_tokenizer


class CallableTeacher(SegmentTeacher):
    """`MODULE.FUNCTION?tokenizer=PATH`, a callable that gives logits; the working directory is looked in last.

    Raises:
        ConfigError: a malformed argument, or a device or dtype that the callable does not compute in.
        TeacherError: no such callable, or it does not give logits.
    """

    def __init__(self, argument: str, options: TeacherOptions) -> None:
        dotted, written = name_of(argument)
        extra = dict(written)
        module_name, _, name = dotted.rpartition(".")
        if not module_name or not name or set(extra) - {"tokenizer"}:
            raise ConfigError(
                f"--teacher py:{argument}: expected py:MODULE.FUNCTION or py:MODULE.FUNCTION?tokenizer=PATH"
            )
        self.spec = spec = f"py:{dotted}"
        causal_only(options, spec)
        self._function = function = _import(module_name, name, spec)
        where = extra.get("tokenizer") or getattr(function, "tokenizer", None)
        if where is None:
            raise TeacherError(
                f"{spec}: has no tokenizer; give the folder of its tokenizer.json, as {spec}?tokenizer=PATH or as the "
                "callable's attribute `tokenizer`"
            )
        self.tokenizer = load_tokenizer(Path(str(where)), spec=spec)
        probe = self.probe()
        dtype = str(probe.dtype).removeprefix("torch.")
        for flag, asked, found in (
            ("--dtype", options.dtype, dtype),
            ("--device", options.device, probe.device.type),
        ):
            if asked not in ("auto", found):
                raise ConfigError(
                    f"{flag} {asked}: {spec} decides itself, and gives {found}; leave {flag} out, or change the "
                    "callable"
                )
        self.budget = options.chunk_bytes(probe.device.type)
        self.record = TeacherRecord(
            spec=spec,
            name=spec.removeprefix("py:"),
            revision=None,
            weights_sha256=_digest(function, spec, options.notice),
            dtype=dtype,
            device=probe.device.type,
            engine=f"python {sys.version_info.major}.{sys.version_info.minor}, torch {torch.__version__}",
            vocab_size=int(probe.shape[2]),
            parameters=int(getattr(function, "parameters", 0)),
        )
        check_covers(self.tokenizer.vocab_size, self.record)

    def forward(self, rectangle: Rectangle) -> Tensor:
        """Logits `[B, S, V]`."""
        ids, mask = (torch.from_numpy(a) for a in rectangle[:2])
        try:
            logits = self._function(ids, mask)
        except Exception as e:  # the user's own program: it may raise anything
            raise TeacherError(
                f"{self.spec}: failed on ids {list(ids.shape)}: {type(e).__name__}: {e}"
            ) from e
        if isinstance(logits, Tensor):
            return logits.detach()
        try:
            return torch.from_numpy(np.ascontiguousarray(logits))
        except TypeError as e:
            raise TeacherError(
                f"{self.spec}: returned a {type(logits).__name__}, expected logits as a tensor or an array"
            ) from e


def _import(module_name: str, name: str, spec: str) -> Any:
    here = str(Path.cwd())
    added = here not in sys.path
    if added:
        sys.path.append(here)
    try:
        module = importlib.import_module(module_name)
    except Exception as e:  # importing runs the user's own program
        raise TeacherError(
            f"{spec}: importing {module_name} failed ({type(e).__name__}: {e}); is it installed, or in {here}?"
        ) from e
    finally:
        if added:
            sys.path.remove(here)
    function = getattr(module, name, None)
    if not callable(function):
        found = "has no such attribute" if function is None else f"is a {type(function).__name__}"
        raise TeacherError(f"{spec}: {module_name}.{name} {found}; expected a callable")
    return function


def _digest(function: Any, spec: str, notice: Callable[[str], None]) -> str:
    """sha256 over the defining module's source and the digest that the callable declares."""
    declared = getattr(function, "weights_sha256", "")
    if declared and not re.fullmatch("[0-9a-f]{64}", str(declared)):
        raise TeacherError(
            f"{spec}: its weights_sha256 is {declared!r}; expected 64 hexadecimal digits"
        )
    home = getattr(function, "__module__", None) or type(function).__module__
    source = getattr(sys.modules.get(home), "__file__", None)
    if source is None:
        raise TeacherError(
            f"{spec}: is defined in {home}, which has no source file to record; put it into a .py file"
        )
    if not declared:
        notice(
            f"warning: {spec} declares no weights_sha256, so the store records its source code only: other weights "
            "behind the same source would not be noticed"
        )
    code = hashlib.sha256(Path(source).read_bytes()).hexdigest()
    return hashlib.sha256(f"softlabels py 1\n{code}\n{declared}\n".encode()).hexdigest()
