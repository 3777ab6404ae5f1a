"""What a diff found, as diff.json, as a page and on the terminal. The page is self-contained; every text in it is escaped."""

import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from sftdiff.decisions import Decisions, Entry, load_decisions
from sftdiff.diff_curve import curve_plot_of
from sftdiff.diff_next import cost_text, to_do
from sftdiff.diff_subset import print_subset, subset_data, swap_against_drop
from sftdiff.diffing import Verdicts, levels, looks_so_far, schedule_of, training_seconds
from sftdiff.hypotheses import next_arms, verdict
from sftdiff.published import lay_beside, load_published
from sftdiff.records import write_json
from sftdiff.report_html import clean, decimal_text, page_environment
from sftdiff.report_plots import View, make_axis, make_mark, number
from sftdiff.rounds import DIFFERENCE, OPEN, PAIR, next_round, saved, spent
from sftdiff.words import counted, difference_text, level_text, time_text

SIGNS = {"remains": "●", "gone": "○", "partial": "◐", OPEN: "?", "supported": "✓", "contradicted": "✗", "open": "?"}
EDGE = (-0.5, 1.5)  # of the transfer axis
SHOWN_NEXT = 5


def write_result(
    folder: Path, plan: Mapping[str, Any], state: Mapping[str, Any], verdicts: Mapping[str, Verdicts], runs: Path
) -> None:
    """Write diff.json and diff.html of a diff: what the looks that were taken say. `verdicts` are those of each trait."""
    write_pages(folder, build_result(plan, state, verdicts, training_seconds(runs, state["cells"]), folder.name))


def write_pages(folder: Path, result: Mapping[str, Any]) -> None:
    """Write a result as diff.json and diff.html."""
    write_json(folder / "diff.json", result)
    (folder / "diff.html").write_text(render(result), encoding="utf-8")


def build_result(
    plan: Mapping[str, Any], state: Mapping[str, Any], verdicts: Mapping[str, Verdicts], seconds: float | None, name: str
) -> dict[str, Any]:
    """Return the result as one JSON-able dict; `seconds` are those of a training with its sampling and judging."""
    settings = plan["settings"]
    trained: dict[str, set[int]] = {}
    for trait in plan["traits"]:
        for arm, by_seed in verdicts[trait].items():
            trained.setdefault(arm, set()).update(by_seed)
    counts, schedule = {arm: len(trained.get(arm, ())) for arm in plan["arms"]}, schedule_of(settings)
    traits = {t: _trait(plan, t, state["looks"].get(t, {}), verdicts[t], seconds) for t in plan["traits"]}
    result = {
        "schema": 1,
        "name": name,
        "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "command": plan["command"],
        "settings": {k: settings[k] for k in ("seeds", "alpha", "gone", "remains", "budget", "difference_first", "decisions")},
        "arms": {arm: {"title": title, "seeds": counts[arm]} for arm, title in plan["arms"].items()},
        "guards": {name: _guard(trait, verdicts[name], plan["resamples"]) for name, trait in plan.get("guards", {}).items()},
        "left_out": plan["left_out"],
        "rounds": state["rounds"],
        "trainings": sum(counts.values()),
        "saved": None if next_round(state["looks"], counts, schedule) else saved(counts, schedule),
        "seconds_a_training": seconds,
        "curve": plan.get("curve", {}),
        "traits": traits,
        "to_do": to_do(name, state["looks"], counts, schedule, traits, seconds, settings["only"]),
    }
    if settings.get("published"):
        result["published"] = _published(plan, result, verdicts)
    return result


def _guard(trait: Mapping[str, Any], verdicts: Verdicts, resamples: int) -> dict[str, Any]:
    return {key: trait[key] for key in ("title", "unit", "kind")} | {"levels": levels(verdicts, trait, resamples)}


