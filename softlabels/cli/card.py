"""`softlabels card`."""

from __future__ import annotations

from pathlib import Path

import click

from softlabels.console.options import Command
from softlabels.console.terminal import LocalPath, emit, json_option, say


@click.command("card", cls=Command)
@click.argument("store", type=LocalPath())
@click.option(
    "--licence",
    help="Licence of the targets, an SPDX expression, in the place of the one the build was given.",
)
@click.option("--check-licence", is_flag=True, help="Exit with 2 if the licence is not SPDX.")
@json_option
def card_command(store: Path, licence: str | None, check_licence: bool, as_json: bool) -> None:
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
    emit(value, text, as_json=as_json)
