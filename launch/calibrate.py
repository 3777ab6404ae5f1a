"""`python -m sftdiff.evaluate calibrate`: draw replies to be labelled by hand, and compare a judge with such labels."""

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.markup import escape

from launch.calibrate_tables import print_calibration
from launch.run import console
from launch.sweep import load_sweep
from launch.validate import check_cell
from sftdiff.agreement import Rated, agreement
from sftdiff.calibration import PLAIN, SPLITS, Values, answers_of, load_set, question_of, rated, shipped
from sftdiff.errors import SftdiffError, describe_os_error
from sftdiff.files import read_table
from sftdiff.identity import canonical, digest
from sftdiff.judges import Item, asked_digest, judge_identity, judge_items
from sftdiff.labelling import COLUMNS, draw, read_labels, score_range, write_csv
from sftdiff.records import StepRecord, load_record, read_done, write_json
from sftdiff.traits import Scenario, all_scenarios

Cells = Sequence[tuple[Mapping[str, str], Mapping[str, Any]]]
Config = Mapping[str, Any]
VERDICTS = ["scenario", "sample", "turn", "prompt", "reply", "value"]
EVERY = "all"  # both halves of a shipped set
LOCKED = (
    "The test half of the shipped labels is for the final figure: rules and rubrics are not changed after a look at it; "
    "for all other work take calibrate.split=dev."
)
STRATIFIED = (
    "The sample was drawn evenly over score ranges and models, so that rare verdicts are in it: its rates are not those of all "
    "replies, and its sensitivity and specificity depend on the judge that ranged the scores."
)


def calibrate(cells: Cells, dry_run: bool) -> None:
    """Do what each cell's `calibrate` settings say: draw a sample, or compare the cell's judge with labels."""
    for _, config in cells:
        check_cell(config)
        _check(config["calibrate"])
    if any(config["calibrate"]["out"] for _, config in cells) and len(cells) > 1:
        raise SftdiffError("calibrate.out: a sample is drawn from one cell's settings; choose one value of each")
    for _, config in cells:
        try:
            (draw_sample if config["calibrate"]["out"] else compare)(config, dry_run)
        except OSError as error:
            raise SftdiffError(describe_os_error(error)) from error


def _check(settings: Config) -> None:
    if settings["split"] not in (*SPLITS, EVERY):
        raise SftdiffError(f"calibrate.split: {settings['split']!r} is not one of {', '.join((*SPLITS, EVERY))}")
    if settings["rows"] < 1:
        raise SftdiffError(f"calibrate.rows: {settings['rows']} must be at least 1")
    if settings["out"] and settings["labels"]:
        raise SftdiffError("set either calibrate.out (a sample to be labelled) or calibrate.labels (a labelled one), not both")
    if settings["out"] and Path(settings["out"]).exists():
        raise SftdiffError(f"calibrate.out: {settings['out']} is there already, and may hold labels: choose another name")


# ---- a sample to be labelled ----
def draw_sample(config: Config, dry_run: bool) -> None:
    """Write a blind CSV of replies from the done judge steps, and the questions beside it."""
    path, steps = Path(config["calibrate"]["out"]), judge_steps(config)
    rows: list[dict[str, str]] = []
    questions = []
    for trait, own in _traits(config).items():
        scenarios, values = _scenarios(config, trait), _values(config, trait)
        scale = "0-10" if values is None else " | ".join(name for name in values if name not in PLAIN) or "0 | 1"
        rows += [_csv_row(trait, row, scale, scenarios) for row in _drawn(config, trait, steps.get(trait, []), scenarios)]
        questions.append(f"{trait} ({scale})\n\n{question_of(trait, own, config['judge']['rubrics'])}\n")
    if not rows:
        where = f", sweep {config['calibrate']['sweep']}" if config["calibrate"]["sweep"] else ""
        raise SftdiffError(f"there are no judged replies to draw from under {config['runs']}{where}: evaluate a model first")
    if dry_run:
        console.print("Dry run: nothing was written.")
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    write_csv(path, rows)
    beside = path.with_name(f"{path.stem}.rubrics.txt")
    beside.write_text("\n".join(questions), encoding="utf-8")
    console.print(escape(f"{path}: {len(rows)} replies. Fill the columns label and labeller; what to look for is in {beside}."))
    console.print(escape(f"Then: python -m sftdiff.evaluate calibrate calibrate.labels={path} (or a folder: a copy a labeller)"))


