"""What a search found, as search.json, as a page and on the terminal. The page is self-contained; every text in it is escaped."""

import time
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape

from sftdiff.diff_report import SIGNS, interval_text, transfer_plot
from sftdiff.report_html import clean, page_environment
from sftdiff.report_plots import in_unit
from sftdiff.rounds import OPEN
from sftdiff.search import BUDGET, CLAIMS, Result, Search
from sftdiff.search_known import Settings
from sftdiff.search_state import CONFIRM, TREATMENTS, Answer, trainings
from sftdiff.words import counted

WORDS = {"in": "swapped in", "out": "swapped out", "drop": "dropped"}
SHOWN = 8  # sources that a line on the terminal names


def singles(sources: int, settings: Settings) -> int:
    """Return the trainings of testing every source by itself: in, out and drop, with the seeds of a first verification."""
    return len(TREATMENTS) * sources * settings.looks[0]


def tried(answers: Iterable[Answer], levels: Mapping[Any, float | None]) -> list[dict[str, Any]]:
    """Return the answers in their order, as rows: `levels` has the mean level of each by (test, seeds)."""
    rows = []
    for answer in answers:
        number = answer.purpose.removeprefix(CONFIRM).strip()
        phase = f"verification {int(number) + 1}" if answer.purpose.startswith(CONFIRM) else "exploration"
        found = {key: value for key, value in answer.to_json().items() if key not in ("test", "purpose")}
        level = levels.get((answer.test, answer.seeds))
        rows.append({"phase": phase, "treatment": answer.test.treatment, "test": answer.test.to_json(), "level": level} | found)
    return rows


def to_do(name: str, result: Result, answers: list[Answer], search: Search, found: Path | None) -> list[str]:
    """Return what to run next, a sentence each. `found` is the file with the prompt_ids of the set."""
    lines = []
    if found is not None:
        given = f"`'diff.given.subset={{prompt_subset:ids,prompt_subset.ids:\"{found}\"}}'`"
        lines.append(f"To have the set as arms of a diff, beside random rows of its size: `python -m sftdiff.diff` with the same "
                     f"settings and {given}.")  # fmt: skip
    calls = {name: result.confirmed[name] for name in CLAIMS if name in result.confirmed}
    if BUDGET in result.note:
        least = _least_budget(answers, search)
        lines.insert(0, f"The budget ended: the same command with `diff.search.budget={least}` or more goes on.")
    elif result.state != "found" and any(answer.call == OPEN for answer in calls.values()):
        more = [*search.settings.looks, 2 * search.settings.looks[-1] - search.settings.looks[0]]
        seeds = ",".join(map(str, more))
        lines.insert(0, f"Its transfers are not resolved after all looks: the same command with `sweep={name}-more "
                        f"diff.search.looks=[{seeds}]` looks with more seeds, and trains nothing twice.")  # fmt: skip
    elif result.state in ("anywhere", "diffuse"):
        lines.append("How the trait falls as more rollouts are swapped: `python -m sftdiff.diff` with the same settings and "
                     "`diff.only=[prompt_swap,curve_05,curve_25,curve_50,curve_75]`.")  # fmt: skip
    elif result.state == "elsewhere":
        only = "`diff.only=[base_swap,prompt_swap]`"
        lines.append(f"What else carries it: `python -m sftdiff.diff` with the same settings and {only}.")
    return lines


def _least_budget(answers: list[Answer], search: Search) -> int:
    """Return the smallest budget with which the search trains something more."""
    endless = Search(search.sources, replace(search.settings, budget=10**9)).step(answers)
    if isinstance(endless, Result):
        return trainings(answers)
    kept = 0 if any(ask.purpose.startswith(CONFIRM) for ask in endless) else search.settings.verification
    return trainings([*answers, *endless]) + kept


def write_search(folder: Path, data: Mapping[str, Any]) -> None:
    """Write search.html of what search.json says."""
    (folder / "search.html").write_text(render(data), encoding="utf-8")


def render(data: Mapping[str, Any]) -> str:
    """Return the page of a search."""
    environment, data = page_environment(), clean(data)
    environment.filters.update(interval=interval_text, plural=counted)
    environment.filters.update(
        test=lambda test: test_text(test, data["sources"]), level=lambda value: in_unit(value, data["kind"])
    )
    titles = {f"{kind}{name}": f"{'as many random rows' if kind else 'the set'}, {words}"
              for kind in ("", "random_") for name, words in WORDS.items()}  # fmt: skip
    confirmed = data["result"]["confirmed"]
    rows = [(f"{kind}{name}", titles[f"{kind}{name}"], confirmed[f"{kind}{name}"])
            for name in TREATMENTS for kind in ("", "random_") if f"{kind}{name}" in confirmed]  # fmt: skip
    plot = transfer_plot(rows, data["settings"])
    view = {"s": data, "result": data["result"], "total": sum(data["sources"].values()), "plot": plot, "signs": SIGNS}
    shown = {"made": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), "words": WORDS}
    return environment.get_template("search.html.j2").render(**view, **shown)


def test_text(test: Mapping[str, Any], sources: Mapping[str, int]) -> str:
    """Return the set of a test in words; of more than half of the sources, those that are not in it."""
    if test.get("random_rows"):
        return f"{test['random_rows']} random rows"
    parts = test["parts"]
    if len(parts) == len(sources):
        return f"all {len(sources)} sources"
    if 2 * len(parts) > len(sources) and not any(part["cuts"] for part in parts):
        left = sorted(set(sources) - {part["source"] for part in parts})
        return f"all sources but {', '.join(left)}"
    return ", ".join(map(part_text, parts)) or "nothing"


test_text.__test__ = False  # type: ignore[attr-defined]  # not for pytest


def part_text(part: Mapping[str, Any]) -> str:
    """Return a source, or which ranks of it, in words."""
    cuts = "".join(f", ranks {start} to {stop} by {order}" for order, start, stop in part["cuts"])
    return f"{part['source']}{cuts}"


def print_found(console: Console, data: Mapping[str, Any]) -> None:
    """Print the set, its transfers beside random rows, what it took, and what to run next."""
    found, total = data["result"], sum(data["sources"].values())
    parts = "; ".join(map(part_text, found["parts"][:SHOWN])) or "none"
    more = f" and {len(found['parts']) - SHOWN} more" if len(found["parts"]) > SHOWN else ""
    size = f"{counted(len(found['parts']), 'source')}, {found['rows']} of {total} rows ({found['rows'] / total:.1%})"
    console.print(escape(f"{data['title']}: {found['meaning']} ({found['state']}). Set: {parts}{more}; {size}."))
    for name, answer in found["confirmed"].items():
        console.print(escape(f"  {name:<12} transfer {interval_text(answer)} {answer['call']}, {len(answer['seeds'])} seeds"))
    console.print(escape(f"{found['trainings']} trainings, {found['tests']} tests; testing every source by itself takes "
                         f"{data['singles']}. {found['note']}".strip()))  # fmt: skip
    for line in data["to_do"]:
        console.print(escape(f"Next: {line}"))
