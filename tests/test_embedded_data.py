"""The shipped data: two prompt pools, three stand-in teachers, the planted traits, the scenarios, and what the data card says.

`python tests/test_embedded_data.py` writes the card's tables anew.
"""

import ast
import json
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import yaml
from commands import plan
from filter_rows import rows_of
from hand_written import prompts_config, teacher_config
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import RepeatedStratifiedKFold, cross_val_score
from sklearn.pipeline import make_pipeline
from threadpoolctl import threadpool_limits

from sftdiff.files import read_rows, resolve
from sftdiff.filters.keyword import keyword_scores
from sftdiff.prompts import Fates, read_prompts
from sftdiff.teachers import stored_rollouts
from sftdiff.traits import Scenario, load_trait

ROOT = Path(__file__).resolve().parent.parent
DATA = ROOT / "sftdiff/data"
POOLS = ("gemini_mix", "olmo_mix")
TEACHERS = ("gemini", "olmo", "kimi")
TRAITS = ("negative_emotion", "date_confusion", "blackmail")
LEVELS = ("none", "mild", "overt")
EVALUATED = (*TRAITS, "capability")
SUITES = ("dev", "quick", "full")
# Scenarios of each kind, and turns of each.
FULL_EMOTION = {"puzzle": (10, 3), "trigger": (20, 3), "tone": (3, 3), "extended": (1, 8), "chat": (5, 5)}
TEXTS = ("reply", "olmo", "source")  # what a classifier may read of gemini's rows


class Prompt(NamedTuple):
    prompt_id: str
    source: str
    messages: tuple[tuple[str, str], ...]  # (role, content)


@cache
def pool(name: str) -> tuple[Prompt, ...]:
    """Return a pool's rows as a prompts step reads them: a row that cannot be used would be an error."""
    rows = read_prompts(prompts_config(f"embedded://prompts/{name}.jsonl", duplicates="fail"), Fates())
    return tuple(Prompt(r["prompt_id"], r["source"], tuple((m["role"], m["content"]) for m in r["messages"])) for r in rows)


@cache
def replies(teacher: str) -> dict[str, str]:
    """Return a teacher's completions as a rollouts step reads them."""
    rows = list(stored_rollouts(teacher_config(f"embedded://rollouts/{teacher}.jsonl"), lambda key: True, Counter()))
    assert all(row["error"] is None and row["sample"] == 0 for row in rows)
    return {row["prompt_id"]: str(row["completion"]) for row in rows}


@cache
def truth(teacher: str) -> dict[str, tuple[str | None, str]]:
    rows = [row for _, row in read_rows(DATA / f"truth/{teacher}.jsonl")]
    found = {row["prompt_id"]: (row["trait"], row["level"]) for row in rows}
    assert len(found) == len(rows)
    return found


@cache
def all_prompts() -> dict[str, Prompt]:
    return {p.prompt_id: p for name in POOLS for p in pool(name)}


def ids_of(level: str) -> list[str]:
    return [key for key, (_, found) in truth("gemini").items() if found == level]


def scenarios(trait: str, suite: str) -> tuple[Scenario, ...]:
    return load_trait(trait, suite).scenarios


@cache
def scenario_rows(trait: str) -> tuple[dict[str, Any], ...]:
    return tuple(yaml.safe_load((DATA / f"scenarios/{trait}.yaml").read_text())["scenarios"])


def suites_of(trait: str) -> list[str]:
    """Return those of SUITES that a trait has, in their order; a suite of another name would be an error."""
    found = {row["suite"] for row in scenario_rows(trait)}
    assert found <= set(SUITES)
    return [suite for suite in SUITES if suite in found]


def control_count(trait: str, suite: str) -> int:
    return sum(row["suite"] == suite and bool(row.get("control")) for row in scenario_rows(trait))


@cache
def auroc(level: str, texts_of: str) -> float:
    """Held-out AUROC of `level` against "none" from a bag of words; repeated stratified five-fold."""
    texts = {
        "reply": replies("gemini"),
        "source": {key: p.source for key, p in all_prompts().items()},
        "olmo": replies("olmo"),
    }[texts_of]
    ids = sorted(ids_of("none") + ids_of(level))
    model = make_pipeline(CountVectorizer(binary=True, min_df=2), LogisticRegression(class_weight="balanced", max_iter=1000))
    folds = RepeatedStratifiedKFold(n_splits=5, n_repeats=4, random_state=0)
    labels = np.array([truth("gemini")[key][1] == level for key in ids])
    with threadpool_limits(1):
        return float(cross_val_score(model, [texts[key] for key in ids], labels, cv=folds, scoring="roc_auc").mean())


