"""Every place in the code that changes a file, read from the source: the table's writers must run them all."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

__all__ = ["EXEMPT", "READ_ONLY", "sites"]

ROOT = Path(__file__).parents[2]
PACKAGES = ("softlabels", "trainers")
OURS = {
    "softlabels.core.durable": (
        "publish",
        "replace",
        "publish_link",
        "appearing",
        "make_folder",
        "sweep",
    ),
    "softlabels.core.folders": (
        "filling",
        "publish_folder",
        "remove_folder",
        "mend_folders",
        "sweep_folders",
    ),
    "softlabels.core.inside": ("open_part",),
}
"""Our own functions that write."""
METHODS = {
    *("write_text", "write_bytes", "mkdir", "rmdir", "unlink", "rename", "touch"),
    *("symlink_to", "hardlink_to", "save_pretrained", "chmod"),
}
OTHERS = {
    *("os.open", "os.link", "os.rename", "os.replace", "os.unlink", "os.remove", "os.mkdir"),
    *("os.makedirs", "os.rmdir", "os.utime", "os.truncate", "os.symlink", "shutil.rmtree"),
    *("shutil.copyfile", "shutil.copy", "shutil.copytree", "shutil.move", "np.save", "np.savez"),
    *("torch.save", "pq.write_table", "pq.ParquetWriter", "save_file", "SummaryWriter"),
    *("tempfile.mkdtemp", "tempfile.TemporaryDirectory", "TemporaryDirectory"),
    *("NamedTemporaryFile", "tempfile.NamedTemporaryFile", "ir.save", "onnx.save"),
}

_SCRATCH = "a scratch folder of the operating system's, gone at its end"
_FILLED = "fills a temporary folder that its caller publishes, as the student's and the export's of the table"

EXEMPT: dict[str, str] = {
    "softlabels/estimators/native.py:_built": _SCRATCH,
    "softlabels/store/signature.py:PublicKey.__init__": _SCRATCH,
    "softlabels/store/signature.py:PublicKey._config": _SCRATCH,
    "softlabels/store/signature.py:PublicKey.check": _SCRATCH,
    "softlabels/teachers/tokenizer.py:FastTokenizer.files": _SCRATCH,
    "softlabels/testing/containers.py:_check_columns": _SCRATCH,
    "trainers/testing.py:check_student": _SCRATCH,
    "trainers/generation/opd.py:_write": "makes the folder in which generate and build write, which the table has",
    "trainers/exports/latency.py:measure": _SCRATCH,
    "trainers/exports/latency.py:_converted": _SCRATCH,
    "trainers/exports/latency.py:_write_inputs": _SCRATCH,
    "trainers/exports/latency.py:_in_a_process": _SCRATCH,
    "trainers/domains/image_classification.py:ImageClassification.describe": _FILLED,
    "trainers/exports/compressed.py:CompressedTensors.write": _FILLED,
    "trainers/exports/onnx_int8.py:OnnxInt8.write": _FILLED,
    "trainers/integrations/trl.py:_tokenizer": _SCRATCH,
    "trainers/students/adapters.py:Adapter.save": _FILLED,
    "trainers/students/adapters.py:_write_json": _FILLED,
    "trainers/students/images.py:ImageStudent.save": _FILLED,
}
"""Places that no writer of the table runs, each with the reason."""

READ_ONLY = {
    "softlabels check": "check",
    "softlabels size": "size",
    "softlabels inspect": "inspect",
    "softlabels verify": "verify",
    "softlabels diff": "diff",
    "softlabels status": "status",
}
"""Commands that change nothing, each with the job that shows it."""
COMPOSED = {
    "softlabels demo": "runs the other commands, which the table has; its own file is a writer of the table",
    "softtrain latency": "measures in a scratch folder of the operating system's, and prints",
    "softtrain opd": "does what generate, build and run do, which the table has; its record is written as run.json is",
    "softtrain sweep": "runs `softtrain run`, which the table has, in processes of its own",
}
"""Commands that are no writers of their own."""


@cache
def sites() -> dict[str, list[str]]:
    """`FILE:FUNCTION` of each place, and what is called there."""
    found: dict[str, list[str]] = {}
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            tree = ast.parse(path.read_text(encoding="utf-8"))
            ours = _imported(tree)
            for function, call in _calls(tree, ""):
                if (what := _writes(call, ours)) is not None:
                    name = f"{path.relative_to(ROOT).as_posix()}:{function}"
                    found.setdefault(name, []).append(what)
    return found


def _imported(tree: ast.Module) -> set[str]:
    """Names that a module has from `OURS`."""
    return {
        alias.asname or alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module in OURS
        for alias in node.names
        if alias.name in OURS[node.module]
    }


def _calls(node: ast.AST, function: str) -> Iterator[tuple[str, ast.Call]]:
    for child in ast.iter_child_nodes(node):
        inside = function
        if isinstance(child, ast.ClassDef):
            inside = f"{function}{child.name}."
        elif isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
            inside = f"{function}{child.name}.<locals>."
        if isinstance(child, ast.Call):
            yield function.removesuffix(".<locals>.").removesuffix("."), child
        yield from _calls(child, inside)


def _writes(call: ast.Call, ours: set[str]) -> str | None:
    """What it is that a call writes with; None: it does not write."""
    name = ast.unparse(call.func)
    last = name.rpartition(".")[2]
    if name in ours or name in OTHERS or (last in METHODS and name != last):
        return last
    if last == "replace" and name != last and len(call.args) == 1 and not call.keywords:
        return "Path.replace"  # of a text it has two
    if last == "open":
        mode = call.args[1] if name == "open" and len(call.args) > 1 else None
        if name != "open" and call.args:
            mode = call.args[0]
        mode = next((k.value for k in call.keywords if k.arg == "mode"), mode)
        text = mode.value if isinstance(mode, ast.Constant) and isinstance(mode.value, str) else ""
        return f"open {text}" if set(text) & set("wax+") and len(text) <= 3 else None
    return None
