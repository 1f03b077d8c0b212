"""The `softlabels` command."""

from __future__ import annotations

import click

import softlabels
from softlabels.cli.build import build_command
from softlabels.cli.check import check_command
from softlabels.cli.demo import demo_command
from softlabels.cli.init import init_command
from softlabels.cli.inspect import inspect_command
from softlabels.cli.interchange import export_command, import_command
from softlabels.cli.kld import kld_command
from softlabels.cli.measure import measure_command
from softlabels.cli.merge import append_command, merge_command
from softlabels.cli.reference import reference_command
from softlabels.cli.report import report_command
from softlabels.cli.share import card_command, pull_command, push_command, sign_command
from softlabels.cli.size import size_command
from softlabels.cli.states import states_command
from softlabels.cli.status import status_command
from softlabels.cli.subset import convert_command, diff_command, subset_command, view_command
from softlabels.cli.verify import repair_command, verify_command
from softlabels.console.terminal import Commands


@click.group(cls=Commands)
@click.version_option(softlabels.__version__, prog_name="softlabels")
def main() -> None:
    """Run a teacher once; keep its soft targets in a store that many students can train from."""


main.add_command(demo_command)
main.add_command(init_command)
main.add_command(check_command)
main.add_command(size_command)
main.add_command(build_command)
main.add_command(status_command)
main.add_command(inspect_command)
main.add_command(verify_command)
main.add_command(repair_command)
main.add_command(push_command)
main.add_command(pull_command)
main.add_command(measure_command)
main.add_command(reference_command)
main.add_command(kld_command)
main.add_command(states_command)
main.add_command(import_command)
main.add_command(export_command)
main.add_command(card_command)
main.add_command(sign_command)
main.add_command(merge_command)
main.add_command(append_command)
main.add_command(subset_command)
main.add_command(view_command)
main.add_command(convert_command)
main.add_command(diff_command)
main.add_command(report_command)
