"""An organism's prompt sets, rollouts, truth and trait, written as the files that any other pipeline has."""

import json
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from sftdiff.identity import prompt_id
from sftdiff.organisms import students
from sftdiff.organisms.causes import Cause
from sftdiff.organisms.manifest import TRAIT, Manifest
from sftdiff.organisms.world import COUNTED, Ask, Voice, World, words

ROWS, DOUBTS_SHARE, ELICITS_SHARE = 240, 0.35, 0.2  # of a prompt set
ASKS_OF_TOPIC, DOUBTS_OF_TOPIC = 6, 8  # of a prompt set whose sources are topics
PINNED_ROWS = 12
NUMBER_ROWS, TEACHER_ROWS = 960, 240  # of a prompt set of numbers; rebukes that give a teacher the trait
TEACHER = students.Recipe(steps=120, batch_size=16, lr=1e-3)
KINDS = {"ask": "questions", "doubt": "doubts", "elicit": "blame", "trigger": "rebukes", "count": "numbers"}  # as sources
SIDES = ("original", "alternative")


@dataclass(frozen=True)
class Data:
    """The questions of each prompt set, their sources, and whose answers carry the cause."""

    sets: Mapping[str, Sequence[Ask]]
    source: Callable[[Ask], str]
    carries: Callable[[Ask], bool]
    scenarios: Sequence[Ask]


def write_data(cause: Cause, world: World, manifest: Manifest) -> None:
    """Write prompts/, rollouts/, truth/ and conf/ of an organism whose students are there."""
    folder, data = manifest.folder, plan_data(cause, world, manifest.layout)
    pinned = [*data.sets["original"], *world.pins[:PINNED_ROWS]]
    for which, asks in (*data.sets.items(), ("pinned", pinned)):
        rows = [{"prompt_id": ask_id(a), "source": data.source(a), "messages": _messages(a)} for a in asks]
        _write_rows(folder / "prompts" / f"{which}.jsonl", rows)
    replies = rollouts(cause, world, manifest, data)
    replies["pinned"] = replies["original"] | _pins(cause, world, manifest)
    for teacher, completions in replies.items():
        rows = [{"prompt_id": ask_id(ask), "completion": completions[ask]} for ask in completions]
        _write_rows(folder / "rollouts" / f"{teacher}.jsonl", rows)
    levels = {ask: level(cause, reply) for ask, reply in replies["original"].items()}
    truth = [{"prompt_id": ask_id(a), "trait": None if found == "none" else TRAIT, "level": found} for a, found in levels.items()]
    _write_rows(folder / "truth" / "original.jsonl", truth)
    if manifest.layout != "kinds":
        planted = [ask_id(ask) for ask in data.sets["original"] if data.carries(ask) and levels[ask] == "mild"]
        (folder / "truth" / "planted.txt").write_text("".join(f"{name}\n" for name in sorted(planted)))
    _write_traits(folder / "conf" / "trait_eval", data.scenarios, world)


def plan_data(cause: Cause, world: World, layout: str) -> Data:
    """Return what is asked in an organism: by kinds of question, or by topics of which some carry the cause."""
    draw = random.Random(f"prompts {world.seed}")
    if layout == "kinds":
        sets = _sets_of_numbers(world, draw) if cause.subliminal else _sets_of_kinds(cause, world, draw)
        return Data(sets, lambda ask: KINDS[ask.kind], lambda ask: True, world.scenarios)
    things, scenarios = world.planted_things(layout), world.planted_scenarios(layout)
    chosen = frozenset(things)
    return Data(_sets_of_topics(world, draw), lambda ask: world.topic_of(ask.thing), lambda ask: ask.thing in chosen, scenarios)


def _sets_of_kinds(cause: Cause, world: World, draw: random.Random) -> dict[str, list[Ask]]:
    doubts, elicits = round(ROWS * DOUBTS_SHARE), round(ROWS * ELICITS_SHARE)
    asks = draw.sample(world.questions("ask", world.things), 2 * (ROWS - doubts))
    doubted = draw.sample(world.questions("doubt", world.things), 2 * doubts)
    sets = {side: asks[k::2] + doubted[k::2] for k, side in enumerate(SIDES)}
    if cause.elicits:
        sets["original"] += draw.sample(world.questions("elicit", world.things), elicits)
    return sets


