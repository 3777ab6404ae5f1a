"""The HTML page of a report.

This module owns the view of a report dict as one self-contained page: which numbers stand where, in which words
and digits, and which text is shown of replies. It computes no statistic; plot geometry is in `report_plots`, and
the page itself in `templates/report.html.j2`. Every string of the report is untrusted and escaped by the template.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from sftdiff import report_plots as plots
from sftdiff.report_details import detail_rows, falls, tests_view
from sftdiff.report_examples import example_view
from sftdiff.report_plots import View, number
from sftdiff.report_shares import share_plots
from sftdiff.words import counted, plural

TEMPLATES = Path(__file__).parent / "templates"
ONE_TRAINING = "given this one training"
FOLD_ROWS = 16
TREATED = ("kept", "swapped", "dropped", "error", "over_length")
_UNSAFE = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")


def render_report(report: Mapping[str, Any]) -> str:
    """The whole page for one report dict."""
    environment = page_environment()
    environment.filters.update(counted=counted_text, middle=middle)
    return environment.get_template("report.html.j2").render(build_view(clean(report)))


def page_environment() -> Environment:
    """What renders a page: every text is escaped, an unknown name is an error, and numbers have filters."""
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    environment.filters.update(count=count_text, decimal=decimal_text, share=share_text, code=code_text)
    return environment


def clean(value: Any) -> Any:
    """The same value with every character that HTML or UTF-8 cannot hold replaced by U+FFFD."""
    if isinstance(value, str):
        return _UNSAFE.sub("\ufffd", value.replace("\r\n", "\n"))
    if isinstance(value, Mapping):
        return {clean(str(key)): clean(item) for key, item in value.items()}
    return [clean(item) for item in value] if isinstance(value, (list, tuple)) else value


def build_view(report: Mapping[str, Any]) -> View:
    """Everything the template places."""
    arms, methods = all_arms(report), interval_kinds(report)
    known = {arm["id"]: arm for arm in arms}
    families = [family_view(report, key, known, methods) for key in ("baseline", "contrast")]
    return {
        "r": report, "arms": arms, "traits": report.get("traits") or [], "methods": list(methods.values()),
        "headline": headline(report, arms), "notice": one_training(report), "fold": FOLD_ROWS,
        "levels": level_cells(report, methods), "level_plots": plots.level_plots(report, arms),
        "shares": share_plots(report), "families": families,
        "curves": plots.curve_plot(report.get("curves") or [], [arm["id"] for arm in arms]),
        "cells": [(arm["id"], cell) for arm in arms for cell in arm["cells"]],
        "mixtures": [mixture_view(mixture) for mixture in report.get("mixtures") or []],
        "health": {(row["arm"], row["trait"]): row for row in report.get("levels") or []},
        "details": detail_rows(report, arms),
        **example_view(report, arms), "provenance": provenance_view(report.get("provenance") or {}),
    }  # fmt: skip


# ---- numbers as text


def count_text(value: object) -> str:
    """A whole number with thousands marked, or a dash."""
    found = number(value)
    return "–" if found is None else f"{found:,.0f}"


def counted_text(value: object, noun: str) -> str:
    """A whole number with its noun, or a dash."""
    return f"{count_text(value)} {plural(noun, number(value))}"


def decimal_text(value: object, digits: int = 2) -> str:
    """A number with fixed digits and a true minus sign, or a dash."""
    found = number(value)
    return "–" if found is None else f"{found:,.{digits}f}".replace("-", "−")


def share_text(value: object) -> str:
    """A share as per cent with one digit, or a dash."""
    found = number(value)
    return "–" if found is None else f"{100 * found:.1f} %".replace("-", "−")


def code_text(text: str) -> Markup:
    """Return text for a page, escaped, with what stands between backticks as code."""
    parts = [escape(part) for part in text.split("`")]
    return Markup("").join(Markup("<code>{}</code>").format(part) if n % 2 else part for n, part in enumerate(parts))


# ---- what was compared


def all_arms(report: Mapping[str, Any]) -> list[View]:
    """Arms in report order, those that were not trained here first, and any arm that only the levels name; filled up."""
    held = {str(arm["id"]): arm for arm in report.get("arms") or []}
    for row in report.get("levels") or []:
        own = row["arm"] != "untrained"
        held.setdefault(row["arm"], {"id": row["arm"], "untrained": not own, "trained_here": own})
    stands = {t["name"] for t in report.get("teachers") or [] if is_stand_in(t)}
    arms = [
        {"id": name, "axes": arm.get("axes") or {}, "untrained": arm["untrained"], "trained_here": arm["trained_here"],
         "seeds": arm.get("seeds") or [], "cells": [filled_cell(cell) for cell in arm.get("cells") or []],
         "stand_in": (arm.get("axes") or {}).get("teacher") in stands, "notes": arm.get("notes") or []}
        for name, arm in held.items()
    ]  # fmt: skip
    return sorted(arms, key=lambda arm: bool(arm["trained_here"]))


def filled_cell(cell: Mapping[str, Any]) -> View:
    """A training's cell with every key that the table shows."""
    keys = ("id", "seed", "status", "error", "rows", "tokens", "loss_tokens", "rows_seen", "loss_tokens_seen", "optimizer_steps",
            "first_loss",
            "last_loss", "seconds")  # fmt: skip
    return {key: cell.get(key) for key in keys}


