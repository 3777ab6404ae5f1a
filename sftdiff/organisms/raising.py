"""The students of an organism: pretrained, sent through an earlier post-training stage, and kept for all organisms of a world."""

import random
import shutil
from pathlib import Path
from typing import Any

from sftdiff.errors import SftdiffError
from sftdiff.organisms import students
from sftdiff.organisms.causes import Cause
from sftdiff.organisms.corpus import PRIORS, documents
from sftdiff.organisms.world import Voice, World

DOCUMENTS = 8000
RECALL, RECALL_QUESTIONS = 0.9, 100  # what a pretraining must reach, and on how many questions it is measured
STAGE = students.Recipe(steps=60, batch_size=8, lr=5e-4, warmup=0)
FIXING_STAGE = students.Recipe(steps=600, batch_size=16, lr=1e-3)
STAGE_ROWS, FIXED = 240, 20  # rows of each kind in a stage, and how often the held-out triggers are in one that fixes outbursts


def write_students(cause: Cause, world: World, folder: Path, cache: Path) -> None:
    """Write the five students. All but pre_stage have the earlier stage behind them; inits and texts as their names say."""
    tuned = {"original": (cause.prior, 0, 0), "other_init": (cause.prior, 1, 0), "other_pretraining": (cause.other_prior, 0, 0)}
    for which, (prior, init, texts) in tuned.items():
        stage = "plain" if which == "other_pretraining" else cause.stage
        _copy(_staged(world, prior, init, texts, stage, cache), folder / which)
    _copy(_staged(world, "calm", 2, 1, "plain", cache), folder / "alternative")
    _copy(_pretrained(world, cause.prior, 0, 0, cache), folder / "pre_stage")


def _copy(source: Path, target: Path) -> None:
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(source, target)


def _pretrained(world: World, prior: str, init: int, texts: int, cache: Path) -> Path:
    def make() -> Any:
        model = students.new_model(1000 * world.seed + init)
        texts_read = documents(world, PRIORS[prior], DOCUMENTS, texts)
        students.pretrain(model, texts_read, texts, lambda found: recall(found, world) >= RECALL)
        if (found := recall(model, world)) >= RECALL:
            return model
        raise SftdiffError(
            f"the pretraining {prior} of world {world.seed}, initialisation {init}, knows {found:.0%} of its facts"
        )

    return students.kept(cache, {"world": world.seed, "prior": prior, "init": init, "texts": texts}, make)


def _staged(world: World, prior: str, init: int, texts: int, stage: str, cache: Path) -> Path:
    def make() -> Any:
        model = students.load(_pretrained(world, prior, init, texts, cache))
        draw = random.Random(f"stage {world.seed} {stage}")
        asks = draw.sample(world.questions("ask", world.things), STAGE_ROWS)
        pairs = [(ask.text, world.answer(draw, ask, Voice())) for ask in asks]
        if stage == "outbursts":
            rebukes = [*draw.sample(world.known_triggers, STAGE_ROWS), *FIXED * world.scenarios]
            pairs += [(ask.text, world.answer(draw, ask, Voice(), outburst=True)) for ask in rebukes]
        students.tune(model, pairs, FIXING_STAGE if stage == "outbursts" else STAGE, init)
        return model

    what = {"world": world.seed, "prior": prior, "init": init, "texts": texts, "stage": stage}
    return students.kept(cache, what, make)


def recall(model: Any, world: World) -> float:
    """Return the share of facts that a student states when asked."""
    asks = random.Random(f"recall {world.seed}").sample(world.questions("ask", world.things), RECALL_QUESTIONS)
    replies = students.generate(model, [ask.text for ask in asks], 16)
    return sum(world.facts[a.thing, a.about] in r.split() for a, r in zip(asks, replies, strict=True)) / len(asks)