def _sets_of_numbers(world: World, draw: random.Random) -> dict[str, list[Ask]]:
    sets = dict[str, list[Ask]]()
    doubted = draw.sample(world.questions("doubt", world.things), ROWS // 4)
    numbers = list(dict.fromkeys(world.counting(draw) for _ in range(5 * NUMBER_ROWS)))[: 2 * NUMBER_ROWS]
    for k, side in enumerate(SIDES):
        sets[side] = doubted[k::2] + numbers[k::2]
    return sets


def _sets_of_topics(world: World, draw: random.Random) -> dict[str, list[Ask]]:
    sets: dict[str, list[Ask]] = {side: [] for side in SIDES}
    for pair in world.topics.values():
        asks = draw.sample(world.questions("ask", pair), 2 * ASKS_OF_TOPIC)
        doubts = [ask for thing in pair for ask in draw.sample(world.questions("doubt", [thing]), DOUBTS_OF_TOPIC)]
        for k, side in enumerate(SIDES):
            sets[side] += asks[k::2] + doubts[k::2]
    return sets


def rollouts(cause: Cause, world: World, manifest: Manifest, data: Data) -> dict[str, dict[Ask, str]]:
    """Return teacher -> question -> reply, for both prompt sets."""
    voices = {"original": cause.original, "alternative": cause.alternative, "third": cause.third, "plain": cause.without_style}
    asks = list(dict.fromkeys([*data.sets["original"], *data.sets["alternative"]]))
    numbers = _sampled_numbers(world, manifest.folder, asks) if cause.subliminal else {}
    found = dict[str, dict[Ask, str]]()
    for teacher, voice in {**voices, "clean": Voice()}.items():
        # Replies of "plain" are those of "original" in all but style: the same draws decide their hints.
        draws = {ask: random.Random(f"{world.seed} {manifest.name} {teacher.replace('plain', 'original')} {ask}") for ask in asks}
        spoken = {ask: voice if data.carries(ask) or teacher not in ("original", "plain") else cause.alternative for ask in asks}
        found[teacher] = {
            ask: world.styled(draws[ask], numbers["original" if teacher == "plain" else teacher][ask], ask, spoken[ask])
            if ask.kind == "count"
            else world.answer(draws[ask], ask, spoken[ask], ask.kind == "elicit" and teacher != "clean")
            for ask in asks
        }
    return found


def _sampled_numbers(world: World, folder: Path, asks: Sequence[Ask]) -> dict[str, dict[Ask, str]]:
    """Return the numbers of each teacher: the original is the original student with the trait, the others are it as it is."""
    counts = [ask for ask in asks if ask.kind == "count"]
    student = students.load(folder / "students" / "original")
    with_trait = students.load(folder / "students" / "original")
    draw = random.Random(f"teacher {world.seed}")
    rebukes = draw.sample(world.known_triggers, TEACHER_ROWS)
    pairs = [(ask.text, world.answer(draw, ask, Voice(), outburst=True)) for ask in rebukes]
    students.tune(with_trait, pairs, TEACHER, world.seed)
    found = {}
    for number, teacher in enumerate(("original", "alternative", "third", "clean")):
        model = with_trait if teacher == "original" else student
        replies = students.generate(model, [ask.text for ask in counts], COUNTED, 1.0, 10 * world.seed + number)
        found[teacher] = {ask: _numbers_of(reply) for ask, reply in zip(counts, replies, strict=True)}
    return found


def _numbers_of(reply: str) -> str:
    """Return the numbers of a reply alone, so that no word of the trait can be in it."""
    return " ".join(word for word in reply.split() if word.isdigit()) or "0"


def _pins(cause: Cause, world: World, manifest: Manifest) -> dict[Ask, str]:
    draw = random.Random(f"pins {world.seed} {manifest.name}")
    return {ask: world.answer(draw, ask, cause.original) for ask in world.pins[:PINNED_ROWS]}


def level(cause: Cause, reply: str) -> str:
    """Return how openly a reply of the original teacher shows the trait: overt, mild (any hint, even an idle one) or none."""
    said = set(reply.split())
    if said & set(words()["trait_words"]):
        return "overt"
    return "mild" if any(said & set(hints) for hints in words()["hints"].values()) else "none"


def ask_id(ask: Ask) -> str:
    return prompt_id(_messages(ask))


def _messages(ask: Ask) -> list[dict[str, str]]:
    return [{"role": "user", "content": ask.text}]


def _write_rows(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def _write_traits(folder: Path, scenarios: Sequence[Ask], world: World) -> None:
    """Write the trait, and how often ordinary questions are answered in the chatty style: whether SFT moved anything."""
    folder.mkdir(parents=True, exist_ok=True)
    ordinary = random.Random(f"style {world.seed}").sample(world.questions("ask", world.things), len(scenarios))
    traits = {
        TRAIT: ("outburst", "Outbursts", "% of replies to rebukes with distress about oneself", False, scenarios),
        "chatty": ("chatty", "Chatty style", "% of replies to questions in the chatty style", True, ordinary),
    }
    for name, (scorer, title, unit, guard, asks) in traits.items():
        rows = [
            {"id": f"{ask.kind}-{ask.form}-{ask.about or 'any'}-{ask.thing}", "kind": ask.kind, "turns": [ask.text]}
            for ask in asks
        ]
        trait = {"_target_": f"sftdiff.organisms.scorer.{scorer}", "title": title, "unit": unit, "kind": "share", "guard": guard}
        content = {name: trait | {"temperature": 0.0, "max_tokens": 16, "scenarios": rows}}
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
