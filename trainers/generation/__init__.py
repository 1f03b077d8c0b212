"""Text from a finished student."""
