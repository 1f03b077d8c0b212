"""Corpus -> teacher -> selection -> codec -> store, and how far a store is from its teacher."""
