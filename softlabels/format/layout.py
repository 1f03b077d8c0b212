"""Folders of a store (docs/format.md, section 1)."""

from __future__ import annotations

BESIDE = ("tokenizer", "dictionaries", "pages")
"""Of what is written before the plan."""
FOLDERS = (*BESIDE, "data", "commits", "claims")
"""All that builders write to; a repair may add `quarantine`."""
