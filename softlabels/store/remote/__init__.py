"""Stores at addresses: a client, a cache, reading, and sending them to and fro."""
