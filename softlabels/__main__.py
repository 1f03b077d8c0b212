"""`python -m softlabels`."""

from softlabels.cli import main

main(prog_name="softlabels")
