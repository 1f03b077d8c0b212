"""The export's README.md: what it is, where it comes from, how good it is, how to use it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trainers.exports.domains import Exported
from trainers.exports.formats import Format
from trainers.exports.record import ExportRecord

PREPARED_WITH = {"tokenizers": "tokenizers", "PIL": "pillow"}
"""What the lines that prepare inputs name, and the package that it is in."""


def card(
    record: ExportRecord, config: Mapping[str, Any], form: Format, domain: Exported, folder: Path
) -> str:
    """Markdown.

    Args:
        record: of the export, whose `files` may still lack the card itself.
        config: the run's.
        form: of the export.
        domain: of the student.
        folder: of the export.
    """
    source, check = record.source, record.check
    model = f"{record.model_bytes:,} bytes"
    opset = "" if record.opset is None else f", opset {record.opset}"
    details = "".join(
        f"| {name.replace('_', ' ')} | {_plain(value)} |\n"
        for name, value in record.details.items()
    )
    versions = ", ".join(f"{name} {v}" for name, v in sorted(record.versions.items()))
    rule = (
        f"log-probabilities within {check.tolerance:g} nats"
        if check.rule == "log-probability"
        else f"at most {check.tolerance:.3g} of the student's score lost"
    )
    origin = domain.origin(folder)
    code = f"{domain.preparation(folder, record.details)}{form.snippet(origin)}"
    needs = form.needs(origin) + "".join(
        f" {package}" for word, package in PREPARED_WITH.items() if word in code
    )
    return f"""---
tags:
- softlabels
- knowledge-distillation
- {record.domain}
---

# A student of {", ".join(source.teachers)}

Exported as `{record.kind}`. It was trained on a teacher's soft targets and inherits the teacher's errors.

| | |
|---|---|
| model | {record.parameters:,} parameters, {model}{opset} |
| teacher | {", ".join(f"{name} (weights sha256 `{d[:12]}…`)" for name, d in source.teachers.items())} |
| trained on | {", ".join(source.corpora)} |
| licence of the targets | {", ".join(source.licences)} |
| training | {config.get("steps")} steps of {config.get("batch_size")} rows, loss `{config.get("loss")}`, alpha \
{config.get("alpha")}, T={config.get("temperature")}, weights `{source.weights}` |
{details}| made with | {versions} |

The licence of these weights is its maker's to state; that of the targets and of the corpus limits the choice.

## Checked

On {check.rows:,} held-out rows ({check.labels:,} labels), beside the student in PyTorch. Allowed: {rule}.

| | this export | the student |
|---|---|---|
| negative log-likelihood, nats | {check.nll:.4f} | {check.nll_of_student:.4f} |
| accuracy of the most probable | {check.accuracy:.4f} | {check.accuracy_of_student:.4f} |
| largest difference of a log-probability, nats | {check.largest_difference:.3g} | |
| same most probable | {check.agreement:.4f} | |

## Use it

{domain.usage}

Needs `pip install {needs}`.

```python
{code.strip()}
```

`export.json` holds all figures and the sha256 of each file.
"""


def _plain(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"`{k}`: {v}" for k, v in value.items()) or "none"
    return str(value)