def _published(plan: Mapping[str, Any], result: dict[str, Any], verdicts: Mapping[str, Verdicts]) -> dict[str, Any]:
    """Return the published findings beside what the arms show so far, and what is still to be run."""
    settings, first, looks = plan["settings"], plan["first_seed"], {}
    schedule = schedule_of(settings)
    planned = {arm: schedule.last(arm) for arm in plan["arms"]}
    for name, trait in plan["traits"].items():
        own = result["traits"][name]
        taken = {arm: [look] for arm, look in own["arms"].items()}
        taken |= {DIFFERENCE: [own["difference"]]} if own["difference"] else {}
        own["so_far"] = looks_so_far(taken, verdicts[name], trait, settings, first)
        looks[name] = own["arms"] | {arm: look for arm, look in own["so_far"].items() if arm != DIFFERENCE}
    found = lay_beside(load_published(settings["published"]), plan["traits"], looks, verdicts, planned)
    missing = {arm: seeds for arm in plan["arms"] if (seeds := _missing(arm, planned[arm], first, verdicts))}
    return {"findings": found, "planned": planned, "missing": missing, "parts": plan["parts"]}


def _missing(arm: str, planned: int, first: int, verdicts: Mapping[str, Verdicts]) -> list[int]:
    """Return the training seeds of an arm that lack verdicts on a trait or guard."""
    return [seed for seed in range(first, first + planned) if not all(seed in own.get(arm, {}) for own in verdicts.values())]


def _trait(
    plan: Mapping[str, Any], name: str, looks: Mapping[str, Any], verdicts: Mapping[str, Any], seconds: float | None
) -> dict[str, Any]:
    trait, settings = plan["traits"][name], plan["settings"]
    taken = looks.get(DIFFERENCE) or [None]
    arms = {arm: own[-1] | {"looks": len(own), "spent": spent(own)} for arm, own in looks.items() if arm != DIFFERENCE and own}
    found: dict[str, Any] = {key: trait[key] for key in ("title", "unit", "kind", "smallest_effect")} | {"name": name}
    found |= {"difference": taken[-1], "looks_at_difference": len(looks.get(DIFFERENCE, []))}
    found |= {"levels": levels(verdicts, trait, plan["resamples"]), "arms": arms}
    found["subset"] = subset_data(verdicts, trait)
    decisions = load_decisions(settings["decisions"])
    calls = {arm: own["call"] for arm, own in arms.items()}
    made = {arm: call for arm, call in calls.items() if arm not in PAIR}
    found["verdict"] = verdict_data(decisions, made)
    open_arms = [arm for arm in plan["arms"] if arm not in PAIR and calls.get(arm, OPEN) == OPEN]
    costs = {arm: _trainings_to_next_look(arms.get(arm), settings["seeds"]) for arm in open_arms}
    needs = {**plan["left_out"], **plan.get("not_asked", {})}
    missing = {arm: float(settings["seeds"][0]) for arm in needs}
    found["next"] = [
        {"arm": s.arm, "bits": s.bits, "trainings": int(s.cost), "seconds": None if seconds is None else seconds * s.cost,
         "needs": needs.get(s.arm)}
        for s in next_arms(decisions, calls, costs | missing)[:SHOWN_NEXT]
    ]  # fmt: skip
    return found | {"says": _says(found), "one_training": _one_training(found), "method": _method(arms.values())}


def _one_training(found: Mapping[str, Any]) -> str | None:
    """Say that a verdict rests on one training seed, where it does."""
    alone = [arm for arm, own in found["arms"].items() if own["call"] != OPEN and own["seeds"] == 1]
    if not alone:
        return None
    return (f"{len(alone)} of the calls rest on one training seed each ({', '.join(alone)}): they hold for these trainings; "
            "another seed may come out otherwise, and no interval here says how much.")  # fmt: skip


def _method(looks: Iterable[Mapping[str, Any]]) -> str | None:
    """Return the note that most looks have, to be said once."""
    notes = Counter(look["note"] for look in looks if look.get("note"))
    note, count = max(notes.items(), key=lambda each: each[1], default=(None, 0))
    return note if count > 1 else None


def verdict_data(decisions: Decisions, calls: Mapping[str, str]) -> dict[str, Any]:
    """Return the verdict on each hypothesis: its name and state, the entries for and against it, and arms that do not fit."""
    found = verdict(decisions, calls)
    return {
        own.hypothesis.label: {
            "name": own.hypothesis.name,
            "meaning": own.hypothesis.meaning,
            "state": own.state,
            "for": _entries(own.speaks_for),
            "against": _entries(own.against),
            "misfits": [each.arm for each in found.misfits if each.hypothesis == own.hypothesis.label],
        }
        for own in found.findings
    }


