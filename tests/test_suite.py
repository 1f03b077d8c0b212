"""What `pytest` leaves to CI is listed for people."""

from __future__ import annotations

import re
from pathlib import Path

TESTS = Path(__file__).parent
PAGE = TESTS.parent / "CONTRIBUTING.md"


def test_every_file_with_slow_tests_is_in_the_table():
    section = PAGE.read_text(encoding="utf-8").partition("## Which tests run when\n")[2]
    listed = {
        name
        for row in re.findall(
            r"^\| (?!marked)[^|]* \| (.*) \|$", section.partition("\n## ")[0], re.M
        )
        for name in re.findall(r"`([\w/]+\.py)`", re.sub(r"\(.*?\)", "", row))
    }
    marked = {
        path.relative_to(TESTS).as_posix()
        for path in TESTS.rglob("test_*.py")
        if re.search(r"pytest\.mark\.slow\b", path.read_text(encoding="utf-8"))
    }
    assert listed == marked - {Path(__file__).name}
