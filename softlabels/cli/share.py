"""`softlabels push` and `softlabels pull`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from softlabels.cli.demands import demand_options
from softlabels.console.options import Command
from softlabels.console.terminal import Bar, LocalPath, emit, json_option


@click.command("push", cls=Command)
@click.argument("store", type=LocalPath())
@click.argument("url")
@click.option(
    "--alone",
    is_flag=True,
    help="Nobody else writes there: do without the preconditions that the place would have to obey.",
)
@json_option
def push_command(store: Path, url: str, alone: bool, as_json: bool) -> None:
    """Copy a store to s3://, gs:// or hf://datasets/OWNER/NAME; only what is not there yet travels.

    Every file is read back, and the manifest written last, so that readers there see a whole store or none. If it is
    interrupted, run the same command again. A larger store may take the place of one that it contains.

    \b
    Examples:
      softlabels push store s3://bucket/store
      softlabels push store hf://datasets/owner/name
    """
    from softlabels.store.remote.hub import push_to_hub
    from softlabels.store.remote.push import push

    with Bar() as bar:
        if url.startswith("hf://"):
            done = push_to_hub(store, url, reporter=bar)
        else:
            done = push(store, url, alone=alone, reporter=bar)
    text = (
        f"{url}: complete; {done.shards_moved:,} of {done.shards:,} shards and {done.bytes_moved:,} bytes in "
        f"{done.files_moved:,} files travelled"
    )
    emit({"store": str(store), "url": url, **asdict(done)}, text, as_json=as_json)


@click.command("pull", cls=Command)
@click.argument("url")
@click.argument("folder", type=LocalPath(file_okay=False, written=True))
@click.option("--share", type=float, help="Only so much of the rows, e.g. 0.1, in whole shards.")
@click.option("--rows", type=int, help="Only so many rows, at least, in whole shards.")
@demand_options
@json_option
def pull_command(
    url: str, folder: Path, share: float | None, rows: int | None, as_json: bool, **demand: Any
) -> None:
    """Copy a store, or a share of it, from an address into a folder; only what is not there yet travels.

    Every file is checked against the manifest when it arrives. A share is a store of its own, of rows numbered from
    0; a larger share contains a smaller one, so the folder can grow. If it is interrupted, run the same command again.
    What --key, --digest and --release demand is demanded of the whole store, before anything is fetched.

    \b
    Examples:
      softlabels pull s3://bucket/store store
      softlabels pull hf://datasets/owner/name store --share 0.1
      softlabels pull https://host/store store --key maker.pem
    """
    from softlabels.store.demand import Demand
    from softlabels.store.remote.pull import pull

    asked = Demand(**demand)

    with Bar() as bar:
        done = pull(url, folder, share=share, rows=rows, reporter=bar, demand=asked)
    shards = f"{done.shards:,} shards"
    if done.shards < done.of:
        shards = f"{done.shards:,} of {done.of:,} shards, a part of digest {done.digest}"
    text = (
        f"{folder}: {done.rows:,} rows in {shards}; {done.shards_moved:,} shards and {done.bytes_moved:,} bytes in "
        f"{done.files_moved:,} files travelled"
    )
    emit({"url": url, "store": str(folder), **asdict(done)}, text, as_json=as_json)
