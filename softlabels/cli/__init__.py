"""The `softlabels` command, a file for each of its commands."""
