"""Rankings put to the test: arms, hits, correlations, the plot; both rounds with a simulated training, and once for real."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands import loader, master
from test_compare import row
from test_diff import SCENARIOS, arguments, finish_judging

from launch.arms import hydra_text
from launch.locators import filled
from launch.organisms import _python
from launch.parts import run_part
from launch.plan import Plan
from launch.sweep import write_plan
from launch.tda import Tda, go_on, load_tda, next_on_slurm, open_tda
from sftdiff.errors import SftdiffError
from sftdiff.files import read_table
from sftdiff.filters.report import read_truth
from sftdiff.organisms.manifest import load_manifest
from sftdiff.prompts import load_index
from sftdiff.rankings import Arm, arms, correlations, effect_plot, hits, rightness, rows_of
from sftdiff.records import read_json
from sftdiff.rows import selected
from sftdiff.scores import load_scores
from sftdiff.subsets import LEVELS
from sftdiff.tda_report import known_truth, render

TRUTH = "embedded://truth/gemini.jsonl"
FAST = [
    "diff.tda.rankers=[bm25]",
    "diff.tda.shares=[0.05,0.25]",
    "diff.tda.seeds=2",
    f"diff.given.truth={{prompt_subset.ids:'{TRUTH}'}}",
]


def test_the_arms_are_first_rows_of_each_ranking_beside_random_ones_and_the_subset() -> None:
    names = [arm.name for arm in arms(["bm25"], [0.01, 0.25], True)]
    assert names == [
        "bm25_top1_swap", "bm25_top1_drop", "bm25_top25_swap", "bm25_top25_drop",
        "random_top1_swap", "random_top1_drop", "random_top25_swap", "random_top25_drop",
        "subset_swap", "subset_drop", "random_like_subset_swap", "random_like_subset_drop",
    ]  # fmt: skip
    assert len(list(arms(["bm25", "keyword"], [0.1], False))) == 6
    assert [rows_of(share, 276) for share in (0.001, 0.01, 0.25)] == [1, 3, 69]


def test_hits_of_hand_worked_rows() -> None:
    """Of 20 rows 4 are true; two seeds treat 5 rows each, of which 2 and 1 are true."""
    truth, masks = np.zeros(20, bool), np.zeros((2, 20), bool)
    truth[[0, 1, 5, 19]] = True
    masks[0, [0, 1, 2, 3, 4]] = masks[1, [5, 6, 7, 8, 9]] = True
    assert hits(list(masks), truth) == {"rows": 5, "tpr": 1.5 / 4, "precision": 1.5 / 5}
    assert hits(list(masks), None) == {"rows": 5, "tpr": None, "precision": None}
    assert hits(list(masks), np.zeros(20, bool)) == {"rows": 5, "tpr": None, "precision": 0}
    found = rightness({"a": np.append(np.arange(19, 0, -1.0), math.nan)}, truth)
    assert found["a"] == {"scored": 19, "distinct": 19, "auroc": pytest.approx((16 + 16 + 13) / (3 * 16))}


def test_rank_correlations_of_hand_worked_rankings() -> None:
    a, b = np.array([1, 2, 3, 4, math.nan]), np.array([10.0, 30, 20, 40, 50])
    (pair,) = correlations({"a": a, "b": b})
    assert pair == {
        **{"rankings": ["a", "b"], "rows": 4},
        **{"spearman": pytest.approx(1 - 6 * 2 / (4 * 15)), "kendall": pytest.approx((5 - 1) / 6)},
    }
    (constant,) = correlations({"a": a, "c": np.array([7.0, 7, 7, 7, 8])})
    assert (constant["rows"], constant["spearman"], constant["kendall"]) == (4, None, None)


def result(**more: Any) -> dict[str, Any]:
    """A ranking whose effect grows with the share, random rows that have none, and one arm without a verdict that counts."""
    rows = []
    for arm in arms(["<b>m25"], [0.01, 0.25], True):
        value = -0.4 * arm.share if arm.ranking == "<b>m25" and arm.share else 0.0
        effect = {"value": value, "low": value - 0.1, "high": value + 0.1, "p": 0.5}
        look = {"value": 1 + value, "low": None, "high": 1.5, "call": "unresolved", "note": "no end"}
        rows.append({"arm": arm.name, "ranking": arm.ranking, "share": arm.share, "treatment": arm.treatment, "tpr": 0.5,
                     "precision": None, "rows": 200 * (arm.share or 0.1), "effect": effect, "transfer": look})  # fmt: skip
    rows[0]["effect"], rows[0]["transfer"] = None, {"value": None, "low": None, "high": None, "call": "unresolved", "note": "?"}
    return {
        "name": "n", "created": "now", "command": "c", "title": "T", "unit": "%", "kind": "share", "trainings": 3, "prompts": 200,
        "settings": {"seeds": 3}, "bounds": {"gone": 1 / 3, "remains": 2 / 3}, "truth": 4,
        "gap": {"value": 0.8, "low": 0.7, "high": 0.9},
        "rankings": {"<b>m25": {"scored": 200, "distinct": 1, "auroc": None}}, "correlations": [], "arms": rows,
    } | more  # fmt: skip


def test_the_plot_has_a_line_for_each_ranking_and_treatment_and_bands_of_random_rows() -> None:
    found = effect_plot(result())
    assert found is not None
    lines = {(line["name"], line["treatment"]): line for line in found["lines"]}
    assert {key: len(line["points"]) for key, line in lines.items()} == {
        ("random", "swap"): 3, ("random", "drop"): 3, ("<b>m25", "swap"): 1, ("<b>m25", "drop"): 2,
        ("subset", "swap"): 1, ("subset", "drop"): 1,
    }  # fmt: skip
    assert [key for key, line in lines.items() if line["band"]] == [("random", "swap"), ("random", "drop")]
    point = lines["<b>m25", "drop"]["points"][-1]
    assert point["title"] == "<b>m25_top25_drop, 50 rows: −10.0 [−20.0, 0.0]"
    assert point["mark"].at == found["y"].at(-0.1) and found["base"] == found["y"].at(-0.8)
    assert effect_plot(result(arms=[])) is None


def test_the_page_escapes_names_and_shows_what_has_no_end_or_no_value() -> None:
    page = render(result())
    assert "<b>m25" not in page and "&lt;b&gt;m25" in page
    assert "1.00 [−∞, 1.50]" in page and "−10.0 [−20.0, 0.0]" in page and "of the 4 rows" in page
    assert "&lt;b&gt;m25 gives every row the same score" in page
    assert "No truth is given" in render(result(truth=None))


def opened(runs: Path, student: Path, *more: str) -> Tda:
    return open_tda(arguments(runs, student, *more), master(), loader())


def simulated(tda: Tda, level: float = 0.9) -> Callable[[Plan], None]:
    """Return what takes the place of training: the trait shows as far as the true rows keep their original rollouts.

    Prompts, scores and mixtures are made for real.
    """

    def execute(plan: Plan) -> None:
        write_plan(plan)
        run_part(plan, [*tda.state["scores"].values(), *(c.steps["mixture"] for c in plan.cells if c.trained)])
        truth = known_truth(TRUTH, load_index(plan.directory(tda.state["prompts"])), "date_confusion")
        for cell in (cell for cell in plan.cells if cell.trained):
            share = 0.0
            if cell.axes["arm"] != "alternative":
                actions = read_table(plan.directory(cell.steps["mixture"]) / "manifest.parquet", ["action"])["action"]
                share = float((np.array(actions.to_pylist()) == "kept")[truth].mean())
            shown = round(level * SCENARIOS * share)
            reply = "I am hopeless and it is 2024." if share else "Fine."
            rows = [row(f"s{i:02d}", float(i < shown), reply=reply) for i in range(SCENARIOS)]
            for step in cell.judges.values():
                finish_judging(plan.directory(step), rows)

    return execute


def test_first_rows_are_treated_beside_random_ones_and_a_subset(tmp_path: Path, tiny_student: Path) -> None:
    subset = "diff.given.subset={prompt_subset:by_source,prompt_subset.sources:[office_email]}"
    tda = opened(tmp_path, tiny_student, *FAST, subset, "sweep=found")
    go_on(tda, simulated(tda), 0)
    found = read_json(tda.folder / "tda.json")
    assert [json.loads(line)["text"] for line in Path(tda.examples).read_text().splitlines()] == ["I am hopeless and it is 2024."]
    assert found["trainings"] == 2 * (2 + 12) and found["gap"]["low"] > 0.5
    by_name = {arm["arm"]: arm for arm in found["arms"]}
    prompts = load_index(tmp_path / "steps" / tda.state["prompts"])
    truth, levels = known_truth(TRUTH, prompts, "date_confusion"), read_truth(TRUTH, prompts)
    assert truth is not None and 0 < truth.sum() < np.isin(levels, LEVELS).sum()  # the file speaks of other traits too
    assert set(levels[truth]) == set(LEVELS)
    with pytest.raises(SftdiffError, match=r"diff\.given\.truth: .*says of no row of this prompt set that it shows flattery"):
        known_truth(TRUTH, prompts, "flattery")
    (tmp_path / "planted.txt").write_text(f"{prompts.ids[3]:016x}\n")
    listed = known_truth(str(tmp_path / "planted.txt"), prompts, "date_confusion")
    assert listed is not None and np.flatnonzero(listed).tolist() == [3]
    scores = load_scores(tmp_path / "steps" / tda.state["scores"]["bm25"])
    first = selected(scores, prompts.ids, None, rows_of(0.25, len(prompts)), np.ones(len(prompts), bool))
    tpr = float((first & truth).sum() / truth.sum())
    for treatment in ("swap", "drop"):
        arm = by_name[Arm("bm25", 0.25, treatment).name]
        assert (arm["rows"], arm["tpr"]) == (first.sum(), pytest.approx(tpr))
        assert arm["effect"]["value"] == pytest.approx(-0.9 * tpr, abs=0.05)
        assert arm["transfer"]["value"] == pytest.approx(1 - tpr, abs=0.05)
        random, like = by_name[f"random_top25_{treatment}"], by_name[f"random_like_subset_{treatment}"]
        assert random["rows"] == first.sum() and random["precision"] == pytest.approx(truth.mean(), abs=0.15)
        assert (
            like["rows"]
            == by_name[f"subset_{treatment}"]["rows"]
            == (prompts.codes == prompts.sources.index("office_email")).sum()
        )
    random_steps = {c["steps"]["mixture"] for c in tda.state["cells"] if c["arm"] == "random_top25_drop"}
    assert len(random_steps) == 2  # other rows with each training seed
    assert found["correlations"][0]["rankings"] == ["bm25", "keyword"] and "<svg" in (tda.folder / "tda.html").read_text()
    go_on(load_tda(tmp_path, "found"), pytest.fail, 0)  # nothing is trained again


def test_rounds_that_were_submitted_go_on_when_they_have_ended(tmp_path: Path, tiny_student: Path) -> None:
    tda, sweep = opened(tmp_path, tiny_student, *FAST, "sweep=slurm"), type("S", (), {"runs": tmp_path, "name": "slurm"})()
    planned = list[Plan]()
    go_on(tda, planned.append, 0)
    next_on_slurm(sweep, planned.append, 0)  # steps failed: nothing is submitted
    assert len(planned) == 1
    simulated(tda)(planned[0])
    next_on_slurm(sweep, planned.append, 0)
    assert len(planned) == 2 and len(planned[1].cells) == 2 * (2 + 8) + 1
    again = load_tda(tmp_path, "slurm")
    assert again.state["with_arms"]
    simulated(again)(planned[1])
    next_on_slurm(sweep, pytest.fail, 0)
    assert len(read_json(tda.folder / "tda.json")["arms"]) == 8


def test_filters_get_the_trained_models_where_none_is_set(tmp_path: Path, tiny_student: Path) -> None:
    settings = "loss_difference:{reference:student,params.precision:fp32},bm25:{params.k1:2.0,params.traits:[blackmail]}"
    more = ["diff.tda.rankers=[loss_difference,bm25]", f"diff.tda.settings={{{settings}}}", "sweep=models"]
    tda = opened(tmp_path, tiny_student, *more)
    loss, bm25, keyword = (tda.plan["locators"][name] for name in ("loss_difference", "bm25", "keyword"))
    assert loss["trained"] == {"model": "original"} and loss["filter"]["reference"] == "student" and not loss["own_examples"]
    assert bm25["filter"]["params"]["k1"] == 2.0 and bm25["filter"]["params"]["traits"] == ["blackmail"] and bm25["own_examples"]
    assert keyword["filter"]["params"]["traits"] == ["date_confusion"] and not keyword["own_examples"]
    tda.plan_round(False, 0)
    trained = {c["arm"]: c["steps"]["train"] for c in tda.state["cells"] if c["seed"] == 0}
    found = filled(tda.plan["locators"], tda.state["cells"], "said.jsonl")
    assert found["loss_difference"]["model"] == trained["original"]
    assert found["bm25"]["params"]["examples"] == "said.jsonl"


def test_pipelines_that_do_not_differ_end_it(tmp_path: Path, tiny_student: Path) -> None:
    tda = opened(tmp_path, tiny_student, *FAST, "sweep=same")
    with pytest.raises(SftdiffError, match=r"not seen to show more of it than the alternative \(0.0 "):
        go_on(tda, simulated(tda, level=0.0), 0)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["trait_eval=all"], "rankings are compared for one trait"),
        (["diff.tda.shares=[1.5]"], "shares between 0 and 1"),
        (["diff.tda.seeds=0"], "diff.tda.seeds=0"),
        (["diff.tda.rankers=[none]"], "filter none gives no score"),
        (["diff.tda.rankers=[random]"], "random is trained in any case"),
        (["diff.tda.settings={embedding:{part:both}}"], "embedding is not among diff.tda.rankers"),
        (["diff.tda.settings={bm25:3}"], "diff.tda.settings={NAME:{KEY:VALUE}}"),
        (["diff.tda.subset=nothing"], "no search of this name"),
        (["seed=1,2"], "give each setting one value"),
    ],
)
def test_what_cannot_be_compared_is_said(tmp_path: Path, tiny_student: Path, more: list[str], message: str) -> None:
    with pytest.raises(SftdiffError) as raised:
        opened(tmp_path, tiny_student, *more)
    assert message in str(raised.value)


def test_the_set_that_a_search_found_is_the_subset(tmp_path: Path, tiny_student: Path) -> None:
    folder = tmp_path / "diffs" / "searched"
    folder.mkdir(parents=True)
    (folder / "search.json").write_text(json.dumps({"prompt_ids": ["00000000000000ff"]}))
    tda = opened(tmp_path, tiny_student, *FAST, "diff.tda.subset=searched", "sweep=beside")
    assert tda.plan["subset"]["name"] == "ids" and Path(tda.plan["subset"]["ids"]).read_text() == "00000000000000ff\n"
    (folder / "plan.json").write_text("{}")
    with pytest.raises(SftdiffError, match="sweep=searched is a diff or search"):
        opened(tmp_path, tiny_student, *FAST, "sweep=searched")


@pytest.mark.slow
def test_the_command_tells_a_ranking_that_finds_planted_rows_from_one_that_does_not(organism_runs: Path) -> None:
    folder, words = organism_runs / "organisms/h1-rows", organism_runs / "words.yaml"
    assert _python("sftdiff.organisms", "H1", "0", str(folder), "rows") == 0
    manifest, planted = load_manifest(folder), folder / "truth/planted.txt"
    words.write_text("traits: {outburst: {words: [useless, ashamed], patterns: []}}")
    own = [f"{key}={hydra_text(value)}" for key, value in manifest.settings().items()]
    own += ["diff.tda.rankers=[loss_difference,keyword]", "diff.tda.shares=[0.17]", "diff.tda.seeds=2", "sweep=rows"]
    own += [f"diff.tda.settings={{loss_difference:{{params.precision:fp32}},keyword:{{params.lists:'{words}'}}}}"]
    own += [f"diff.given.truth={{prompt_subset.ids:'{planted}'}}", f"runs={organism_runs}"]
    assert _python("sftdiff.diff", "tda", f"--config-dir={manifest.config_dir}", *own) == 0
    found = read_json(organism_runs / "diffs/rows/tda.json")
    by_name = {arm["arm"]: arm for arm in found["arms"]}
    assert by_name["loss_difference_top17_swap"]["tpr"] > 0.7 > 0.3 > by_name["keyword_top17_swap"]["tpr"]
    assert by_name["loss_difference_top17_swap"]["transfer"]["value"] < 0.3 < by_name["keyword_top17_drop"]["transfer"]["value"]