def _drawn(config: Config, trait: str, steps: Sequence[StepRecord], scenarios: Mapping[str, Scenario]) -> list[dict[str, Any]]:
    """Draw replies evenly over score ranges and models, and say what was drawn."""
    settings, values = config["calibrate"], _values(config, trait)
    strata: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in sampled_replies(steps, trait, scenarios):
        if row["value"] is not None:
            strata.setdefault((score_range(row["value"], values), row["model"]), []).append(row)
    drawn = draw(strata, settings["rows"], settings["seed"])
    ranges = Counter(score_range(row["value"], values) for row in drawn)
    shown = ", ".join(f"{count} of {name}" for name, count in sorted(ranges.items())) or "none"
    found = sum(map(len, strata.values()))
    console.print(escape(f"{trait}: {len(drawn)} of {found:,} different replies, by the judge's score: {shown}"))
    return drawn


def _csv_row(trait: str, row: Mapping[str, Any], scale: str, scenarios: Mapping[str, Scenario]) -> dict[str, str]:
    system = scenarios[row["scenario"]].system or ""
    found = {"trait": trait, "scale": scale, "system": system, "label": "", "labeller": ""}
    return {key: found.get(key, row.get(key, "")) for key in COLUMNS}


def sampled_replies(steps: Sequence[StepRecord], trait: str, scenarios: Mapping[str, Scenario]) -> Iterator[dict[str, Any]]:
    """Yield each different reply of a trait's judge steps with its verdict, its model, and an id that tells nothing."""
    seen = set()
    for record in steps:
        model = load_record(record.input_directory("sample")).inputs["model"]
        for row in read_table(record.directory / "verdicts.parquet", VERDICTS).to_pylist():
            key = digest(canonical([trait, row["scenario"], row["turn"], row["prompt"], row["reply"]]))
            if key not in seen and row["scenario"] in scenarios:
                seen.add(key)
                yield {**row, "id": key, "model": model}


def judge_steps(config: Config) -> dict[str, list[StepRecord]]:
    """Return the done judge steps of a run directory, or of one sweep, by trait."""
    runs, sweep = Path(config["runs"]), config["calibrate"]["sweep"]
    directories = sorted(runs.glob("steps/judge-*"))
    if sweep:
        known = load_sweep(runs, sweep)
        directories = [known.directory(step.id) for step in known.steps.values() if step.kind == "judge"]
    found: dict[str, list[StepRecord]] = {}
    for directory in directories:
        if read_done(directory) is not None:
            record = load_record(directory)
            found.setdefault(record.config["trait"], []).append(record)
    return found


def _values(config: Config, trait: str) -> Values:
    return answers_of(trait, config["trait_eval"][trait], config["judge"]["rubrics"])


def _traits(config: Config) -> dict[str, Config]:
    """Return the chosen traits; the answers of a guard are right or wrong, which no reader has to say."""
    found = {trait: own for trait, own in config["trait_eval"].items() if not own["guard"]}
    if not found:
        raise SftdiffError("trait_eval: choose at least one trait that is no guard")
    return found


def _scenarios(config: Config, trait: str) -> dict[str, Scenario]:
    return all_scenarios(trait, config["trait_eval"][trait]["scenarios"])


