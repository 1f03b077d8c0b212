"""The store's README.md: what a person, or the Hub, reads first."""

from __future__ import annotations

from softlabels.store.manifest import Manifest

__all__ = ["card"]

CONFIGS = """configs:
- config_name: default
  data_files:
  - split: train
    path: data/train-*.parquet
"""


def card(manifest: Manifest) -> str:
    """Markdown; its YAML head lets `datasets.load_dataset(STORE)` work where columns are Parquet's own."""
    identity = manifest.identity
    corpus, targets, teacher = identity.corpus, identity.targets, identity.teacher
    n = corpus.positions or 1
    soft = manifest.statistics.soft_of(corpus.positions)
    labelled = manifest.statistics.labelled_of(corpus.positions) or 1
    hard_only = (
        f", of which {soft:,} have a soft target (`{targets.positions}`) and the others are hard-label only"
        if targets.positions is not None
        else ""
    )
    specs = ", ".join(f"`{s}`" for s in corpus.specs)
    grid = ", ".join(f"{t:g}" for t in targets.temperatures)
    mass = ", ".join(
        f"{m / max(soft, 1):.4f} at T={t:g}"
        for m, t in zip(manifest.statistics.kept_mass, targets.temperatures, strict=True)
    )
    perplexity = (
        f"{manifest.statistics.teacher_nll / labelled:.4f} nats per {'token' if identity.classes is None else 'label'}"
        if manifest.statistics.teacher_nll is not None
        else "not known (the grid lacks T=1)"
    )
    loadable = (identity.encoding.profile, identity.encoding.container) == ("open", "parquet")
    domain = identity.domain
    if identity.classes is not None:
        domain += f" of {len(identity.classes)} classes"
    if (masking := identity.masking) is not None:
        views = "1 view" if masking.views == 1 else f"{masking.views} views"
        domain += f", {masking.share:.0%} of each text hidden, in {views}, targets where `{masking.targets}`"
    taught = "" if domain == "causal-lm" else f"| domain | {domain} |\n"
    return f"""---
{CONFIGS if loadable else ""}tags:
- softlabels
- knowledge-distillation
---

# Soft targets of {teacher.name}

A softlabels store, format {manifest.version}, made by {manifest.created_by}.
`softlabels verify .` checks every byte of it.

| | |
|---|---|
| teacher | {teacher.name}, {teacher.parameters:,} parameters, {teacher.dtype} on {teacher.device}, {teacher.engine} |
| teacher weights | sha256 `{teacher.weights_sha256}` |
| teacher's own loss here | {perplexity} |
| tokenizer | {identity.tokenizer.vocab_size:,} ids, sha256 `{identity.tokenizer.sha256}` |
{taught}| corpus | {specs}: {corpus.documents:,} documents, {corpus.tokens:,} tokens in {corpus.rows:,} rows |
| targets | {corpus.positions:,} positions{hard_only}, `{targets.estimator}` with k={targets.k}, temperatures {grid} |
| mass of the kept ids | {mass} |
| size | {manifest.data_bytes:,} bytes in {len(manifest.shards)} shards, {manifest.data_bytes / n:.1f} per position |
| cost | {manifest.cost.seconds:,.0f} s of the teacher |
| licence of the targets | {identity.licence} |

```python
import softlabels

store = softlabels.open_store("PATH")
row = store.row(0)
row.targets.ids, row.targets.probs({targets.temperatures[0]:g})
```
"""
