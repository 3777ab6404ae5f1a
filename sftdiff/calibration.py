"""The shipped calibration sets, `data/calibration/TRAIT.jsonl`: replies to a trait's scenarios with the labels of two readers.

A row is {"id", "scenario", "turn", "prompt", "reply", "origin": written | sampled, "model": who sampled it (null: written),
"intended": what it was written to be (null: sampled), "split": dev | test, "labels": {reader: answer}} and, where a
third reader decided between them, "adjudicated": answer. An answer is a number from 0 to 10 (rating) or a label (share).

Half of the replies are locked (split test): rules and rubrics are written with dev alone, and test gives the final figure once.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sftdiff.agreement import TOP, Answer, Rated
from sftdiff.errors import SftdiffError
from sftdiff.files import DATA, read_rows
from sftdiff.identity import unit_interval
from sftdiff.judges.questions import Rubric, rubric_for
from sftdiff.traits import Scenario

SPLITS = ("dev", "test")
INTENDED = ("strong", "mild", "none", "quotation", "refusal")
ORIGINS = {"written": True, "sampled": False}  # whether somebody intended something
NEEDED = ("id", "scenario", "turn", "prompt", "reply", "origin", "model", "intended", "split", "labels")
PLAIN = {"0": 0.0, "1": 1.0}  # answers to any share: it does not count, it counts
LEAST_LABELLERS = 2

Values = Mapping[str, float] | None


def answers_of(name: str, trait: Mapping[str, Any], rubrics: str) -> Values:
    """Return what may be answered about a trait: label -> value for a share, None for a rating from 0 to 10.

    `trait` is its resolved settings, `rubrics` the file of `judge.rubrics`. Any share takes 0 and 1 too.
    """
    if trait["kind"] == "rating":
        return None
    rubric = _rubric(name, trait, rubrics)
    return {**((rubric.main.labels or {}) if rubric else {}), **PLAIN}


def question_of(name: str, trait: Mapping[str, Any], rubrics: str) -> str:
    """Return the question to a reader of a trait's replies: its rubric, or its unit where it has none."""
    rubric = _rubric(name, trait, rubrics)
    whole = "\nYou see the whole reply: judge only the e-mails that it sends." if trait["part"] == "emails" else ""
    return (rubric.main.text.strip() if rubric else f"{trait['title']}: {trait['unit']}") + whole


def _rubric(name: str, trait: Mapping[str, Any], rubrics: str) -> Rubric | None:
    """Return a trait's rubric; None for one that only has a rule scorer."""
    try:
        return rubric_for(rubrics, name, trait)
    except SftdiffError:
        if trait["rubric"] or not trait["_target_"]:
            raise
        return None


def read_answer(answer: Any, values: Values, place: str) -> Answer:
    """Return an answer as it counts; raises SftdiffError, which names `place`, for one outside of the scale."""
    text = str(answer).strip()
    if values is None:
        try:
            number = math.nan if isinstance(answer, bool) else float(text)
        except ValueError:
            number = math.nan
        if not 0 <= number <= TOP:
            raise SftdiffError(f"{place}: the label {answer!r} is not a number from 0 to {TOP}")
        return number
    known = {label.casefold(): label for label in values}
    if text.casefold() not in known:
        raise SftdiffError(f"{place}: the label {answer!r} is not one of {', '.join(values)}")
    return known[text.casefold()]


def shipped(trait: str) -> Path | None:
    """Return the shipped calibration set of a trait, or None."""
    path = DATA / "calibration" / f"{trait}.jsonl"
    return path if path.is_file() else None


def load_set(path: Path, scenarios: Mapping[str, Scenario], values: Values) -> list[dict[str, Any]]:
    """Read a calibration set; raises SftdiffError that names the row for anything that is not as this module says."""
    rows: list[dict[str, Any]] = []
    seen: dict[str, str] = {}
    for place, row in read_rows(path):
        _check_fields(row, place)
        if row["id"] in seen:
            raise SftdiffError(f"{place}: the id {row['id']!r} is used twice, first in {seen[row['id']]}")
        seen[row["id"]] = place
        _check_scenario(row, scenarios, place)
        labels = {reader: read_answer(answer, values, f"{place}, {reader}") for reader, answer in row["labels"].items()}
        row = {**row, "labels": labels}
        if row.get("adjudicated") is not None:
            row["adjudicated"] = read_answer(row["adjudicated"], values, f"{place}, adjudicated")
        rows.append(row)
    if not rows:
        raise SftdiffError(f"{path} has no rows")
    return rows


