"""The `softlabels` command, a file for each subject of its commands."""
