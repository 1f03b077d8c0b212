"""Kinds of files that hold a shard's columns."""
