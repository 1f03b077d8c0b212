"""The store format: its records, and how a shard's rows and targets become bytes (docs/format.md)."""
