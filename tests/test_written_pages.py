"""A page is written over a page of ours, and over nothing else."""

import pytest

from softlabels.errors import ConfigError
from softlabels.report.html import Markup
from softlabels.report.page import check_page, page, write_page


def made(words: str) -> str:
    body = [Markup(f"<p>{words}</p>")]
    return page("t", eyebrow="e", headline="h", lead="l", body=body, version="9.9")


def test_a_page_of_ours_is_replaced_whole(tmp_path):
    out = tmp_path / "new" / "page.html"
    write_page(out, made("one"))
    write_page(out, made("two"))
    assert out.read_text() == made("two")
    assert [p.name for p in out.parent.iterdir()] == ["page.html"]
    out.write_text(made("old").replace('<meta name="generator" content="softlabels 9.9">', ""))
    write_page(out, made("three"))  # over one that an earlier version made
    assert out.read_text() == made("three")


@pytest.mark.parametrize("content", ["", "my thesis", "<!doctype html><p>mine</p>"])
def test_what_is_no_page_of_ours_stays(tmp_path, content):
    out = tmp_path / "page.html"
    out.write_text(content)
    with pytest.raises(ConfigError, match="is no page that this program made; choose another"):
        write_page(out, made("one"))
    assert out.read_text() == content
    assert [p.name for p in tmp_path.iterdir()] == ["page.html"]
    with pytest.raises(ConfigError, match="cannot be looked at"):
        check_page(tmp_path)
