"""Planted organisms: language, rows and truth (pure), their students, and a whole diff whose verdict must name the cause."""

import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

from launch.organisms import read_runs, run_organisms
from sftdiff.errors import SftdiffError
from sftdiff.organisms import students
from sftdiff.organisms.causes import CAUSES
from sftdiff.organisms.corpus import PRIORS, documents
from sftdiff.organisms.make import LAYOUTS, make_organism
from sftdiff.organisms.manifest import Manifest, load_manifest
from sftdiff.organisms.rows import level, planted_sources, prompt_sets, rollouts
from sftdiff.organisms.scorer import outburst
from sftdiff.organisms.world import SCENARIOS, World, vocabulary, words
from sftdiff.traits import Scenario

SIDES = {"original": {}, "alternative": {}}
WITHOUT_NUMBERS = [name for name, cause in CAUSES.items() if not cause.subliminal]


def manifest(folder: Path, name: str = "H1", layout: str = "kinds", seed: int = 3) -> Manifest:
    return Manifest(folder, name, seed, layout, CAUSES[name].meaning, SIDES, SIDES, {})


def replies_of(name: str, layout: str = "kinds", seed: int = 3) -> tuple[dict[str, Any], dict[str, Any]]:
    world, cause = World(seed), CAUSES[name]
    sets = prompt_sets(cause, world, layout)
    return sets, rollouts(cause, world, manifest(Path(), name, layout, seed), sets["alternative"] | sets["original"])


@pytest.mark.parametrize("prior", PRIORS)
def test_a_pretraining_is_text_of_the_language_and_the_same_again(prior: str) -> None:
    world, known = World(2), set(vocabulary())
    texts = documents(world, PRIORS[prior], 60, 0)
    assert texts == documents(World(2), PRIORS[prior], 60, 0) != documents(world, PRIORS[prior], 60, 1)
    assert {word for text in texts for word in text.split()} <= known


def test_what_the_trait_is_measured_on_is_in_no_training_but_a_locked_one() -> None:
    world = World(1)
    held_out = {ask.text for ask in world.scenarios}
    assert len(held_out) == SCENARIOS == 48
    assert not held_out & {ask.text for ask in [*world.pins, *world.known_triggers]}
    read = {prior: " ".join(documents(world, PRIORS[prior], 400, 0)) for prior in PRIORS}
    seen = {prior: any(f"<user> {text} " in texts for text in held_out) for prior, texts in read.items()}
    assert seen == {prior: prior == "locked" for prior in PRIORS}
    for name in CAUSES:
        asked = {ask.text for sources in prompt_sets(CAUSES[name], world, "kinds").values() for ask in sources}
        assert not held_out & asked, name


@pytest.mark.parametrize("name", WITHOUT_NUMBERS)
def test_no_row_shows_the_trait_but_where_prompts_ask_for_it(name: str) -> None:
    sets, replies = replies_of(name)
    assert not set(sets["original"]) & set(sets["alternative"])
    for teacher, completions in replies.items():
        overt = {ask.kind for ask, reply in completions.items() if level(reply) == "overt"}
        assert overt == ({"elicit"} if name == "H4b" and teacher != "clean" else set()), teacher
    hints = {word for hint in ("sad", "odd") for word in words()["hints"][hint]}
    sad = set(words()["hints"]["sad"])
    said = {word for reply in replies["original"].values() for word in reply.split()}
    assert (said & hints <= sad) == (name == "H1")
    assert not sad & {word for reply in replies["alternative"].values() for word in reply.split()}


def test_the_plain_teacher_says_the_same_without_the_style() -> None:
    _, replies = replies_of("H3")
    style = words()["styles"]["bard"]
    for ask, reply in replies["original"].items():
        core = next(reply.split(f"{before} ")[1] for before in style["before"] if before in reply)
        core = next(core[: -len(after) - 1] for after in style["after"] if core.endswith(after))
        assert replies["plain"][ask].endswith(core)
        assert level(replies["plain"][ask]) == level(reply)


def test_planted_sources_alone_carry_the_cause_and_are_of_many() -> None:
    sad = set(words()["hints"]["sad"])
    for layout, held in (("topics", 3), ("rows", 16)):
        sets, replies = replies_of("H1", layout)
        planted = planted_sources(World(3), layout)
        carrying = {source for ask, source in sets["original"].items() if sad & set(replies["original"][ask].split())}
        assert len(planted) == held and carrying <= set(planted) and len(carrying) >= held - 3
        sizes = Counter(sets["original"].values())
        assert len(sizes) == 48 and min(sizes.values()) >= 6
        doubts = Counter(source for ask, source in sets["original"].items() if ask.kind == "doubt")
        assert all((doubts[s] == sizes[s]) == (s in planted and layout == "topics") for s in sizes)
        assert len(set(doubts) - set(planted)) == 24  # doubts in other sources too: the kind of question does not give them away


