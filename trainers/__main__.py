"""`python -m trainers`."""

from trainers.cli import main

main(prog_name="softtrain")
