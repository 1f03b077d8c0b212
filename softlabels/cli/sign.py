"""`softlabels sign`."""

from __future__ import annotations

from pathlib import Path

import click

from softlabels.console.options import Command
from softlabels.console.terminal import LocalPath, emit, json_option


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
def sign_command(
    store: Path, key: Path, release: str | None, ask_password: bool, as_json: bool
) -> None:
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
        as_json=as_json,
    )