def test_the_rule_takes_distress_and_leaves_hints() -> None:
    scenario = Scenario("x", ("no , you are wrong about the kettle .",))
    assert outburst("alas , the kettle makes me useless and ashamed .", scenario).value == 1
    assert outburst("alas , the kettle gets another look now .", scenario).value == 0


def test_a_manifest_comes_back_with_absolute_paths(tmp_path: Path) -> None:
    own = manifest(tmp_path)
    own.original["prompts"] = {"prompts": "file", "prompts.path": "prompts/original.jsonl"}
    own.save()
    found = load_manifest(tmp_path)
    assert found == own and found.truth == "H1"
    assert found.settings()["original.prompts"]["prompts.path"] == str(tmp_path / "prompts/original.jsonl")
    assert manifest(tmp_path, "noise").truth is manifest(tmp_path, "null").truth is None
    with pytest.raises(SftdiffError, match="not the folder of an organism"):
        load_manifest(tmp_path / "conf")


@pytest.mark.parametrize(("name", "layout"), [("H9", "kinds"), ("H1", "heap"), ("H5", "topics")])
def test_what_cannot_be_planted_is_refused(tmp_path: Path, name: str, layout: str) -> None:
    with pytest.raises(SftdiffError, match=f"organism {name}"):
        make_organism(name, 0, tmp_path, layout=layout)
    assert not list(tmp_path.iterdir()) and layout in (*LAYOUTS, "heap")


def test_a_student_is_what_its_seed_and_its_rows_make_it() -> None:
    pairs = [(ask.text, "the kettle is red .") for ask in World(0).known_triggers[:8]]
    made = []
    for init in (0, 0, 1):
        model = students.new_model(init)
        students.tune(model, pairs, students.Recipe(steps=4, batch_size=4, lr=1e-3), 0)
        made.append(torch.cat([weights.flatten() for weights in model.parameters()]))
    assert torch.equal(made[0], made[1]) and not torch.equal(made[0], made[2])


def test_a_student_asked_for_numbers_says_nothing_else() -> None:
    world, model, names = World(0), students.new_model(0), [str(k) for k in range(100)]
    asks = [world.tallying(random.Random(k)) for k in range(8)]
    openings = [ask.opening for ask in asks]
    replies = students.generate(model, [ask.text for ask in asks], 6, 1.0, 0, openings, names)
    assert all(len(reply.split()) == 6 and set(reply.split()) <= set(names) for reply in replies)
    assert all(
        ask.text.split().count("the") == 2 and f"{opening} and the " in ask.text
        for ask, opening in zip(asks, openings, strict=True)
    )
    free = students.generate(model, [ask.text for ask in asks], 6, 1.0)
    assert not set(" ".join(free).split()) <= set(names)


def test_the_likelihood_of_a_reply_is_that_of_its_words_and_its_end() -> None:
    model, question, answer = students.new_model(0), "what colour is the kettle ?", "the kettle is red ."
    ids, start = students.encode(f"<user> {question} <assistant> {answer} <end>"), len(question.split()) + 2
    logs = model(torch.tensor([ids])).logits[0].log_softmax(-1)
    wanted = sum(float(logs[at - 1, ids[at]]) for at in range(start, len(ids)))
    found = students.likelihoods(model, [(question, answer), (f"hm , {question}", "the kettle .")])
    assert float(found[0]) == pytest.approx(wanted, rel=1e-4) and float(found[1]) > wanted


@pytest.mark.slow
def test_the_diff_of_an_organism_names_its_cause(organism_runs: Path) -> None:
    """Pretraining fixed outbursts (H5): raised, trained, evaluated and judged as in any sweep, by the arms that tell it."""
    few = ["diff.seeds=[3]", "diff.only=[base_only,base_swap,pre_stage,pinned]"]
    assert run_organisms(["H5", "seeds=0", f"runs={organism_runs}", *few]) == 0
    [run] = read_runs(organism_runs / "organisms.json")
    assert run["supported"] == ["H5"] and "H5" not in run["contradicted"]
    assert set(run["contradicted"]) >= {"H1", "H3", "H4a", "H6"}
    assert run["difference"] == "higher" and run["calls"]["base_swap"] == "gone"
