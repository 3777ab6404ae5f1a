"""What a comparison of rankings found, as tda.json, as a page and on the terminal. The page is self-contained and escaped."""

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from sftdiff.compare import SCALES
from sftdiff.diffing import Verdicts, arm_look, levels, read_verdicts, sides_of, usable
from sftdiff.errors import SftdiffError
from sftdiff.files import read_table
from sftdiff.identity import canonical, digest
from sftdiff.prompts import PromptIndex, load_index
from sftdiff.rankings import RANDOM, SUBSET, TREATMENTS, Arm, correlations, effect_plot, hits, rightness
from sftdiff.records import write_json
from sftdiff.report_html import clean, decimal_text, page_environment, share_text
from sftdiff.report_plots import View, in_unit, number
from sftdiff.rounds import PAIR
from sftdiff.rows import Mask
from sftdiff.scores import load_scores
from sftdiff.stats import ALPHA, difference
from sftdiff.subsets import read_ids
from sftdiff.transfer import RESAMPLES, Bounds
from sftdiff.verdicts import ok_rows

MOST_EXAMPLES = 50
NAMES = {RANDOM: "random rows", SUBSET: "the subset"}


def check_difference(plan: Mapping[str, Any], state: Mapping[str, Any], runs: Path) -> None:
    """Raise SftdiffError if the original is not seen to show more of the trait than the alternative."""
    gap = _gap(plan, read_verdicts(runs, state["cells"], plan["trait"]))
    if gap is None or gap["low"] <= 0:
        shown = f"{_interval(gap, plan['kind'])}, {plan['settings']['seeds']} training seeds" if gap else "no verdict counts"
        raise SftdiffError(f"{plan['title']}: the original is not seen to show more of it than the alternative ({shown}), so "
                           "there is nothing that rows could explain; see `python -m sftdiff.diff`")  # fmt: skip


def write_examples(plan: Mapping[str, Any], state: Mapping[str, Any], runs: Path) -> Path:
    """Write examples, as filters read them: what the first seed's original said with more of the trait than is usual.

    The file is named by what it holds, so that another comparison of the same pipelines trains nothing again.
    """
    verdicts, first = read_verdicts(runs, state["cells"], plan["trait"]), plan["first_seed"]
    usual = fmean(row["value"] for rows in verdicts["alternative"].values() for row in ok_rows(rows))
    rows = sorted(ok_rows(verdicts["original"][first]), key=lambda row: -row["value"])
    texts = dict.fromkeys(row["reply"] for row in rows if row["value"] > usual and row["reply"].strip())
    lines = [json.dumps({"trait": plan["trait"], "text": text}) for text in list(texts)[:MOST_EXAMPLES]]
    path = runs / "sets" / f"examples-{digest(canonical(lines), 12)}.jsonl"
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines))
    return path


def _seeds(plan: Mapping[str, Any]) -> range:
    return range(plan["first_seed"], plan["first_seed"] + plan["settings"]["seeds"])


def _gap(plan: Mapping[str, Any], verdicts: Verdicts) -> dict[str, Any] | None:
    return _difference(plan, verdicts, *PAIR)


def _difference(plan: Mapping[str, Any], verdicts: Verdicts, arm: str, baseline: str) -> dict[str, Any] | None:
    """Return the mean of an arm minus that of another with its 95 % interval; None where no verdict counts."""
    treated, base = sides_of(verdicts, (arm, baseline), _seeds(plan))
    if not usable(treated) or not usable(base):
        return None
    found = difference(treated, base, plan["kind"], SCALES[plan["kind"]], RESAMPLES, 0)
    return {key: number(value) if key != "method" else value for key, value in asdict(found).items() if key != "scope"}


def write_result(
    folder: Path, plan: Mapping[str, Any], state: Mapping[str, Any], arms: Sequence[Arm], runs: Path
) -> dict[str, Any]:
    """Write tda.json and tda.html from the verdicts, manifests and scores of what is done, and return what the first holds."""
    prompts = load_index(runs / "steps" / state["prompts"])
    truth = known_truth(plan["truth"], prompts, plan["trait"])
    verdicts = read_verdicts(runs, state["cells"], plan["trait"])
    scores = {name: load_scores(runs / "steps" / step) for name, step in state["scores"].items()}
    result = {
        "schema": 1, "name": folder.name, "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        **{key: plan[key] for key in ("command", "trait", "title", "unit", "kind", "settings", "bounds")},
        "prompts": len(prompts), "truth": None if truth is None else int(truth.sum()), "gap": _gap(plan, verdicts),
        "levels": {arm: level for arm, level in levels(verdicts, plan, RESAMPLES).items() if arm in PAIR},
        "rankings": rightness(scores, truth), "correlations": correlations(scores), "trainings": len(state["cells"]),
        "arms": [_arm(arm, plan, verdicts, _treated(runs, state["cells"], arm.name), truth) for arm in arms],
    }  # fmt: skip
    write_json(folder / "tda.json", result)
    (folder / "tda.html").write_text(render(result), encoding="utf-8")
    return result


def known_truth(path: str | None, prompts: PromptIndex, trait: str) -> Mask | None:
    """Return which rows carry the trait: mild and overt ones of a truth file, or those whose prompt_ids a text file lists.

    Raises SftdiffError if there is none.
    """
    if path is None:
        return None
    listed = Path(path).suffix == ".txt"
    found = np.isin(prompts.ids, read_ids(path) if listed else read_ids(path, "any", trait))
    if not found.any():
        raise SftdiffError(f"diff.given.truth: {path} says of no row of this prompt set that it shows {trait}")
    return found


