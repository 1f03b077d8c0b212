"""The report of a store: what is kept, how sure the teacher was, what it costs."""

from __future__ import annotations

import shlex

import softlabels
from softlabels.builder.config import BuildConfig, ImportConfig
from softlabels.builder.recorded import config_of
from softlabels.core.settings import flags_of
from softlabels.errors import ConfigError
from softlabels.format.fidelity_table import fidelity_rows
from softlabels.format.figures import figures_of
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
    """The command that makes the store again, where its sources lie there; `ConfigError` if this version cannot."""
    identity, command = store.manifest.identity, command_of(store.manifest)
    given = {"dictionary": str(store.path)} if identity.encoding.dictionary_shards == 0 else {}
    shard_rows = shard_rows_of(store.folder, store.manifest)
    settings = config_of(identity, shard_rows=shard_rows, **given).to_dict()
    if command == "import":
        kind, _, path = identity.corpus.specs[0].partition(":")
        words = [kind, path, *flags_of(ImportConfig, settings)]
    else:
        words = flags_of(BuildConfig, settings)
    return shlex.join(["softlabels", command, *words, "--out", "STORE"])
