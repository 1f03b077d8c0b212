"""What comes before a build: what a job would find, what it would take, and the files that describe it."""
