"""Stores -> batches: order, stream, mixing."""
