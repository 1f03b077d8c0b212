"""`softtrain sweep`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from softlabels.console.options import Command, config_options
from softlabels.console.tables import table
from softlabels.console.terminal import Bar, LocalPath, emit, json_option
from softlabels.core.settings import out_from
from softlabels.errors import RunError
from trainers.run.config import RunConfig


@click.command("sweep", cls=Command)
@click.argument(
    "config_file", metavar="[CONFIG.toml]", required=False, type=click.Path(path_type=Path)
)
@click.option(
    "--out",
    type=LocalPath(file_okay=False),
    help="Folder for the runs, one folder each (needed, here or in the file).",
)
@click.option(
    "--vary",
    metavar="SETTING=VALUE",
    multiple=True,
    help="Value of a setting in which runs differ; repeat it for each value. All combinations are trained.",
)
@config_options(RunConfig)
@json_option
def sweep_command(
    config_file: Path | None, out: Path | None, vary: tuple[str, ...], **flags: Any
) -> None:
    """Train many students from one store, on the same rows, and compare them on held-out rows.

    Runs are trained one after the other, each in a process of its own. The same command goes on after an
    interruption; values that are added later are trained beside those that are there. --patience stops a run
    whose held-out loss rises. The best evaluation of each run counts; of several seeds the mean.

    \b
    Examples:
      softtrain sweep --store store --heldout heldout --student new:10M \\
          --vary lr=0.001 --vary lr=0.002 --vary seed=0 --vary seed=1 --out sweep
      softtrain sweep --store store --heldout heldout --lr 3e-4 --patience 3 \\
          --vary 'student=hf:base?lora=r:16' --vary 'student=layers-of:base?keep=0,10,20,29' --out sweep
      softtrain sweep sweep.toml --out sweep     # settings of a run, and a table [vary] of lists
    """
    from trainers.run.sweep import entries_of, members_of, read_vary, rows_of, sweep

    members = members_of(config_file, flags, read_vary(config_file, vary))
    out = out_from(config_file, out)
    with Bar() as bar:
        outcomes = sweep(members, out, reporter=bar)
    entries = entries_of(outcomes)
    title = f"{len(members)} runs, the best evaluation of each on {members[0].config.heldout}"
    columns = ["settings", "parameters", "KL", "loss", "after step", "runs"]
    runs = [
        {"run": str(out / o.member.name), "settings": o.member.settings, "summary": o.summary}
        for o in outcomes
    ]
    emit(
        {"out": str(out), "entries": [asdict(e) for e in entries], "runs": runs},
        table(title, columns, rows_of(entries)),
    )
    if failed := [o.member.name for o in outcomes if o.summary is None]:
        raise RunError(
            f"{len(failed)} of {len(members)} runs did not end well ({', '.join(failed)}; what each said is above); "
            "the same command tries them again"
        )