def _entries(entries: Sequence[Entry]) -> list[dict[str, Any]]:
    keys = ("arm", "call", "reason", "decisive")
    return [{key: getattr(entry, key) for key in keys} for entry in sorted(entries, key=lambda entry: not entry.decisive)]


def _trainings_to_next_look(own: Mapping[str, Any] | None, seeds: Sequence[int]) -> float:
    """Return what another look at an arm costs beside the pair: more seeds than planned where all looks were taken."""
    if own is None:
        return float(seeds[0])
    return float(seeds[own["looks"]] - own["seeds"] if own["looks"] < len(seeds) else own["seeds"])


def _says(found: Mapping[str, Any]) -> str:
    """Return the finding in a sentence or two."""
    difference = found["difference"]
    call = difference["call"] if difference else None
    if call is None:
        return "Nothing was looked at yet."
    if call == "same":
        return "Original and alternative show the trait alike: there is nothing to diff."
    if call == "lower":
        return "The original shows less of the trait than the alternative: name them the other way round."
    if call == OPEN:
        return "Original and alternative are not seen to differ with these seeds: there is nothing to diff yet."
    states: dict[str, list[str]] = {"supported": [], "contradicted": [], "open": []}
    for label, own in found["verdict"].items():
        states[own["state"]].append(f"{label} ({own['name']})" if own["state"] == "supported" else label)
    parts = [f"{state}: {', '.join(labels)}" for state, labels in states.items() if labels]
    return f"The original shows more of the trait than the alternative. Hypotheses {'; '.join(parts)}."


def render(result: Mapping[str, Any]) -> str:
    """Return the page of a result."""
    environment, result = page_environment(), clean(result)
    environment.filters.update(
        counted=counted,
        level=level_text,
        interval=interval_text,
        gap=difference_text,
        time=time_text,
        drop=swap_against_drop,
        numbers=numbers_text,
        names=_names,
    )
    traits = result["traits"]
    plots = {trait: _plot(result, own) for trait, own in traits.items()}
    curves = {trait: curve_plot_of(result, trait) for trait in traits}
    return environment.get_template("diff.html.j2").render(r=result, plots=plots, curves=curves, signs=SIGNS)


def _plot(result: Mapping[str, Any], trait: Mapping[str, Any]) -> View:
    """Return the transfers of a trait's arms on one axis, 0 the alternative and 1 the original."""
    rows = [(arm, result["arms"][arm]["title"], own) for arm, own in trait["arms"].items()]
    return transfer_plot(rows, result["settings"])


def transfer_plot(rows: Iterable[tuple[str, str, Mapping[str, Any]]], bounds: Mapping[str, Any]) -> View:
    """Return transfers on one axis: rows of (arm, its title, a look), and the settings with `gone` and `remains`."""
    axis = make_axis(*EDGE, lambda value: f"{value:g}")
    shown = []
    for arm, title, own in rows:
        ends = {key: number(own.get(key)) for key in ("value", "low", "high")}
        for key, edge in zip(("low", "high"), EDGE, strict=True):  # a limit that there is not lies beyond the axis
            ends[key] = edge if ends[key] is None else ends[key]
        shown.append({"arm": arm, "title": title, "mark": make_mark(ends, axis), "look": own})
    return {"axis": axis, "rows": shown, "gone": axis.at(bounds["gone"]), "remains": axis.at(bounds["remains"])}


def interval_text(look: Mapping[str, Any]) -> str:
    """Return a transfer with its limits; a limit that there is not is written as no end."""
    if number(look.get("value")) is None:
        return "–"
    low, high = (end if number(look[key]) is None else decimal_text(look[key]) for key, end in (("low", "−∞"), ("high", "∞")))
    return f"{decimal_text(look['value'])} [{low}, {high}]"