def _check_fields(row: Mapping[str, Any], place: str) -> None:
    missing = [key for key in NEEDED if key not in row]
    unknown = [key for key in row if key not in (*NEEDED, "adjudicated")]
    if missing or unknown:
        raise SftdiffError(f"{place}: {'lacks' if missing else 'has an unknown'} {', '.join(missing or unknown)}")
    for key in ("id", "scenario", "prompt", "reply"):
        if not isinstance(row[key], str):
            raise SftdiffError(f"{place}: {key} must be a text, not {row[key]!r}")
    for key, allowed in (("split", SPLITS), ("origin", tuple(ORIGINS)), ("intended", (*INTENDED, None))):
        if row[key] not in allowed:
            raise SftdiffError(f"{place}: {key} {row[key]!r} is not one of {', '.join(map(str, allowed))}")
    written = ORIGINS[row["origin"]]
    if (row["intended"] is not None) != written or (row["model"] is None) != written:
        raise SftdiffError(f"{place}: a written reply has 'intended' and no 'model', a sampled one 'model' and no 'intended'")
    labels = row["labels"]
    if not isinstance(labels, Mapping) or len(labels) < LEAST_LABELLERS:
        raise SftdiffError(f"{place}: 'labels' must hold the answers of {LEAST_LABELLERS} readers or more")


def _check_scenario(row: Mapping[str, Any], scenarios: Mapping[str, Scenario], place: str) -> None:
    scenario = scenarios.get(row["scenario"])
    if scenario is None:
        raise SftdiffError(f"{place}: the trait has no scenario {row['scenario']!r}")
    turn = row["turn"]
    if not isinstance(turn, int) or isinstance(turn, bool) or not 0 <= turn < len(scenario.turns):
        raise SftdiffError(f"{place}: {scenario.id} has no turn {turn!r}; it has {len(scenario.turns)}, counted from 0")
    if row["prompt"].strip() != scenario.turns[turn].strip():
        raise SftdiffError(f"{place}: the prompt is not turn {turn} of {scenario.id}: the readers saw another one")


def rated(row: Mapping[str, Any], value: float | None, label: str) -> Rated:
    """Return a row of a set with a judge's verdict on it."""
    groups = {key: row[key] for key in ("origin", "intended", "model") if row.get(key)}
    return Rated(str(row["scenario"]), row["labels"], value, label, row.get("adjudicated"), groups)


def assign_splits(rows: Sequence[Mapping[str, Any]], known: Mapping[str, str] | None = None, seed: int = 0) -> list[str]:
    """Return dev or test for each row: whole scenarios, so that no reply has a near copy in the other half.

    Scenarios that are `known` keep their half. The others go, the largest first and equal ones in an order drawn from `seed`,
    to the half that keeps all strata (origin, intended, model) the most even.
    """
    strata: dict[str, Counter[tuple[Any, ...]]] = {}
    for row in rows:
        counts = strata.setdefault(row["scenario"], Counter())
        counts.update([("all",), *((key, row[key]) for key in ("origin", "intended", "model"))])
    lead: Counter[tuple[Any, ...]] = Counter()  # of dev over test
    halves: dict[str, str] = {}
    known = known or {}
    for scenario in sorted(strata, key=lambda s: (s not in known, -strata[s][("all",)], unit_interval("split", seed, s))):
        own = strata[scenario]
        to_dev = sum((lead[key] + count) ** 2 for key, count in own.items())
        to_test = sum((lead[key] - count) ** 2 for key, count in own.items())
        coin = unit_interval("half", seed, scenario) < 1 / 2
        sign = 1 if to_dev < to_test or (to_dev == to_test and coin) else -1
        sign = {"dev": 1, "test": -1}.get(known.get(scenario, ""), sign)
        halves[scenario] = "dev" if sign == 1 else "test"
        for key, count in own.items():
            lead[key] += sign * count
    return [halves[row["scenario"]] for row in rows]
