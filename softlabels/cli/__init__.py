"""The `softlabels` command."""

from __future__ import annotations

import click

import softlabels
from softlabels.cli.build import build_command
from softlabels.cli.demo import demo_command
from softlabels.cli.inspect import inspect_command, verify_command
from softlabels.cli.repair import repair_command
from softlabels.cli.share import pull_command, push_command
from softlabels.terminal import Commands

__all__ = ["main"]


@click.group(cls=Commands, context_settings={"max_content_width": 100})
@click.version_option(softlabels.__version__, prog_name="softlabels")
def main() -> None:
    """Run a teacher once; keep its soft targets in a store that many students can train from."""


main.add_command(demo_command)
main.add_command(build_command)
main.add_command(inspect_command)
main.add_command(verify_command)
main.add_command(repair_command)
main.add_command(push_command)
main.add_command(pull_command)
