"""One page about runs: what `softtrain report` writes."""
