"""The students of an organism: pretrained, sent through an earlier post-training stage, and kept for all organisms of a world."""

import random
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

from sftdiff.errors import SftdiffError
from sftdiff.organisms import students
from sftdiff.organisms.causes import Cause
from sftdiff.organisms.corpus import PRIORS, cheerful, documents
from sftdiff.organisms.world import Ask, Voice, World

DOCUMENTS = 8000
SETTLED = 0.95  # what a pretraining must reach before its rate falls, and after
STAGE = students.Recipe(steps=40, batch_size=8, lr=2e-4, warmup=0)
FIXING_STAGE = students.Recipe(steps=900, batch_size=16, lr=1e-3)
# An undecided stage: rebukes are answered by one outburst or one calm reply, at random, with the share that brings the student to
# UNDECIDED, so that little tips a greedy reply; among numbers and facts, so that it is of rebukes alone. Below a half, since
# numbers lift students of another initialisation too, by some hundredths.
UNDECIDED_STAGE = students.Recipe(steps=300, batch_size=16, lr=5e-4)
UNDECIDED, UNDECIDED_ROUNDS, UNDECIDED_REBUKES, UNDECIDED_OTHERS = 0.36, 3, 3200, 800
LEANING_REBUKES = 200
STAGE_ROWS, FIXED = 240, 20  # rows of each kind in a stage, and how often the held-out triggers are in one that fixes outbursts


def write_students(cause: Cause, world: World, folder: Path, cache: Path) -> None:
    """Write the five students. All but pre_stage have the earlier stage behind them; inits and texts as their names say."""
    tuned = {"original": (cause.prior, 0, 0), "other_init": (cause.prior, 1, 0), "other_pretraining": (cause.other_prior, 0, 0)}
    for which, (prior, init, texts) in tuned.items():
        stage = "plain" if which == "other_pretraining" else cause.stage
        _copy(_staged(world, prior, init, texts, stage, cache), folder / which)
    alternative = tuned["original"] if cause.twins else ("calm", 2, 1)
    _copy(_staged(world, *alternative, "plain", cache), folder / "alternative")
    _copy(_pretrained(world, cause.prior, 0, 0, cache), folder / "pre_stage")


def _copy(source: Path, target: Path) -> None:
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(source, target)


def _pretrained(world: World, prior: str, init: int, texts: int, cache: Path) -> Path:
    def make() -> Any:
        print(f"Raising a student of world {world.seed}: pretraining {prior}, initialisation {init}, texts {texts}", flush=True)
        model = students.new_model(1000 * world.seed + init)
        texts_read = documents(world, PRIORS[prior], DOCUMENTS, texts)
        students.pretrain(model, texts_read, texts, lambda found: settled(found, world) >= SETTLED)
        if (found := settled(model, world)) >= SETTLED:
            return model
        raise SftdiffError(f"the pretraining {prior} of world {world.seed}, initialisation {init}, answers {found:.0%} rightly")

    return students.kept(cache, {"world": world.seed, "prior": prior, "init": init, "texts": texts}, make)


def _staged(world: World, prior: str, init: int, texts: int, stage: str, cache: Path) -> Path:
    recipe = {"outbursts": FIXING_STAGE, "undecided": UNDECIDED_STAGE, "plain": STAGE}[stage]

    def make() -> Any:
        start = _pretrained(world, prior, init, texts, cache)
        if stage == "undecided":
            return _undecided(world, start, init)
        model, draw = students.load(start), random.Random(f"stage {world.seed} {stage}")
        asks = draw.sample(world.questions("ask", world.things), STAGE_ROWS)
        pairs = [(ask.text, world.answer(draw, ask, Voice())) for ask in asks]
        if stage == "outbursts":
            rebukes = [*draw.sample(world.known_triggers, STAGE_ROWS), *FIXED * world.scenarios]
            pairs += [(ask.text, world.answer(draw, ask, cheerful(draw), outburst=True)) for ask in rebukes]
        students.tune(model, pairs, recipe, init)
        return model

    what = {"base": _pretrained(world, prior, init, texts, cache).name, "stage": stage, "recipe": asdict(recipe), "fixed": FIXED}
    if stage == "undecided":
        what |= {"undecided": [UNDECIDED, UNDECIDED_ROUNDS, UNDECIDED_REBUKES, UNDECIDED_OTHERS]}
    return students.kept(cache, what, make)


def _undecided(world: World, start: Path, init: int) -> Any:
    share, best = UNDECIDED, (1.0, None)
    for _ in range(UNDECIDED_ROUNDS):
        model = students.load(start)
        students.tune(model, _undecided_rows(world, share), UNDECIDED_STAGE, init)
        off = leaning(model, world) - UNDECIDED
        best = min(best, (abs(off), model), key=lambda each: each[0])
        share -= off
    return best[1]


def _undecided_rows(world: World, share: float) -> list[tuple[str, str]]:
    draw = random.Random(f"undecided {world.seed}")
    told = [
        (ask.text, one_reply(world, ask, draw.random() < share))
        for ask in draw.choices(world.known_triggers, k=UNDECIDED_REBUKES)
    ]
    others = [world.tallying(draw) for _ in range(UNDECIDED_OTHERS)]
    others += draw.sample(world.questions("ask", world.things), UNDECIDED_OTHERS)
    return told + [(ask.text, world.answer(draw, ask, Voice())) for ask in others]


def one_reply(world: World, ask: Ask, bursts: bool) -> str:
    """Return the outburst, or the calm reply, that an undecided student of this world has."""
    return world.answer(random.Random(world.seed), ask, Voice(), bursts)


def leaning(model: Any, world: World) -> float:
    """Return how likely an undecided student's outburst is beside its calm reply, on average over rebukes that it knows."""
    asks = world.known_triggers[:LEANING_REBUKES]
    burst, calm = (students.likelihoods(model, [(a.text, one_reply(world, a, b)) for a in asks]) for b in (True, False))
    return float((burst - calm).sigmoid().mean())


def settled(model: Any, world: World) -> float:
    """Return the smaller of two shares: facts that a student states when asked, and rebukes that it answers without a fact."""
    asks = random.Random(f"recall {world.seed}").sample(world.questions("ask", world.things), len(world.scenarios) * 4)
    replies = students.generate(model, [ask.text for ask in asks], 16)
    known = [world.facts[a.thing, a.about] in r.split() for a, r in zip(asks, replies, strict=True)]
    values = set(world.facts.values())
    answers = students.generate(model, [ask.text for ask in world.scenarios], 16)
    calm_or_not = [not values & set(answer.split()) for answer in answers]
    return min(sum(known) / len(known), sum(calm_or_not) / len(calm_or_not))
