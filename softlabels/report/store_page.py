"""The report of a store: what is kept, how sure the teacher was, what it costs."""

from __future__ import annotations

import shlex
from dataclasses import asdict

import softlabels
from softlabels.builder.config import BuildConfig, config_of
from softlabels.core.settings import flags_of
from softlabels.errors import ConfigError
from softlabels.format.fidelity_table import fidelity_rows
from softlabels.format.figures import figures_of
from softlabels.interchange.importing import ImportConfig
from softlabels.making.plan import command_of, shard_rows_of
from softlabels.report.page import draw
from softlabels.report.store_facts import StoreFacts
from softlabels.store.reader import Store


def render(store: Store, found: StoreFacts) -> str:
    """The page."""
    manifest = store.manifest
    fidelity = manifest.fidelity
    commands = [shlex.join(["softlabels", "verify", str(store.path)])]
    trouble = None
    if manifest.provenance is None:
        try:
            commands.insert(0, build_command(store))
        except ConfigError as e:
            trouble = str(e)
    return draw(
        "store.html",
        version=softlabels.__version__,
        store=store,
        manifest=manifest,
        identity=manifest.identity,
        figures=figures_of(manifest),
        sampled=manifest.identity.targets.keeps.sample,
        found=found,
        measured=None if fidelity is None else fidelity_rows(fidelity),
        commands=commands,
        trouble=trouble,
    )


def build_command(store: Store) -> str:
    """The command that makes the store again, where teacher and corpus lie where it runs.

    Raises:
        ConfigError: this version makes no such store.
    """
    identity, command = store.manifest.identity, command_of(store.manifest)
    encoding, shard_rows = identity.encoding, shard_rows_of(store.folder, store.manifest)
    if command == "import":
        settings = ImportConfig(
            teacher=identity.teacher.spec,
            profile=encoding.asked_profile,
            container=encoding.container,
            values=encoding.values,
            shard_rows=shard_rows,
            licence=identity.licence,
        )
        kind, _, path = identity.corpus.specs[0].partition(":")
        words = [kind, path, *flags_of(ImportConfig, asdict(settings))]
    else:
        given = {"dictionary": str(store.path)} if encoding.dictionary_shards == 0 else {}
        config = config_of(identity, shard_rows=shard_rows, **given)
        words = flags_of(BuildConfig, config.to_dict())
    return shlex.join(["softlabels", command, *words, "--out", "STORE"])
