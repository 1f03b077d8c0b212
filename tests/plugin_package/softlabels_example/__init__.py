"""A package of somebody else's: one of each thing that can be added, each in a file of its own."""
