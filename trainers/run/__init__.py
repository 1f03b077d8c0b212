"""A run: from its first step to its last, and the folder that it leaves."""