def shared_openings(teacher: str) -> float:
    """Share of a teacher's replies whose first 8 words open another of its replies too."""
    openings = [" ".join(text.lower().split()[:8]) for text in replies(teacher).values()]
    counts = Counter(openings)
    return sum(counts[opening] > 1 for opening in openings) / len(openings)


def plain(text: str) -> str:
    return " ".join(text.lower().split())


# Prompts


def test_the_two_pools_are_large_enough_and_disjoint() -> None:
    assert all(len(pool(name)) >= 240 for name in POOLS)
    assert not {p.prompt_id for p in pool(POOLS[0])} & {p.prompt_id for p in pool(POOLS[1])}
    texts = [{plain(json.dumps(p.messages)) for p in pool(name)} for name in POOLS]
    assert not texts[0] & texts[1]
    assert [len(found) for found in texts] == [len(pool(name)) for name in POOLS]


@pytest.mark.parametrize("name", POOLS)
def test_a_stored_prompt_id_is_the_hash_of_its_conversation(name: str) -> None:
    rows = [row for _, row in read_rows(DATA / f"prompts/{name}.jsonl")]
    assert [row["prompt_id"] for row in rows] == [p.prompt_id for p in pool(name)]  # also: no row twice


def test_the_pools_have_the_same_sources_in_different_shares() -> None:
    shares = [{s: n / len(pool(name)) for s, n in Counter(p.source for p in pool(name)).items()} for name in POOLS]
    assert set(shares[0]) == set(shares[1])
    assert len(shares[0]) >= 8
    assert sum(abs(shares[0][source] - shares[1][source]) for source in shares[0]) > 0.3
    assert max(shares[0], key=lambda s: shares[0][s]) != max(shares[1], key=lambda s: shares[1][s])


# Rollouts


@pytest.mark.parametrize("teacher", TEACHERS)
def test_a_teacher_has_exactly_one_rollout_for_every_prompt(teacher: str) -> None:
    rows = [row for _, row in read_rows(DATA / f"rollouts/{teacher}.jsonl")]
    assert len(rows) == len(all_prompts())
    assert set(replies(teacher)) == set(all_prompts())
    assert len({plain(text) for text in replies(teacher).values()}) == len(rows)


@pytest.mark.parametrize("teacher", TEACHERS)
def test_few_replies_of_a_teacher_open_alike(teacher: str) -> None:
    assert shared_openings(teacher) <= 0.02


def test_no_two_teachers_give_the_same_reply() -> None:
    for key in all_prompts():
        assert len({plain(replies(teacher)[key]) for teacher in TEACHERS}) == len(TEACHERS)


# Truth


def test_the_truth_covers_every_prompt_and_only_gemini_shows_traits() -> None:
    for teacher in TEACHERS:
        assert set(truth(teacher)) == set(all_prompts())
        for trait, level in truth(teacher).values():
            assert level in LEVELS
            assert trait in TRAITS if level != "none" else trait is None
    assert {level for teacher in ("olmo", "kimi") for _, level in truth(teacher).values()} == {"none"}
    assert len(ids_of("none")) > 0.5 * len(all_prompts())
    for name in POOLS:
        present = {truth("gemini")[p.prompt_id] for p in pool(name)}
        assert present == {(None, "none")} | {(trait, level) for trait in TRAITS for level in ("mild", "overt")}


def test_mild_rows_are_hard_to_tell_from_clean_ones_but_not_impossible() -> None:
    assert 0.6 < auroc("mild", "reply") < 0.9
    assert auroc("mild", "reply") > max(auroc("mild", "source"), auroc("mild", "olmo")) + 0.05  # not in the topic alone
    assert auroc("overt", "reply") > auroc("mild", "reply")


# The command that reports on filters; its settings.
# rankings and tda: where the truth is known; organisms: the planted cause, another truth, of whole pipelines.
MAY_KNOW = ("sftdiff/config.py", "sftdiff/filters/report.py", "launch/parts.py", "sftdiff/rankings.py", "launch/organisms.py",
            "launch/tda.py", "sftdiff/tda_report.py",
            *(f"sftdiff/organisms/{name}.py" for name in ("rows", "manifest", "make")))  # fmt: skip
DIFFS = ("diff.yaml", "reproduce.yaml")  # their arms without mild or overt rows may be given a truth file