def print_result(console: Console, result: Mapping[str, Any]) -> None:
    """Print levels, transfers, calls and the verdict of each trait."""
    for trait in result["traits"].values():
        table = Table(title=f"{trait['title']} ({trait['unit']})", title_justify="left")
        for heading in ("arm", "seeds", "level \\[95 % interval]", "transfer", "call"):
            table.add_column(heading, overflow="fold")
        for arm, own in result["arms"].items():
            look = trait["arms"].get(arm)
            call = call_text(look) if look else "-"
            level = escape(level_text(trait["levels"].get(arm), trait["kind"]))
            table.add_row(escape(arm), str(own["seeds"]), level, escape(interval_text(look)) if look else "-", escape(call))
        console.print(table)
        print_subset(console, trait)
        _print_verdict(console, trait, result["seconds_a_training"])
    if "published" in result:
        _print_published(console, result)
    count, kept = result["trainings"], result["saved"]
    beside = f"{kept} fewer than {counted(result['settings']['seeds'][-1], 'seed')} of every arm would have taken"
    console.print(f"{counted(count, 'training')}{'; ' + beside if kept is not None else ' so far'}.")
    for line in result["to_do"]:
        console.print(escape(f"Next: {line}"))


def numbers_text(own: Mapping[str, Any], kind: str) -> str:
    """Return what stands behind a condition of a published finding: a transfer, or a difference of levels in the trait's unit."""
    if not own["seeds"]:
        return "not trained yet"
    call = own["call"] if own["seeds"] >= own["planned"] else f"{own['call']} so far, {own['seeds']} of {own['planned']} seeds"
    if number(own["value"]) is None:
        return f"{call}: {own['note']}"
    if own["against"] is None or kind != "share":
        return f"{interval_text(own)}, {call}"
    value, low, high = (100 * own[key] for key in ("value", "low", "high"))
    return f"{value:+.0f} points [{low:+.0f}, {high:+.0f}], {call}".replace("-", "−")


def _print_published(console: Console, result: Mapping[str, Any]) -> None:
    table = Table(title="Beside the published findings", title_justify="left")
    for heading in ("finding", "trait", "here", "numbers"):
        table.add_column(heading, overflow="fold")
    for finding in result["published"]["findings"]:
        for position, row in enumerate(finding["rows"]):
            trait = result["traits"][row["trait"]]
            shown = "\n".join(f"{_names(c)}: {numbers_text(c, trait['kind'])}" for c in row["conditions"])
            says = "" if position else finding["says"]
            table.add_row(escape(says), escape(trait["title"]), row["state"], escape(shown))
    console.print(table)
    if missing := result["published"]["missing"]:
        named = ", ".join(f"{arm} (seeds {', '.join(map(str, seeds))})" for arm, seeds in missing.items())
        console.print(escape(f"Still to be run: {named}"))


def _names(condition: Mapping[str, Any]) -> str:
    arm, base = condition["arm"], condition["against"]
    return f"{arm} minus {base}" if base else str(arm)


def call_text(look: Mapping[str, Any]) -> str:
    """Return the call of a look; where it is unresolved, what its limits rest on as well."""
    return f"{look['call']}: {look['note']}" if look["call"] == OPEN and look["note"] else str(look["call"])


def _print_verdict(console: Console, trait: Mapping[str, Any], seconds: float | None) -> None:
    difference = trait["difference"]
    if difference and difference["call"] == "higher":
        table = Table(title="Hypotheses", title_justify="left")
        for heading in ("", "hypothesis", "state", "because"):
            table.add_column(heading, overflow="fold")
        for label, own in trait["verdict"].items():
            said = [*own["against"], *own["for"]] if own["state"] == "contradicted" else [*own["for"], *own["against"]]
            because = "; ".join(f"{entry['arm']} {entry['call']}" for entry in said if entry["decisive"])
            table.add_row(label, escape(own["name"]), f"{SIGNS[own['state']]} {own['state']}", escape(because))
        console.print(table)
        for s in trait["next"][:1]:
            needs = f" (needs {s['needs']})" if s["needs"] else ""
            cost = f"{s['bits']:.2f} bits for {cost_text(s['trainings'], seconds)}"
            console.print(escape(f"What would tell most next: {s['arm']}{needs}, {cost}."))
    console.print(f"[bold]{escape(trait['says'])}[/]")
    if trait["one_training"]:
        console.print(f"[yellow]{escape(trait['one_training'])}[/]")
