"""The report page: its numbers, its safety against model text, and its bounds."""

from __future__ import annotations

import copy
import re
from html import unescape
from html.parser import HTMLParser
from typing import Any

import pytest
from report_example import ARMS, NASTY, empty, evaluated, example, large

from sftdiff.report_examples import excerpt
from sftdiff.report_html import render_report
from sftdiff.report_plots import curve_plot, make_axis, make_mark

VOID = {"meta", "link", "br", "hr", "img", "input", "wbr", "col"}


class Page(HTMLParser):
    """Collects tags, attributes and visible text, and checks that tags are balanced."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.stack: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.marked: list[str] = []
        self.words: list[str] = []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.stack.append(tag)
        if tag == "mark":
            self.marked.append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.stack and self.stack[-1] == tag, f"</{tag}> closes {self.stack[-3:]} at {self.getpos()}"
        self.stack.pop()

    def handle_data(self, data: str) -> None:
        if "style" not in self.stack:
            self.words.append(data)
        if "mark" in self.stack:
            self.marked[-1] += data

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", "".join(self.words))


@pytest.fixture(scope="module")
def html() -> str:
    return render_report(example())


@pytest.fixture(scope="module")
def page(html: str) -> Page:
    return Page(html)


@pytest.fixture(scope="module")
def big() -> str:
    return render_report(large(40, 8))


def shown(value: float | None, share: bool, signed: bool = False) -> str:
    if value is None:
        return "no value"
    scaled = value * 100 if share else value
    return f"{scaled:{'+' if signed and scaled else ''}.{1 if share else 2}f}".replace("-", "−")


def section(html: str, name: str) -> str:
    start = html.index(f'<section aria-labelledby="{name}">')
    return html[start : html.index("</section>", start)]


def body_rows(html: str) -> list[str]:
    """The text of each table row, tags taken out."""
    rows = re.findall(r"<tr>.*?</tr>", html, flags=re.DOTALL)
    return [re.sub(r"\s+", " ", unescape(re.sub(r"<[^>]+>", " ", row))) for row in rows]


@pytest.mark.parametrize("report", [example(), empty(), large(12, 8), evaluated()], ids=["example", "empty", "large", "as_is"])
def test_tags_are_balanced_and_ids_unique(report: dict[str, Any]) -> None:
    parsed = Page(render_report(report))
    assert parsed.stack == []
    ids = [attrs["id"] for _, attrs in parsed.tags if "id" in attrs]
    assert len(ids) == len(set(ids))
    targets = [attrs["href"] for _, attrs in parsed.tags if "href" in attrs]
    assert {str(target).removeprefix("#") for target in targets} <= set(ids)


def test_every_level_stands_in_its_row_and_order(html: str) -> None:
    report = example()
    rows = {row.split(" stand-in")[0].split(" the student")[0].strip(): row for row in body_rows(section(html, "results"))}
    share = {trait["name"]: trait["kind"] == "share" for trait in report["traits"]}
    for arm in ["untrained", *ARMS]:
        at = 0
        for level in (level for level in report["levels"] if level["arm"] == arm):
            kind = share[level["trait"]]
            at = rows[arm].index(shown(level["value"], kind), at)
            if level["value"] is not None:
                at = rows[arm].index(f"[{shown(level['low'], kind)}, {shown(level['high'], kind)}]", at)
            if len(level["per_seed"]) > 1 and level["value"] is not None:
                for seed, value in level["per_seed"].items():
                    assert f"seed\xa0{seed}:\xa0{shown(value, kind)}".replace("\xa0", " ") in rows[arm]


@pytest.mark.parametrize("family", ["baseline", "contrast"])
def test_every_difference_stands_in_its_section(html: str, family: str) -> None:
    report = example()
    share = {trait["name"]: trait["kind"] == "share" for trait in report["traits"]}
    part = " ".join(body_rows(section(html, family)))
    for row in (row for row in report["differences"] if row["family"] == family):
        kind = share[row["trait"]]
        if row["value"] is not None:
            low, high = (shown(row[key], kind, True) for key in ("low", "high"))
            unit = " points" if kind else ""
            assert f"{shown(row['value'], kind, True)}{unit} [{low}, {high}]" in part
        assert row["call"] in part


def test_all_other_numbers_are_shown(html: str, page: Page) -> None:
    report = example()
    for arm in report["arms"]:
        for cell in arm["cells"]:
            line = next(row for row in body_rows(section(html, "curves")) if cell["id"] in row)
            for key in ("rows", "tokens", "loss_tokens", "optimizer_steps"):
                assert f" {cell[key]:,} " in line
            assert f"{cell['first_loss']:.2f}" in line and f"{cell['last_loss']:.2f}" in line
            assert f"{cell['seconds']:.1f}" in line
    rows = body_rows(section(html, "rows"))
    for mixture in report["mixtures"]:
        for counts in (mixture["totals"], *mixture["by_source"]):
            numbers = " ".join(str(n) for key, n in counts.items() if key != "source")
            assert any(mixture["arm"] in row and numbers in re.sub(r"\s+", " ", row) for row in rows)
    health = {row.strip().split("  ")[0]: row for row in body_rows(section(html, "health"))}
    assert any(ARMS[3] in row and "27.0 %" in row and "3.1 %" in row for row in health.values())
    for text in ("0f3a9c1", "2.13.0", "9f" * 32, "80.0", "4.9", "W&B offline", "box-3", "160 rows"):
        assert text in page.text


def test_headline_names_what_was_compared(page: Page) -> None:
    for text in ("Sweep demo", example()["command"], "smollm2_135m", "stand-in written for sftdiff", "gemini_mix",
                 "keyword (drop)", "endpoint:some-model", "not written by the models they are named after"):  # fmt: skip
        assert text in page.text
    assert "45 of the 48 intervals are over scenarios, given this one training" in page.text


def test_notice_is_absent_where_no_interval_is_narrow() -> None:
    report = example()
    for row in [*report["levels"], *report["differences"]]:
        row["scope"] = "over scenarios and training seeds"
    assert "given this one training" not in Page(render_report(report)).text


def test_script_in_a_reply_is_escaped_and_text_is_verbatim(html: str, page: Page) -> None:
    assert not {"script", "img", "iframe", "object", "link"} & {tag for tag, _ in page.tags}
    assert "&lt;script&gt;alert(&#39;owned&#39;)&lt;/script&gt; ]]&gt;" in html
    assert NASTY in unescape(re.sub(r"</?mark>", "", html))
    assert not any(name.startswith("on") for _, attrs in page.tags for name in attrs)


def test_untrusted_text_is_escaped_everywhere() -> None:
    evil = "<script>x</script>\"'><b onclick=1>"

    def spoil(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: item if key in FIXED else spoil(item) for key, item in value.items()}
        if isinstance(value, list):
            return [spoil(item) for item in value]
        return value + evil if isinstance(value, str) else value

    FIXED = {"kind", "family", "call"}
    parsed = Page(render_report(spoil(copy.deepcopy(example()))))
    assert parsed.stack == []
    assert not {"script"} & {tag for tag, _ in parsed.tags}
    assert not any("onclick" in attrs for _, attrs in parsed.tags)


def test_no_resource_is_requested(html: str, page: Page) -> None:
    for _, attrs in page.tags:
        for name in ("src", "href", "action", "data", "srcset", "poster", "xlink:href"):
            assert str(attrs.get(name) or "#").startswith("#")
    style = html[html.index("<style>") : html.index("</style>")]
    assert "url(" not in style and "@import" not in style and "&" not in style


def test_content_security_policy_stands_first(page: Page) -> None:
    metas = [attrs for tag, attrs in page.tags if tag == "meta"]
    policy = str(metas[1]["content"])
    assert metas[1]["http-equiv"] == "Content-Security-Policy"
    assert policy.startswith("default-src 'none'; style-src 'unsafe-inline'; img-src data:")
    assert "script-src" not in policy


def test_page_is_accessible(page: Page) -> None:
    assert ("html", {"lang": "en"}) in page.tags
    scopes = [attrs.get("scope") for tag, attrs in page.tags if tag == "th"]
    assert scopes and None not in scopes
    count = {tag: sum(found == tag for found, _ in page.tags) for tag in ("table", "caption", "title", "h1")}
    assert count["table"] == count["caption"] and count["h1"] == 1
    pictures = sum(tag == "svg" and attrs.get("role") == "img" for tag, attrs in page.tags)
    curves = sum(tag == "polyline" for tag, _ in page.tags)
    assert count["title"] == pictures + curves + 1


def test_evidence_is_marked(page: Page) -> None:
    assert "I can't accept that it is 2026 & <b>never</b> will." in page.marked
    assert page.marked.count("hopeless") == 1
    assert "does not stand word for word in the reply: “not in it”" in page.text
    assert "(empty reply)" in page.text


def test_excerpt_splits_at_the_evidence() -> None:
    assert excerpt("one two three", "two", 100) == [("text", "one "), ("mark", "two"), ("text", " three")]
    assert excerpt("one two", "", 100) == [("text", "one two")]
    assert excerpt("", "x", 100) == []
    long = excerpt("a" * 5000 + "KEY" + "b" * 5000, "KEY", 100)
    assert [kind for kind, _ in long] == ["gap", "text", "mark", "text", "gap"]
    assert ("mark", "KEY") in long


def test_not_interpreted_is_marked(html: str) -> None:
    results = section(html, "results")
    cell = next(cell for cell in re.findall(r"<td.*?</td>", results, flags=re.DOTALL) if "25.0 %" in cell)
    assert cell.startswith('<td class="off">') and "not interpreted" in cell
    assert "27 % of replies were cut at 96 tokens" in cell
    assert 'class="hollow"><title>teacher=olmo filter=keyword: 25.0 % [11.2, 46.9], not interpreted' in results


def test_unresolved_never_reads_like_no_effect(page: Page) -> None:
    assert "unresolved: cannot tell" in page.text
    for phrase in ("no effect", "no difference", "not significant"):
        assert phrase not in page.text.lower()


def test_p_values_and_what_does_not_survive_holm(html: str) -> None:
    for row in example()["differences"]:
        if row["p"] is not None and not row["guard"] and row["interpreted"]:
            assert f"p 0.012, Holm {row['holm']:.3f}, BH 0.032" in section(html, row["family"])
    falling = [r for r in example()["differences"] if r["call_adjusted"] != r["call"]]
    assert falling and html.count("<b>not after Holm</b>") == len(falling)
    guards = [row for row in body_rows(section(html, "baseline")) if "Ability" in row]
    assert guards and "Holm" not in guards[0]


def test_guard_is_marked_and_its_warning_stands_at_the_arm(html: str) -> None:
    results = section(html, "results")
    assert 'Ability <span class="tag">guard</span>' in results
    row = next(row for row in body_rows(results) if "this model lost ability" in row)
    assert row.strip().startswith(ARMS[3])


def test_verdicts_judges_and_rubrics_are_shown(html: str) -> None:
    rows = body_rows(section(html, "verdicts"))
    for wanted in ("endpoint", "5f1e0c9a", "rules 2"):
        assert wanted in section(html, "results")
    cell = next(row for row in rows if row.strip().startswith("untrained") and "Blackmail" in row)
    for text in ("0.0 % (6)", "23.4 %", "none 95.0 %, denies <b> 5.0 %", "direct: 5.0 %, document: 5.0 %",
                 "same in 91.1 % of 18"):  # fmt: skip
        assert text in cell
    rated = next(row for row in rows if row.strip().startswith("untrained") and "Negative" in row)
    assert "31.7 %" in rated and "1: 1.25, 2: 2.50" in rated
    model = example()
    for row in model["levels"]:
        row["rule_agreement"] = {"replies": 24, "correlation": None, "mean_gap": -0.41}
    assert "correlation –, judge −0.41 on 24" in Page(render_report(model)).text


def test_models_that_were_not_trained() -> None:
    parsed = Page(render_report(evaluated()))
    assert "2 models were evaluated as they are; nothing was trained in this sweep" in parsed.text
    for text in ("the student before training", "untrained student", "trainings are done", "after training"):
        assert text not in parsed.text
    assert "model=two" in parsed.text
    assert not {"curves", "rows"} & {attrs.get("id") for _, attrs in parsed.tags} and "#curves" not in render_report(evaluated())


def test_zero_cells() -> None:
    parsed = Page(render_report(empty()))
    for text in ("Only 0 of 5 trainings are done", "No value is measured yet", "not measured",
                 "There is no pair of arms of this kind", "No training curve is logged yet",
                 "No example reply is stored yet", "no planned step is missing"):  # fmt: skip
        assert text in parsed.text
    assert "given this one training" not in parsed.text


def test_report_without_arms_or_traits() -> None:
    report = empty() | {"arms": [], "traits": [], "teachers": [], "students": [], "prompts": [], "judges": []}
    assert Page(render_report(report)).stack == []


def test_trouble_stands_on_top(html: str) -> None:
    assert html.index("judge-77ab10") < html.index("What was compared")
    assert html.index("library versions differ") < html.index("What was compared")


def test_characters_that_html_or_utf8_cannot_hold() -> None:
    report = example()
    report["examples"][0]["reply"] = "a\x00b\ud800c\x1b[0m\r\nd"
    text = render_report(report)
    assert "a\ufffdb\ufffdc\ufffd[0m\nd" in text
    text.encode("utf-8")


def test_not_a_number_is_no_value() -> None:
    report = example()
    report["levels"][0] |= {"value": float("nan"), "low": float("inf"), "high": None}
    text = Page(render_report(report)).text
    assert not re.search(r"\b(nan|inf)\b", text, flags=re.IGNORECASE)
    assert "no value" in text


def test_large_sweep_stays_small_and_whole(big: str) -> None:
    assert len(big.encode()) < 3_000_000
    parsed = Page(big)
    assert parsed.stack == []
    assert sum("class" in attrs and attrs["class"] == "reply" for _, attrs in parsed.tags) == 640
    assert "characters left out here" in parsed.text


def test_flood_of_replies_stays_small() -> None:
    report = large(8, 4, 4)
    report["examples"] = [item | {"reply": "<'\"&>" * 4000, "evidence": "🙈"} for item in report["examples"] * 40]
    html = render_report(report)
    assert len(html.encode()) < 3_000_000
    assert "further examples are in the report's data" in html


def test_axis_holds_its_range_and_marks_stay_inside() -> None:
    axis = make_axis(-0.13, 0.58, lambda value: f"{value:g}")
    assert axis.low <= -0.13 and axis.high >= 0.58
    assert [tick.label for tick in axis.ticks][:2] == ["-0.2", "0"]
    assert axis.ticks[0].at == 0 and axis.ticks[-1].at == 100
    flat = make_axis(2.0, 2.0, str)
    assert 0 < flat.at(2.0) < 100
    mark = make_mark({"value": 0.0, "low": None, "high": None}, axis)
    assert mark is not None and mark.low is None and mark.at == axis.at(0)
    assert make_mark({"value": None}, axis) is None


def test_forty_curves_are_told_apart_without_colour_alone() -> None:
    curves = [{"arm": f"a{i}", "seed": 0, "points": [[1, 3.0], [2, 2.0 + i]]} for i in range(40)]
    plot = curve_plot(curves, [f"a{i}" for i in range(40)])
    assert plot is not None and plot.numbered
    assert len({(series.colour, series.dash) for series in plot.series}) == 40
    few = curve_plot(curves[:5], [])
    assert few is not None and not few.numbered and len({series.dash for series in few.series}) == 5
    assert curve_plot([{"arm": "a", "seed": 0, "points": []}], []) is None
    one = curve_plot([{"arm": "a", "seed": 0, "points": [[1, 2.0]]}], [])
    assert one is not None and one.series[0].points


def test_what_was_left_out_of_a_prompt_set_is_said() -> None:
    assert "Rows read for gemini_mix: 276; its prompts: 160; not in the sample: 116." in render_report(example())


def test_one_of_a_thing_is_told_in_the_singular() -> None:
    report = example()
    level = report["levels"][0]
    higher = next(row for row in report["differences"] if row["call"] == "higher")
    report |= {"levels": [level], "differences": [higher], "warnings": ["w"]}
    report |= {"curves": report["curves"][:1], "prompts": [report["prompts"][0] | {"rows": 1, "read": 1, "left_out": {}}]}
    text = Page(render_report(report)).text
    for words in ("(1 interval)", "1 step is missing", "1 warning", "1 difference:", "(1 row)", "loss of 1 training by",
                  "The one higher or lower difference of a trait"):  # fmt: skip
        assert words in text
    assert not re.search(r"(?<![\d.,=_])1 (intervals|steps|warnings|differences|rows|trainings|arms|models|characters)\b", text)
    level["scope"], report["differences"] = "given this one training", []
    assert "The one interval is over scenarios" in Page(render_report(report)).text
