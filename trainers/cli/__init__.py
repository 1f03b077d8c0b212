"""The `softtrain` command."""

from __future__ import annotations

import click

import softlabels
from softlabels.console.terminal import Commands
from trainers.cli.evaluate import eval_command
from trainers.cli.export import export_command
from trainers.cli.generate import generate_command
from trainers.cli.latency import latency_command
from trainers.cli.opd import opd_command
from trainers.cli.report import report_command
from trainers.cli.run import run_command
from trainers.cli.student import student_command
from trainers.cli.sweep import sweep_command
from trainers.cli.watch import watch_command


@click.group(cls=Commands)
@click.version_option(softlabels.__version__, prog_name="softtrain")
def main() -> None:
    """Train students from soft-target stores; the teacher is not needed."""


main.add_command(run_command)
main.add_command(sweep_command)
main.add_command(student_command)
main.add_command(eval_command)
main.add_command(export_command)
main.add_command(latency_command)
main.add_command(generate_command)
main.add_command(opd_command)
main.add_command(report_command)
main.add_command(watch_command)