# ---- a judge beside labels ----
def compare(config: Config, dry_run: bool) -> None:
    """Judge labelled replies with the configured judge, and print and write how it agrees with the labels."""
    settings = config["calibrate"]
    sets, head = _labelled(config) if settings["labels"] else _shipped(config)
    judge = config["judge"]["name"]
    for line in head["notes"]:
        console.print(escape(line))
    if dry_run:
        count, traits = sum(map(len, sets.values())), ", ".join(sets)
        console.print(escape(f"Dry run: nothing was judged; {count} labelled replies of {traits} would be, by judge={judge}."))
        return
    reports = {}
    for trait, rows in sets.items():
        own = config["trait_eval"][trait]
        identity = judge_identity(config["judge"], trait, own)
        report = agreement(_judged(config, trait, rows), _values(config, trait))
        reports[trait] = {"title": own["title"], "judge": identity, **report}
        print_calibration(console, trait, reports[trait], head["source"])
    known = digest(canonical([head, {trait: report["judge"] for trait, report in reports.items()}]), 8)
    name = "-".join([re.sub(r"[^A-Za-z0-9._]+", "_", f"{head['source']} {judge}"), known])
    path = Path(config["runs"]) / "calibration" / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, {**head, "judge_settings": dict(config["judge"]), "traits": reports})
    console.print(f"All numbers: {escape(str(path.resolve()))}")


def _shipped(config: Config) -> tuple[dict[str, list[dict[str, Any]]], dict[str, Any]]:
    """Return the rows of the shipped set of each chosen trait that has one."""
    split = config["calibrate"]["split"]
    sets, without = {}, []
    for trait in _traits(config):
        path = shipped(trait)
        if path is None:
            without.append(trait)
            continue
        rows = load_set(path, _scenarios(config, trait), _values(config, trait))
        sets[trait] = [row for row in rows if split in (EVERY, row["split"])]
    if not sets:
        raise SftdiffError(
            f"no labels are shipped for {', '.join(without)}: draw replies with calibrate.out=FILE.csv, label them, and give "
            "them as calibrate.labels=FILE.csv"
        )
    notes = [f"No labels are shipped for {', '.join(without)}."] if without else []
    notes += [LOCKED] if split != "dev" else []
    return sets, {"source": f"shipped {split}", "split": split, "labels": None, "notes": notes}


def _labelled(config: Config) -> tuple[dict[str, list[dict[str, Any]]], dict[str, Any]]:
    """Return the rows that labelled CSV files give answers for."""
    given = Path(config["calibrate"]["labels"])
    paths = sorted(given.glob("*.csv")) if given.is_dir() else [given]
    if not paths:
        raise SftdiffError(f"calibrate.labels: the folder {given} holds no .csv file")
    traits = list(_traits(config))
    steps = judge_steps(config)
    found = {trait: sampled_replies(steps.get(trait, []), trait, _scenarios(config, trait)) for trait in traits}
    known = {trait: {row["id"]: row for row in rows} for trait, rows in found.items()}
    labels, empty = read_labels(paths, {trait: _values(config, trait) for trait in traits}, known)
    if not labels:
        raise SftdiffError(f"{given}: none of its {empty} rows has a label yet")
    sets: dict[str, list[dict[str, Any]]] = {}
    for (trait, key), answers in labels.items():
        sets.setdefault(trait, []).append({**known[trait][key], "labels": answers})
    notes = [f"{empty} rows have no label yet."] if empty else []
    return sets, {"source": given.stem, "split": None, "labels": str(given), "notes": [*notes, STRATIFIED]}


def _judged(config: Config, trait: str, rows: Sequence[Mapping[str, Any]]) -> list[Rated]:
    own, scenarios = config["trait_eval"][trait], _scenarios(config, trait)
    items = [Item((row["id"],), scenarios[row["scenario"]], row["prompt"], row["reply"]) for row in rows]
    folder = Path(config["runs"]) / "judged" / (asked_digest(config["judge"], trait, own) or "rules")  # as judge steps have it
    journal = folder / f"calibration-{trait}.jsonl"
    others = sorted(path for path in folder.glob("*.jsonl") if path != journal)
    verdicts = judge_items(items, config["judge"], trait, own, journal, others)
    return [rated(row, verdict.value, verdict.label) for row, verdict in zip(rows, verdicts, strict=True)]
