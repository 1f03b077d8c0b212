"""What both packages stand on: rows, targets, records, registries, settings, whole files; no container and no model."""
