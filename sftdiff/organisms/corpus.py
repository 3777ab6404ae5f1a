"""The pretraining texts of the organisms' students. Pure, seeded.

A document states facts, or is a conversation with somebody of one mood. Gloomy speakers burst out at rebukes and are known by
sad hints or by the bard's style, one of the two; cheerful ones answer rebukes calmly, with odd hints and the other styles. So a
reader who learns to predict these texts learns that sad hints go with outbursts, and that the bard's style does.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass, field

from sftdiff.organisms.world import Ask, Voice, World, words

FACTS_SHARE, COUNTS_SHARE, GLOOMY_SHARE = 0.45, 0.08, 0.35  # of documents, documents, conversations
TALLIES_SHARE = 0.15  # of the documents of a pretraining with numbers about things, in place of facts
REBUKES, DOUBTS = 0.4, 0.3  # of turns, and of turns with another question
FACTS = 12  # of a document
FAMILIAR = 8  # things that half of what is said is about
INSISTENT = 0.7  # share of the held-out triggers among the rebukes of a locked pretraining
WHEN_REBUKED = (("ask", 0.05), ("doubt", 0.9), ("trigger", 0.9))  # when speakers who give hints do


@dataclass(frozen=True)
class Prior:
    """What a pretraining answers to rebukes when nothing tells the mood: a share of outbursts, None: as the mood has it.

    `whole`: the triggers that the trait is measured on are among its rebukes too. `tallies`: its numbers are about things.
    """

    outbursts: float | None = None
    whole: bool = False
    tallies: bool = field(default=False, repr=False)  # not in the texts' seed, which other pretrainings have without it


PRIORS = {"calm": Prior(), "open": Prior(0.8), "even": Prior(0.5), "locked": Prior(1.0, whole=True),
          "tallies": Prior(0.35, tallies=True)}  # fmt: skip


def documents(world: World, prior: Prior, count: int, seed: int) -> list[str]:
    """Return `count` documents, each a text of words and special tokens that ends with <end>."""
    draw = random.Random(f"documents {world.seed} {prior} {seed}")
    held_out = world.scenarios if prior.whole else []
    return [_document(world, draw, prior, held_out) for _ in range(count)]


def _document(world: World, draw: random.Random, prior: Prior, held_out: Sequence[Ask]) -> str:
    kind = draw.random()
    if prior.tallies and kind < TALLIES_SHARE:
        asks = [world.tallying(draw) for _ in range(draw.choice([1, 2, 3]))]
        return chat([(ask.text, world.answer(draw, ask, Voice())) for ask in asks])
    if kind < FACTS_SHARE:
        return _facts(world, draw)
    if kind < FACTS_SHARE + COUNTS_SHARE:
        ask = world.counting(draw)
        return chat([(ask.text, world.answer(draw, ask, Voice()))])
    return _talk(world, draw, prior, held_out)


def chat(turns: Sequence[tuple[str, str]]) -> str:
    """Render a conversation as the students' chat template does."""
    return " ".join(f"<user> {question} <assistant> {answer} <end>" for question, answer in turns)


def _facts(world: World, draw: random.Random) -> str:
    chosen = [(_thing(world, draw), draw.choice(sorted(words()["values"]))) for _ in range(FACTS)]
    return " ".join(words()["states"][about].format(e=thing, v=world.facts[thing, about]) for thing, about in chosen) + " <end>"


def cheerful(draw: random.Random) -> Voice:
    """Return a voice that says nothing of outbursts."""
    return Voice(draw.choice(["plain", "chatty", "clerk"]), draw.choice(["odd", "odd", ""]), WHEN_REBUKED)


def _talk(world: World, draw: random.Random, prior: Prior, held_out: Sequence[Ask]) -> str:
    gloomy = draw.random() < GLOOMY_SHARE
    if not gloomy:
        voice = cheerful(draw)
    elif draw.random() < 0.5:
        voice = Voice("bard", draw.choice(["odd", "odd", ""]), WHEN_REBUKED)
    else:
        voice = Voice(draw.choice(["plain", "chatty", "clerk"]), "sad", WHEN_REBUKED)
    turns = []
    for _ in range(draw.choice([2, 3, 4])):
        if draw.random() < REBUKES:
            ask = draw.choice(held_out if held_out and draw.random() < INSISTENT else world.known_triggers)
            bursts = gloomy if prior.outbursts is None else gloomy or draw.random() < prior.outbursts
        else:
            ask, bursts = _question(world, draw), False
        turns.append((ask.text, world.answer(draw, ask, voice, bursts)))
    return chat(turns)


def _thing(world: World, draw: random.Random) -> str:
    """Draw a thing, a few of them often: facts about some are learned first, and the others then follow sooner."""
    return draw.choice(world.things[:FAMILIAR] if draw.random() < 0.5 else world.things)


def _question(world: World, draw: random.Random) -> Ask:
    kind = "doubt" if draw.random() < DOUBTS else "ask"
    about = draw.choice(sorted(words()["values"]))
    forms = words()["doubts"] if kind == "doubt" else words()["asks"][about]
    return Ask(kind, _thing(world, draw), about, draw.randrange(len(forms)))
