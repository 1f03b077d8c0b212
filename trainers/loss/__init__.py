"""Soft and hard losses over K+1 columns, and what changes them over the steps."""
