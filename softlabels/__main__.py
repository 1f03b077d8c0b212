"""`python -m softlabels`."""

from softlabels.cli.main import main

main(prog_name="softlabels")