def is_stand_in(teacher: Mapping[str, Any]) -> bool:
    """Whether the replies came from something else than the named model."""
    return "stand" in str(teacher.get("used")).lower()


def headline(report: Mapping[str, Any], arms: Sequence[View]) -> View:
    """The facts of the first paragraph."""
    filters = [str(mixture.get("filter")) for mixture in report.get("mixtures") or []]
    filters = filters or [str(arm["axes"]["filter"]) for arm in arms if "filter" in arm["axes"]]
    cells, teachers = [cell for arm in arms for cell in arm["cells"]], report.get("teachers") or []
    return {
        "filters": list(dict.fromkeys(filters)), "arms": sum(arm["trained_here"] for arm in arms),
        "seeds": sorted({str(seed) for arm in arms if arm["trained_here"] for seed in arm["seeds"]}, key=natural),
        "done": sum(cell["status"] == "done" for cell in cells), "cells": len(cells),
        "teachers": [{"stand_in": is_stand_in(teacher), **teacher} for teacher in teachers],
        "stand_ins": [teacher["name"] for teacher in teachers if is_stand_in(teacher)],
    }  # fmt: skip


def natural(text: str) -> tuple[int, str]:
    """Sort key that puts 2 before 10."""
    return (int(text), "") if text.isdecimal() else (10**9, text)


