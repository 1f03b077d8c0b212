"""The store: what is on disk, and the only code that touches it (docs/format.md)."""