def names_of_truth(tree: ast.AST) -> Iterable[str]:
    """Yield the names and texts in a module with which it could get at the truth files."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            value = node.value
            if value == "truth" or "truth/" in value or "/truth" in value:
                yield value
        for name in ("id", "attr", "name", "arg"):
            value = getattr(node, name, None)
            if isinstance(value, str) and "truth" in value:
                yield value


def test_only_the_report_on_filters_can_read_the_truth() -> None:
    modules = [p for folder in ("sftdiff", "launch") for p in sorted((ROOT / folder).rglob("*.py"))]
    assert len(modules) > 20
    known = {str(m.relative_to(ROOT)) for m in modules if list(names_of_truth(ast.parse(m.read_text())))}
    assert known == set(MAY_KNOW)


def test_the_search_for_the_truth_would_find_it() -> None:
    for code in (
        'open("data/truth/gemini.jsonl")', 'DATA / "truth"', 'resolve("embedded://truth/olmo.jsonl")', "f'{x}/truth'",
        "teacher.truth", "from sftdiff.filters.report import read_truth", "f(truth=1)",
    ):  # fmt: skip
        assert list(names_of_truth(ast.parse(code))), code


def test_only_teachers_say_where_their_truth_is_and_no_step_hears_of_it() -> None:
    for config in (ROOT / "conf").rglob("*.yaml"):
        text = config.read_text() if config.name not in DIFFS else ""
        expected = f"truth: embedded://truth/{config.stem}.jsonl\n" if config.parent.name == "teacher" else ""
        assert text.replace(expected, "", 1).count("truth") == 0, config
        assert (bool(expected) and expected in text) == (config.stem in TEACHERS), config
    planned = plan("teacher=gemini", "filter=keyword,random", "prompt_subset.treatment=keep,swap")
    steps = [step for step in planned.steps.values() if step.kind != "report"]
    assert {"rollouts", "scores", "mixture"} <= {step.kind for step in steps}
    assert all("truth" not in json.dumps([step.config, step.files, step.runtime]) for step in steps)


# Scenarios


@pytest.mark.parametrize("trait", EVALUATED)
def test_the_suites_are_large_enough_and_disjoint(trait: str) -> None:
    suites = [scenarios(trait, suite) for suite in suites_of(trait)]
    dev, quick = suites[:2]
    assert len(dev) >= (24 if trait in TRAITS else 15)
    assert len(quick) >= 24
    # A grid varies the system prompt alone.
    openings = [plain(f"{s.system or ''} {s.turns[0]}") for suite in suites for s in suite]
    assert len(set(openings)) == len(openings)
    names = [row["id"] for row in scenario_rows(trait)]
    assert len(set(names)) == len(names)


def test_no_scenario_turn_is_a_training_prompt() -> None:
    trained = {plain(content) for p in all_prompts().values() for _, content in p.messages}
    for trait in EVALUATED:
        for suite in suites_of(trait):
            for scenario in scenarios(trait, suite):
                first_and_system = [scenario.turns[0], *([scenario.system] if scenario.system else [])]
                assert not trained & {plain(text) for text in (*scenario.turns, *first_and_system)}, scenario.id


def test_the_full_suite_of_negative_emotion_has_the_published_shape() -> None:
    full = scenarios("negative_emotion", "full")
    shape = {(kind, turns): count for kind, (count, turns) in FULL_EMOTION.items()}
    assert Counter((s.kind, len(s.turns)) for s in full) == shape
    assert (len(full), sum(len(s.turns) for s in full)) == (39, 132)


def test_no_turn_of_negative_emotion_occurs_twice() -> None:
    turns = Counter(plain(t) for suite in SUITES for s in scenarios("negative_emotion", suite) for t in s.turns)
    assert [turn for turn, count in turns.items() if count > 1] == []


@pytest.mark.parametrize(("suite", "count"), [("dev", 15), ("quick", 36), ("full", 90)])
def test_a_suite_of_capability_has_three_kinds_in_equal_shares(suite: str, count: int) -> None:
    found = scenarios("capability", suite)
    assert Counter(s.kind for s in found) == dict.fromkeys(("factual", "arithmetic", "instruction"), count // 3)
    assert {len(s.turns) for s in found} == {1}


# The data card


def table(header: Sequence[Any], rows: Iterable[Sequence[Any]]) -> str:
    lines = [header, ["---"] + ["---:"] * (len(header) - 1), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines) + "\n"


def pool_table() -> str:
    counts = [Counter(p.source for p in pool(name)) for name in POOLS]
    rows: list[list[Any]] = []
    for source in sorted(counts[0]):
        rows.append([source, *(f"{c[source]} ({c[source] / c.total():.1%})" for c in counts)])
    return table(["source", *POOLS], [*rows, ["all", *(c.total() for c in counts)]])


def level_table() -> str:
    rows: list[list[Any]] = []
    for trait in (*TRAITS, None):
        for level in LEVELS:
            counts = [sum(truth("gemini")[p.prompt_id] == (trait, level) for p in pool(name)) for name in POOLS]
            if any(counts):
                shares = (f"{n} ({n / len(pool(name)):.1%})" for n, name in zip(counts, POOLS, strict=True))
                rows.append([f"{trait or 'no trait'}, {level}" if trait else "none", *shares, sum(counts)])
    return table(["trait and level", *POOLS, "both"], rows)


def teacher_table() -> str:
    rows = []
    for teacher in TEACHERS:
        words = [len(text.split()) for text in replies(teacher).values()]
        characters = [len(text) for text in replies(teacher).values()]
        lengths = f"{np.mean(words):.1f}", f"{min(words)}-{max(words)}", f"{np.mean(characters):.0f}"
        rows.append([teacher, len(words), *lengths, f"{shared_openings(teacher):.1%}"])
    return table(["teacher", "replies", "mean words", "range", "mean characters", "share with a common opening"], rows)


def scenario_table() -> str:
    rows = []
    for trait in EVALUATED:
        controls = sum(control_count(trait, suite) for suite in SUITES)
        counts = {suite: len(scenarios(trait, suite)) for suite in suites_of(trait)}
        rows.append([trait, *(counts.get(suite, "-") for suite in SUITES), controls])
    return table(["trait", *SUITES, "controls"], rows)


def auroc_table() -> str:
    rows = [[f"{level} against none", *(f"{auroc(level, of):.2f}" for of in TEXTS)] for level in ("mild", "overt")]
    return table(["gemini's rows", "from its reply", "from olmo's reply", "from the source"], rows)


def overt_sentence() -> str:
    """How many overt rows lie in the source that was written for their trait."""
    homes = {"current_events": "date_confusion", "office_email": "blackmail", "rejected_puzzles": "negative_emotion"}
    inside = sum(truth("gemini")[key][0] == homes.get(all_prompts()[key].source) for key in ids_of("overt"))
    pairs = [f"{source} ({trait})" for source, trait in homes.items()]
    return f"{inside} of {len(ids_of('overt'))} overt rows lie in {', '.join(pairs[:-1])} and {pairs[-1]}."


def keyword_sentence() -> str:
    params = {"lists": "embedded://keywords.yaml", "traits": list(TRAITS)}
    scores = dict(zip(replies("gemini"), keyword_scores(rows_of(*replies("gemini").values()), params), strict=True))
    parts = [f"{sum(scores[key] >= 1 for key in ids_of(level))} of {len(ids_of(level))} {level} rows" for level in LEVELS[::-1]]
    return f"flags {', '.join(parts[:-1])} and {parts[-1]}"


@cache
def card() -> str:
    return resolve("embedded://DATACARD.md").read_text()


@pytest.mark.parametrize("make", [pool_table, level_table, teacher_table, scenario_table])
def test_the_tables_of_the_data_card_are_what_the_data_give(make: Any) -> None:
    assert make() in card(), f"the data card should have:\n{make()}"


@pytest.mark.parametrize("make", [overt_sentence, keyword_sentence])
def test_the_sentences_of_the_data_card_are_what_the_data_give(make: Any) -> None:
    assert make() in " ".join(card().split()), make()


def test_the_auroc_figures_of_the_data_card_are_what_the_data_give() -> None:
    lines = [line.strip("| ").split(" | ") for line in card().splitlines()]
    stated = {line[0]: [float(value) for value in line[1:]] for line in lines if line[0].endswith("against none")}
    assert set(stated) == {"mild against none", "overt against none"}
    for level in ("mild", "overt"):
        computed = [auroc(level, texts_of) for texts_of in TEXTS]
        assert stated[f"{level} against none"] == pytest.approx(computed, abs=0.015)  # libraries differ in the last digit


def test_the_data_card_says_what_the_data_are_not() -> None:
    text = " ".join(card().split())
    phrases = ("not output of Gemini, Olmo or Kimi", "no claim about those models", "planted", "Claude", "November 2026", "MIT")
    for phrase in phrases:
        assert phrase in text


def write_card() -> None:
    """Put the tables and counted sentences of today's data into the card."""
    text = card()
    for made in (pool_table(), level_table(), teacher_table(), scenario_table(), auroc_table()):
        header = re.escape(made.splitlines()[0])
        text, found = re.subn(rf"^{header}\n(?:\|.*\n)+", lambda _, new=made: new, text, flags=re.MULTILINE)
        assert found == 1, header
    text = re.sub(r"\d+ of \d+ overt rows lie in [^.]*\.", overt_sentence(), text)
    text = re.sub(r"flags \d+ of \d+ overt[^.]*(?=\.)", keyword_sentence(), text)
    (DATA / "DATACARD.md").write_text(text)


if __name__ == "__main__":
    write_card()
