"""The store's README.md: what a person, or the Hub, reads first."""

from __future__ import annotations

from softlabels.core.printable import for_markdown, printable_record
from softlabels.format.fidelity_table import fidelity_rows
from softlabels.format.figures import figures_of
from softlabels.format.manifest import Manifest
from softlabels.making.licences import hub_licence

CONFIGS = """configs:
- config_name: default
  data_files:
  - split: train
    path: data/train-*.parquet
"""
DATASETS = """
The columns are plain Parquet (format.md of softlabels, section 4, says what each holds):

```python
import datasets

rows = datasets.load_dataset("PATH", split="train")
```
"""


def card(manifest: Manifest) -> str:
    """Markdown; its YAML head lets `datasets.load_dataset(STORE)` work where columns are Parquet's own.

    Names are others' and stay text: no HTML, link or table of theirs is in the page.
    """
    licence = hub_licence(manifest.licence)
    manifest = printable_record(manifest, for_markdown)
    identity = manifest.identity
    corpus, targets, teacher = identity.corpus, identity.targets, identity.teacher
    cost = manifest.cost
    figures = figures_of(manifest)
    hard_only = (
        f", of which {figures.soft_positions:,} have a soft target (`{targets.positions}`) "
        "and the others are hard-label only"
        if targets.positions is not None
        else ""
    )
    specs = ", ".join(f"`{s}`" for s in corpus.specs)
    grid = ", ".join(f"{t:g}" for t in targets.temperatures)
    mass = ", ".join(
        f"{m:.4f} at T={t:g}" for m, t in zip(figures.kept_mass, targets.temperatures, strict=True)
    )
    loss, accuracy = figures.teacher_nll, figures.accuracy
    unit = "token" if identity.classes is None else "label"
    perplexity = "not known" if loss is None else f"{loss:.4f} nats per {unit}"
    if accuracy is not None:
        perplexity += f", right about {accuracy:.2%}"
    domain = identity.domain
    if identity.classes is not None:
        domain += f" of {len(identity.classes)} classes"
    if (masking := identity.masking) is not None:
        views = "1 view" if masking.views == 1 else f"{masking.views} views"
        domain += f", {masking.share:.0%} of each text hidden, in {views}, targets where `{masking.targets}`"
    taught = "" if domain == "causal-lm" else f"| domain | {domain} |\n"
    parameters = f"{teacher.parameters:,} parameters" if teacher.parameters else "size not known"
    loadable = identity.encoding.plain and identity.encoding.container == "parquet"
    return f"""---
{CONFIGS if loadable else ""}tags:
- softlabels
- knowledge-distillation
{_yaml_lines(licence)}---

# Soft targets of {teacher.name}

A softlabels store, format {manifest.version}, made by {manifest.created_by}.
`softlabels verify .` checks every byte of it.

| | |
|---|---|
{_release(manifest)}| teacher | {teacher.name}, {parameters}, {teacher.dtype} on {teacher.device}, {teacher.engine} |
| teacher weights | sha256 `{teacher.weights_sha256}` |
| teacher's own loss here | {perplexity} |
| tokenizer | {identity.tokenizer.vocab_size:,} ids, sha256 `{identity.tokenizer.sha256}` |
{taught}| corpus | {specs}: {corpus.documents:,} documents, {corpus.tokens:,} tokens in {corpus.rows:,} rows |
| targets | {corpus.positions:,} positions{hard_only}, `{targets.estimator}` with k={targets.k}, temperatures {grid} |
| mass of the kept ids | {mass} |
| size | {manifest.data_bytes:,} bytes in {len(manifest.shards)} shards, {figures.bytes_per_position:.1f} per position |
{_columns(manifest)}| cost | {cost.seconds:,.0f} s of the teacher, {cost.tokens_per_second:,.0f} tokens/s |
| licence of the targets | {manifest.licence} |
{_fidelity(manifest)}
```python
import softlabels

store = softlabels.open_store("PATH")
row = store.row(0)
row.targets.ids, row.targets.probs({targets.temperatures[0]:g})
```
{DATASETS if loadable else ""}"""


def _yaml_lines(lines: list[str]) -> str:
    return "".join(f"{line}\n" for line in lines)


def _release(manifest: Manifest) -> str:
    """Name and version, if its maker signed it with any."""
    release = manifest.release
    return "" if release is None else f"| release | {release.name}, version {release.version} |\n"


def _columns(manifest: Manifest) -> str:
    """One row of the table, the largest column first; nothing where columns are not Parquet's own."""
    if not manifest.column_bytes:
        return ""
    largest_first = sorted(manifest.column_bytes.items(), key=lambda item: (-item[1], item[0]))
    each = ", ".join(
        f"`{name}` {size / manifest.identity.corpus.positions:.2f}" for name, size in largest_first
    )
    return f"| bytes per position, by column | {each} |\n"


def _fidelity(manifest: Manifest) -> str:
    """What was measured, as a section; nothing if nobody has measured."""
    fidelity = manifest.fidelity
    if fidelity is None:
        return ""
    heads = " | ".join(f"T={at.temperature:g}" for at in fidelity.temperatures)
    lines = "\n".join(
        f"| {name} | {' | '.join(map(str, values))} |" for name, values in fidelity_rows(fidelity)
    )
    return f"""
## Fidelity

{fidelity.measured_by} ran the teacher again ({fidelity.engine}, {fidelity.dtype} on {fidelity.device}) on
{fidelity.positions:,} positions in {fidelity.rows:,} rows (seed {fidelity.seed}).
Means, with 95 % intervals by resampling rows.

| | {heads} |
|---|{"---|" * len(fidelity.temperatures)}
{lines}
"""
