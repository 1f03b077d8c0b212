"""`croissant.json`: the store as dataset search engines and loaders understand it (Croissant 1.0, JSON-LD).

Made from the manifest alone. Every shard is listed with its size and SHA-256. Where the columns are Parquet's own
(profile `open`) they are a record set, which `mlcroissant` loads; of other stores it lists the files.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from softlabels.core.printable import for_markdown, printable_record
from softlabels.domains import DOMAINS
from softlabels.format.manifest import Manifest
from softlabels.format.pages import PageRecord, Pages
from softlabels.format.plain import log_odds_column
from softlabels.format.shard_records import ShardRecord
from softlabels.making.licences import UNKNOWN

CROISSANT = "croissant.json"
CONTEXT: dict[str, Any] = json.loads(
    Path(__file__).with_name("templates").joinpath("croissant_context.json").read_text("utf-8")
)
"""The terms of the specification, each under its own name."""
COLUMNS = {
    "row": ("sc:Integer", False, "Number of the row in the store."),
    "input_ids": ("sc:Integer", True, "Token ids."),
    "segment_lengths": ("sc:Integer", True, "Tokens of each document in the row."),
    "documents": ("sc:Integer", True, "Which document of the corpus each segment is from."),
    "label_mask": ("sc:Boolean", True, "True where a position predicts the next token."),
    "kept": ("sc:Integer", True, "How many ids are kept at each position; 0: hard label only."),
    "ids": ("sc:Integer", True, "The kept ids, one position after the other."),
    "logp": ("sc:Float", True, "Their log-probabilities (of a sample: log-weights), in nats."),
}
SUMMARIES = {
    "label_logp": ("sc:Float", True, "Log-probability of each position's label, at T=1, in nats."),
    "entropy": ("sc:Float", True, "The teacher's entropy at each position, at T=1, in nats."),
    "top": (
        "sc:Integer",
        True,
        "Where the likeliest id is: its number among the kept ids, or -1 - id if it is not kept.",
    ),
}
"""Type, whether it is a list, and what it holds; `input_digest` is bytes, which Croissant has no type for."""


def croissant(manifest: Manifest) -> str:
    """The file's text; names are others' and stay text, in JSON and in whatever shows it."""
    manifest = printable_record(manifest, for_markdown)
    identity = manifest.identity
    encoding = identity.encoding
    parquet = (encoding.profile, encoding.container) == ("open", "parquet")
    known = identity.domain in DOMAINS
    loadable = parquet and known and DOMAINS.load(identity.domain).chained  # else: other columns
    name = f"soft-targets-{identity.teacher.name}-{manifest.content_digest[:12]}"
    value: dict[str, Any] = {
        "@context": CONTEXT,
        "@type": "sc:Dataset",
        "conformsTo": "http://mlcommons.org/croissant/1.0",
        "name": "".join(c if c.isalnum() or c in "-_." else "-" for c in name),
        "description": _description(manifest),
        "version": "1.0.0",
        "isLiveDataset": False,
        "keywords": ["softlabels", "knowledge distillation", "soft targets"],
        "distribution": _files(manifest, parquet=parquet),
    }
    if manifest.licence.lower() != UNKNOWN:
        value["license"] = manifest.licence
    if loadable:
        value["distribution"].append(
            {
                "@type": "cr:FileSet",
                "@id": "shards",
                "name": "shards",
                "encodingFormat": "application/x-parquet",
                "includes": "data/*.parquet",
            }
        )
        value["recordSet"] = [_record_set(manifest)]
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"


def _description(manifest: Manifest) -> str:
    identity = manifest.identity
    grid = ", ".join(f"{t:g}" for t in identity.targets.temperatures)
    return (
        f"Soft targets of {identity.teacher.name} at {identity.corpus.positions} positions of "
        f"{', '.join(identity.corpus.specs)} ({identity.corpus.tokens} tokens in {identity.corpus.rows} rows): "
        f"{identity.targets.estimator}, k={identity.targets.k}, temperatures {grid}. A softlabels store, format "
        f"{manifest.version}, content digest {manifest.content_digest}; licence of the targets: {manifest.licence}."
    )


def _files(manifest: Manifest, *, parquet: bool) -> list[dict[str, Any]]:
    """The shards or, of a store that has them in pages, the pages, which vouch for them."""
    if isinstance(manifest.shards, Pages):
        return [_file(page, parquet=True) for page in manifest.shards.pages]
    return [_file(shard, parquet=parquet) for shard in manifest.shards]


def _file(shard: ShardRecord | PageRecord, *, parquet: bool) -> dict[str, Any]:
    return {
        "@type": "cr:FileObject",
        "@id": shard.name,
        "name": shard.name,
        "contentUrl": shard.name,
        "contentSize": f"{shard.bytes} B",
        "encodingFormat": "application/x-parquet" if parquet else "application/octet-stream",
        "sha256": shard.sha256,
    }


def _record_set(manifest: Manifest) -> dict[str, Any]:
    columns = dict(COLUMNS)
    for t in manifest.identity.targets.temperatures:
        said = f"Log-odds of the mass outside the kept ids at T={t:g}."
        columns[log_odds_column(t)] = ("sc:Float", True, said)
    columns |= SUMMARIES if manifest.identity.summary is not None else {}
    return {
        "@type": "cr:RecordSet",
        "@id": "rows",
        "name": "rows",
        "description": "One record for each training row.",
        "field": [
            {
                "@type": "cr:Field",
                "@id": f"rows/{name}",
                "name": f"rows/{name}",
                "description": said,
                "dataType": kind,
                **({"repeated": True} if many else {}),
                "source": {"fileSet": {"@id": "shards"}, "extract": {"column": name}},
            }
            for name, (kind, many, said) in columns.items()
        ],
    }
