"""A page is written over a page of ours, and over nothing else; what stands in it is text, or ours."""

import jinja2
import pytest
from markupsafe import Markup

from softlabels.errors import ConfigError
from softlabels.report import charts
from softlabels.report.page import check_page, draw, write_page


def made(words: str) -> str:
    return f"<!doctype html>{draw('page.html', version='9.9')}<p>{words}</p>"


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


def drawn(tmp_path, template: str, **facts: object) -> str:
    (tmp_path / "x.html").write_text(template, encoding="utf-8")
    return draw("x.html", tmp_path, **facts)


def test_text_is_escaped_wherever_it_stands(tmp_path):
    template = '<p title="{{ x }}">{{ x }}{% set y %}{{ x }}{% endset %}{{ y }}{{ "a" ~ x }}{{ [x] | join }}</p>'
    evil = "\"'<b>&"
    safe = "&#34;&#39;&lt;b&gt;&amp;"
    assert drawn(tmp_path, template, x=evil) == f'<p title="{safe}">{safe}{safe}a{safe}{safe}</p>'
    harm = "a\x00b\x1b\x7f\ud800\ufffe\ufdd0\n\t"
    shown = r"a\x00b\x1b\x7f\ud800\ufffe\ufdd0" + "\n\t"
    assert drawn(tmp_path, "{{ x }}", x=harm) == shown
    assert drawn(tmp_path, "{{ x }}", x=Markup("<i></i>")) == "<i></i>"


def test_what_a_template_does_not_know_is_an_error(tmp_path):
    with pytest.raises(jinja2.UndefinedError):
        drawn(tmp_path, "{{ nothing }}")
    with pytest.raises(AssertionError):
        drawn(tmp_path, "{{ x }}", x=None)
    assert drawn(tmp_path, "{{ x | form('.1%') }}", x=None) == ""
    assert drawn(tmp_path, "{{ x | form('.1%') }}", x=0.25) == "25.0%"


def test_a_charts_words_are_escaped_and_its_marks_are_not():
    evil = '<b>"&\x1b'
    safe = r"&lt;b&gt;&#34;&amp;\x1b"
    line = charts.lines(
        [charts.Series(evil, "s0", [(0, 1), (1, 2)])], x_name=evil, y_name=evil, label=evil
    )
    dot = charts.dots([charts.Dot(evil, "s0", 1.0, 0.5, 2.0)], form=".1f", label=evil)
    bar = charts.shares([(evil, evil, [("s0", 1.0)])], label=evil)
    points = charts.scatter([(0.5, 0.5, 3)], style="s1", x_name=evil, y_name=evil, label=evil)
    columns = charts.histogram([charts.Bin(0.0, 1.0, 2, 1.0)], form=".0%", x_name=evil)
    for chart, times in ((line, 4), (dot, 2), (bar, 3), (points, 3), (columns, 2)):
        assert chart.count(safe) == times
        assert evil not in chart
        assert chart.startswith("<svg ")
        assert isinstance(chart, Markup)
