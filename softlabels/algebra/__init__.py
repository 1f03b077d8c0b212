"""Stores made from stores: merge, append, subset, view, convert; and what two stores differ in.

Each reads its sources shard by shard, refuses damaged ones before it writes anything, and publishes a new
store the way a build does (`derive.py`): the plan, shards and their records, then the manifest, which says in
`provenance` what was made from what. Killed at any moment, the same command finishes the job. No source is
ever written to. A shard that stays as it is gets a second name (a hard link) instead of a copy.
"""

from __future__ import annotations
