"""What the demo says at its end; the demo itself is run by .ci/run, since it takes minutes."""

from __future__ import annotations

from pathlib import Path

from softlabels.cli.demo import _table


def test_the_path_of_the_report_is_the_last_line():
    scores = {"nll": 6.0, "perplexity": 403.4, "ece": 0.02, "kl": 2.0, "agreement": 0.2}
    values = {
        "store": {
            "positions": 10,
            "bytes_per_position": 30.0,
            "dense_fp16_bytes_per_position": 600,
        },
        "heldout": {"teacher_nll": 4.0},
        "students": {"store": scores, "hard-labels": scores | {"nll": 6.5}},
        "seconds": 300.0,
        "peak_rss_mib": 900.0,
        "report": str(Path("demo-out") / "report.html"),
    }
    lines = _table(values).splitlines()
    assert lines[-1] == "demo-out/report.html"
    assert any("+0.500 nats per token" in line for line in lines)