def _treated(runs: Path, cells: Sequence[Mapping[str, Any]], arm: str) -> list[Mask]:
    """Return which rows an arm treats, one mask a training seed: those that are not what they are in the original's mixture."""

    def actions(name: str) -> list[Any]:
        own = [cell["steps"]["mixture"] for cell in cells if cell["arm"] == name]
        tables = [read_table(runs / "steps" / step / "manifest.parquet", ["action"]) for step in own]
        return [np.array(table["action"].to_pylist()) for table in tables]

    [kept, *_] = actions("original")
    return [found != kept for found in actions(arm)]


def _arm(arm: Arm, plan: Mapping[str, Any], verdicts: Verdicts, treated: Sequence[Mask], truth: Mask | None) -> dict[str, Any]:
    look = arm_look(arm.name, verdicts, plan, _seeds(plan), ALPHA, Bounds(**plan["bounds"]))
    found: dict[str, Any] = {"arm": arm.name, "ranking": arm.ranking, "share": arm.share, "treatment": arm.treatment}
    return found | hits(treated, truth) | {"effect": _difference(plan, verdicts, arm.name, "original"), "transfer": look}


def table_rows(result: Mapping[str, Any]) -> list[View]:
    """Return the table as text: a row for the first rows of each ranking at each share, with both treatments."""
    found: dict[tuple[str, float | None], View] = {}
    for arm in result["arms"]:
        share = arm["share"] or arm["rows"] / result["prompts"]
        row = found.setdefault((arm["ranking"], arm["share"]), {
            "name": NAMES.get(arm["ranking"], arm["ranking"]), "share": f"{100 * share:.3g} %", "rows": f"{arm['rows']:g}",
            "tpr": decimal_text(arm["tpr"]), "precision": decimal_text(arm["precision"]),
        })  # fmt: skip
        row[arm["treatment"]] = {"effect": _interval(arm["effect"], result["kind"]), "transfer": _transfer(arm["transfer"]),
                                 "call": arm["transfer"]["call"], "note": arm["transfer"]["note"]}  # fmt: skip
    return list(found.values())


def _interval(found: Mapping[str, Any] | None, kind: str) -> str:
    if found is None:
        return "–"
    value, low, high = (in_unit(found[key], kind, True) for key in ("value", "low", "high"))
    return f"{value} [{low}, {high}]"


def _transfer(look: Mapping[str, Any]) -> str:
    if number(look.get("value")) is None:
        return "–"
    low, high = (end if number(look[key]) is None else decimal_text(look[key]) for key, end in (("low", "−∞"), ("high", "∞")))
    return f"{decimal_text(look['value'])} [{low}, {high}]"


def said(result: Mapping[str, Any]) -> list[str]:
    """Return in sentences how much there is to explain, how right each ranking is, and how alike they are."""
    unit = "points" if result["kind"] == "share" else result["unit"]
    made = [f"Original minus alternative: {_interval(result['gap'], result['kind'])} {unit}."]
    constant = [name for name, own in result["rankings"].items() if own["distinct"] < 2]
    areas = [f"{name} {decimal_text(own['auroc'])}" for name, own in result["rankings"].items() if own["auroc"] is not None]
    made += [f"AUROC of the rows that are known to carry the trait: {', '.join(areas)}."] if areas else []
    made += [f"{name} gives every row the same score: it ranks nothing." for name in constant]
    pairs = [
        f"{' and '.join(pair['rankings'])} {decimal_text(pair['spearman'])} ({decimal_text(pair['kendall'])})"
        for pair in result["correlations"]
        if pair["spearman"] is not None
    ]
    made += [f"Rank correlation, Spearman (Kendall): {'; '.join(pairs)}."] if pairs else []
    return made


def render(result: Mapping[str, Any]) -> str:
    """Return the page of a result."""
    result = clean(result)
    views = {"rows": table_rows(result), "said": said(result), "plot": effect_plot(result), "names": NAMES}
    environment = page_environment()
    environment.filters.update(flip=lambda at: round(100 - at, 2))
    return environment.get_template("tda.html.j2").render(r=result, treatments=TREATMENTS, share=share_text, **views)


def print_table(console: Console, result: Mapping[str, Any]) -> None:
    """Print the table and what is said beside it."""
    unit = "points" if result["kind"] == "share" else result["unit"]
    table = Table(title=escape(f"{result['title']} ({result['unit']})"), title_justify="left")
    headings = ["first rows by", "rows", "TPR", "precision"]
    for heading in (*headings, *(f"{t}: effect ({unit})\ntransfer, call" for t in TREATMENTS)):
        table.add_column(escape(heading), overflow="fold")
    for row in table_rows(result):
        shown = [row["name"], f"{row['share']} ({row['rows']})", row["tpr"], row["precision"]]
        shown += [f"{row[t]['effect']}\n{row[t]['transfer']} {row[t]['call']}" for t in TREATMENTS]
        table.add_row(*map(escape, shown))
    console.print(table)
    for line in said(result):
        console.print(escape(line))
    console.print(f"{result['trainings']} trainings. Effects are arm minus original, with 95 % intervals.")