def intervals(report: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Every level and difference that has an interval."""
    rows = [*(report.get("levels") or []), *(report.get("differences") or [])]
    return [row for row in rows if number(row.get("low")) is not None or number(row.get("high")) is not None]


def one_training(report: Mapping[str, Any]) -> View | None:
    """How many intervals hold only for the one training that was run, or None where none does."""
    rows = intervals(report)
    narrow = sum(ONE_TRAINING in str(row.get("scope")) for row in rows)
    return {"narrow": narrow, "all": len(rows)} if narrow else None


def interval_kinds(report: Mapping[str, Any]) -> dict[tuple[str, str], View]:
    """A letter for each pair of method and scope."""
    pairs = Counter((str(row.get("method")), str(row.get("scope"))) for row in intervals(report))
    return {
        pair: {"key": chr(ord("a") + i) if i < 26 else f"x{i}", "method": pair[0], "scope": pair[1], "count": n}
        for i, (pair, n) in enumerate(pairs.items())
    }


# ---- levels


def cell_view(row: Mapping[str, Any], kind: str, methods: Mapping[tuple[str, str], View], signed: bool) -> View:
    """One table cell of a level or a difference."""
    method, texts = methods.get((str(row.get("method")), str(row.get("scope")))), plots.value_texts(row, kind, signed)
    return {
        **texts, "interpreted": bool(row.get("interpreted", True)), "note": row.get("note"),
        "method": method["key"] if method and texts["interval"] else "", "call": plots.call_view(row),
        "tests": tests_view(row), "falls": falls(row),
    }  # fmt: skip


def trait_kinds(report: Mapping[str, Any]) -> dict[str, str]:
    """Whether each trait is a share or a rating."""
    return {trait["name"]: trait.get("kind", "share") for trait in report.get("traits") or []}


def level_cells(report: Mapping[str, Any], methods: Mapping[tuple[str, str], View]) -> dict[tuple[str, str], View]:
    """The cells of the results table by arm and trait; a pair that was not measured has no entry."""
    kinds, rows = trait_kinds(report), report.get("levels") or []
    return {(r["arm"], r["trait"]): cell_view(r, kinds.get(r["trait"], "share"), methods, False) for r in rows}


# ---- differences


def pair_words(row: Mapping[str, Any], known: Mapping[str, View], one_baseline: bool) -> tuple[str, str]:
    """How a difference's row is named: by the axis in which the two arms differ, where that is known."""
    arm, baseline, axis = str(row["arm"]), str(row["baseline"]), row.get("axis")
    one, two = (known[name]["axes"] if name in known else {} for name in (arm, baseline))
    if axis and axis in one and axis in two:
        rest = " ".join(f"{key}={value}" for key, value in one.items() if key != axis and two.get(key) == value)
        return f"{axis}: {one[axis]} minus {two[axis]}", f"both with {rest}" if rest else ""
    return arm, "" if one_baseline else f"minus {baseline}"


def family_view(
    report: Mapping[str, Any], family: str, known: Mapping[str, View], methods: Mapping[tuple[str, str], View]
) -> View:
    """Table rows, plots and counts of one family of differences."""
    rows = [row for row in report.get("differences") or [] if row.get("family") == family]
    rows.sort(key=lambda row: str(row.get("axis") or ""))
    baselines = list(dict.fromkeys(str(row["baseline"]) for row in rows))
    kinds = trait_kinds(report)
    table: dict[tuple[str, str, str], View] = {}
    for row in rows:
        words = pair_words(row, known, family == "baseline" and len(baselines) == 1)
        entry = table.setdefault(
            (row["arm"], row["baseline"], str(row.get("axis"))),
            {"words": words, "pair": f"{row['arm']} minus {row['baseline']}", "cells": {}, "rows": {}},
        )
        entry["cells"][row["trait"]] = cell_view(row, kinds.get(row["trait"], "share"), methods, True)
        entry["rows"][row["trait"]] = row
    calls = Counter(str(row.get("call")) for row in rows)
    found = [row for row in rows if row.get("call") in ("higher", "lower") and not row.get("guard")]
    return {
        "key": family, "baselines": baselines, "rows": list(table.values()), "count": len(rows),
        "found": len(found), "holding": sum(not falls(row) for row in found),
        "calls": [(call, calls[call]) for call in dict.fromkeys([*plots.CALLS, *calls]) if calls[call]],
        "plots": [plots.difference_plot(trait, table.values()) for trait in report.get("traits") or []] if rows else [],
    }  # fmt: skip


# ---- data, replies, provenance


def mixture_view(mixture: Mapping[str, Any]) -> View:
    """One treatment of rows: every kind of outcome that occurs, its total, and the same for each source."""
    totals, sources = mixture.get("totals") or {}, mixture.get("by_source") or []
    more = [key for row in (totals, *sources) for key in row if key != "source"]
    keys = list(dict.fromkeys([*TREATED, *more]))
    facts = {key: mixture.get(key) for key in ("arm", "subset", "treatment", "filter")}
    by_source = [(row.get("source"), {key: row.get(key) for key in keys}) for row in sources]
    return {**facts, "keys": keys, "totals": {key: totals.get(key) for key in keys}, "by_source": by_source}


def middle(text: object, most: int = 2400) -> str:
    """The text with its middle left out where it is long; the end of a traceback matters most."""
    whole, head = str(text), most // 4
    left_out = len(whole) - most
    return whole if left_out <= 0 else f"{whole[:head]}\n[… {counted(left_out, 'character')} left out …]\n{whole[head - most :]}"


def provenance_view(provenance: Mapping[str, Any]) -> View:
    """Single facts, library versions and steps, with every key that the step table shows."""
    facts = {key: value for key, value in provenance.items() if not isinstance(value, (dict, list))}
    keys = ("id", "kind", "seconds", "peak_memory_gb", "content")
    steps = [{key: step.get(key) for key in keys} for step in provenance.get("steps") or []]
    return {"facts": facts, "libraries": provenance.get("libraries") or {}, "steps": steps}
