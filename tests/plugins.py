"""`tests/plugin_package`, installed as pip would leave it: modules and metadata in a folder on `sys.path`."""

from __future__ import annotations

import shutil
import sys
import tomllib
from pathlib import Path

import pytest

from softlabels.codecs import CODECS
from softlabels.core.registry import Registry
from softlabels.corpora import CORPORA
from softlabels.domains import DOMAINS
from softlabels.domains.image_classification.sources import IMAGES
from softlabels.estimators import ESTIMATORS
from softlabels.format.encoding import CONTAINERS
from softlabels.interchange import IMPORTS
from softlabels.teachers import TEACHERS
from trainers.domains import DOMAINS as STUDENT_DOMAINS
from trainers.exports import FORMATS
from trainers.loss.divergences import DIVERGENCES
from trainers.students import STUDENTS
from trainers.trackers import TRACKERS

PACKAGE = Path(__file__).with_name("plugin_package")
ALL: list[Registry] = [
    TEACHERS,
    CORPORA,
    IMAGES,
    ESTIMATORS,
    CODECS,
    CONTAINERS,
    DOMAINS,
    IMPORTS,
    DIVERGENCES,
    STUDENTS,
    FORMATS,
    STUDENT_DOMAINS,
    TRACKERS,
]
"""Every registry there is."""


def install(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put the package into a folder of its own, where `importlib.metadata` finds it."""
    project = tomllib.loads((PACKAGE / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    name = project["name"].replace("-", "_")
    shutil.copytree(PACKAGE / name, site / name)
    info = site / f"{name}-{project['version']}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n"
    )
    groups = project["entry-points"].items()
    (info / "entry_points.txt").write_text(
        "\n".join(f"[{g}]\n" + "\n".join(f"{n} = {v}" for n, v in e.items()) for g, e in groups)
    )
    monkeypatch.syspath_prepend(site)
    forget(monkeypatch)


def uninstall(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Take it away again."""
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p != str(site)])
    forget(monkeypatch)


def forget(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have every registry look once more for what is installed, and import it from where it is now."""
    for module in [m for m in sys.modules if m.startswith("softlabels_example")]:
        monkeypatch.delitem(sys.modules, module)
    for registry in ALL:
        monkeypatch.setattr(registry, "_found", None)
