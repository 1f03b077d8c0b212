"""Every --seed is a number that all readers hold: 0 to 2^63 - 1, else exit 2 and a sentence."""

from __future__ import annotations

import click
import pytest
from click.testing import CliRunner

from softlabels.cli.main import main as softlabels
from trainers.cli import main as softtrain


def commands() -> list[tuple[click.Group, str]]:
    return [
        (group, name)
        for group in (softlabels, softtrain)
        for name, command in group.commands.items()
        if any("--seed" in p.opts for p in command.params)
    ]


GIVEN = {
    "--teacher": "hf:x",
    "--corpus": "text:x",
    "--estimator": "topk",
    "--student": "hf:x",
    "--store": "x",
    "--prompts": "x",
    "--vary": "lr=0.001",
}


@pytest.mark.parametrize("seed", [-1, 2**63, 2**64, 10**30])
@pytest.mark.parametrize(("group", "name"), commands(), ids=lambda x: getattr(x, "name", x))
def test_seeds_beyond_what_is_held_are_refused(group, name, seed, tmp_path):
    command = group.commands[name]
    words = [name]
    for p in command.params:
        if isinstance(p, click.Argument):
            words += [] if p.name == "config_file" else [str(tmp_path / "x")]
        elif p.required or p.opts[0] in GIVEN:
            words += [p.opts[0], GIVEN.get(p.opts[0], str(tmp_path / "y"))]
    result = CliRunner().invoke(group, [*words, f"--seed={seed}"])
    assert result.exit_code == 2, result.output
    assert "seed" in result.stderr
    assert "2**63" in result.stderr or "at least 0" in result.stderr
