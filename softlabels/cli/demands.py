"""The flags by which a command that reads a store demands what it must be: --key, --digest, --release."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

from softlabels.console.terminal import LocalPath

F = TypeVar("F", bound=Callable[..., Any])


def demand_options(command: F) -> F:
    """Add the flags; the command gets `key`, `digest` and `release`, each None unless given."""
    for option in (
        click.option(
            "--release",
            metavar="NAME[@VERSION]",
            help="Name that the store must be signed with, and the oldest version to accept; needs --key.",
        ),
        click.option(
            "--digest",
            metavar="SHA256",
            help="Content digest that the store must have; its first 16 digits or more.",
        ),
        click.option(
            "--key",
            type=LocalPath(),
            help="PEM file of the public key of whoever must have signed the store.",
        ),
    ):
        command = option(command)
    return command
