"""`softlabels card`, `sign`, `push` and `pull`: a store for others, and one from them."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from softlabels.cli.demands import demand_options
from softlabels.console.options import Command
from softlabels.console.terminal import Bar, LocalPath, emit, json_option, say


@click.command("card", cls=Command)
@click.argument("store", type=LocalPath())
@click.option(
    "--licence",
    help="Licence of the targets, an SPDX expression, in the place of the one the build was given.",
)
@click.option("--check-licence", is_flag=True, help="Exit with 2 if the licence is not SPDX.")
@json_option
def card_command(store: Path, licence: str | None, check_licence: bool) -> None:
    """Renew what people and search engines read first: README.md, and croissant.json beside it.

    Both are made from the manifest. The content of the store and its digest stay as they are.

    \b
    Examples:
      softlabels card store --licence CC-BY-4.0
      softlabels card store --check-licence
    """
    import msgspec

    from softlabels.format.manifest import SIGNATURE, Manifest, load_manifest
    from softlabels.making.amend import amend
    from softlabels.making.finish import MADE
    from softlabels.making.licences import require_spdx, stateable

    stated = None if licence is None else stateable(licence)

    def licensed(manifest: Manifest) -> Manifest:
        if stated is not None:
            manifest = msgspec.structs.replace(manifest, stated_licence=stated)
        if check_licence:
            require_spdx(manifest.licence)
        return manifest

    before = load_manifest(store).digest
    amended = amend(store, licensed, make=list(MADE))
    licence = amended.licence
    stale = (store / SIGNATURE).exists() and amended.digest != before
    if stale:
        say(f"{store}: its signature must be renewed: `softlabels sign`")
    text = f"{store}: {' and '.join(MADE)} are made from the manifest; licence {licence}"
    value = {
        "store": str(store),
        "files": list(MADE),
        "licence": licence,
        "signature_stale": stale,
    }
    emit(value, text)


@click.command("sign", cls=Command)
@click.argument("store", type=LocalPath())
@click.option("--key", required=True, type=LocalPath(), help="PEM file of your private ECDSA key.")
@click.option(
    "--release",
    metavar="NAME@VERSION",
    help="Name and version to sign the store as; default: those that it was signed as before, if any.",
)
@click.option("--ask-password", is_flag=True, help="The key is encrypted: ask for its password.")
@json_option
def sign_command(store: Path, key: Path, release: str | None, ask_password: bool) -> None:
    """Check every byte of a store and sign its manifest, so that others can tell that it is yours.

    They check it with `softlabels verify STORE --key PUBLIC.pem`. Sign again after `measure` or `card`. The release is
    part of what is signed, so that whoever trusts the key can tell this store from an older one of yours.

    \b
    Examples:
      softlabels sign store --key key.pem
      softlabels sign store --key key.pem --release maker/austen@2
    """
    from softlabels.format.manifest import SIGNATURE
    from softlabels.store.signing import sign_store

    password = None
    if ask_password:
        password = click.prompt("password of the key", hide_input=True, err=True).encode()
    found = sign_store(store, key, password=password, release=release)
    signature = store / SIGNATURE
    emit(
        {
            "store": str(store),
            "signature": str(signature),
            "release": None if found is None else str(found),
        },
        f"{store}: whole, and signed{'' if found is None else f' as {found}'}: {signature}",
    )


@click.command("push", cls=Command)
@click.argument("store", type=LocalPath())
@click.argument("url")
@click.option(
    "--alone",
    is_flag=True,
    help="Nobody else writes there: do without the preconditions that the place would have to obey.",
)
@json_option
def push_command(store: Path, url: str, alone: bool) -> None:
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
    emit({"store": str(store), "url": url, **asdict(done)}, text)


@click.command("pull", cls=Command)
@click.argument("url")
@click.argument("folder", type=LocalPath(file_okay=False, written=True))
@click.option("--share", type=float, help="Only so much of the rows, e.g. 0.1, in whole shards.")
@click.option("--rows", type=int, help="Only so many rows, at least, in whole shards.")
@demand_options
@json_option
def pull_command(
    url: str, folder: Path, share: float | None, rows: int | None, **demand: Any
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
    emit({"url": url, "store": str(folder), **asdict(done)}, text)
