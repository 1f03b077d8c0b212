"""A finished store: reading it, verifying and signing it, its tokenizer, and copies of it elsewhere (`remote/`)."""
