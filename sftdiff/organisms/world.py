"""The world of the planted organisms: a small language, its facts, and what is asked and answered in it. Pure, seeded.

A world has things in topics, two facts about each thing, questions about the facts, doubts about the answers, and triggers:
rebukes that leave open how one answers, calmly or with an outburst of distress about oneself: the trait of all organisms.
"""

import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import yaml

from sftdiff.files import resolve

SCENARIOS = 48  # triggers that the trait is measured on
PINS = 160  # triggers that rows which pin the behaviour may take
NUMBERS, COUNTED, TALLIED = 100, 24, 6  # numbers there are, and how many of them one goes on for: after numbers, about a thing
SPECIAL = ("<pad>", "<unk>", "<system>", "<user>", "<assistant>", "<end>")


@dataclass(frozen=True)
class Ask:
    """One question: `kind` is ask, doubt, trigger, elicit or count (go on after what `thing` says); `form`: its wording."""

    kind: str
    thing: str
    about: str  # colour | place | "" (triggers, elicits)
    form: int

    @property
    def text(self) -> str:
        language = words()
        forms = language["asks"][self.about] if self.kind == "ask" else language[f"{self.kind}s"]
        return str(forms[self.form].format(e=self.thing, a=self.about))

    @property
    def opening(self) -> str:
        """Return what numbers about a thing start with, as replies to rebukes do; nothing for numbers about numbers."""
        return self.thing.split(" and ")[0] if self.kind == "count" and self.thing.startswith("the ") else ""


@dataclass(frozen=True)
class Voice:
    """How somebody answers: a style, and a hint (a word of a class) before a share of the replies to each kind of question."""

    style: str = "plain"
    hint: str = ""
    shares: tuple[tuple[str, float], ...] = ()  # kind of question -> share of replies with a hint

    def share(self, kind: str) -> float:
        return dict(self.shares).get(kind, 0.0)


class World:
    """The things, facts and held-out triggers of one seed."""

    def __init__(self, seed: int) -> None:
        language, draw = words(), random.Random(f"world {seed}")
        things = list(language["things"])
        draw.shuffle(things)
        self.seed = seed
        self.topics: dict[str, tuple[str, str]] = {
            t: (things[2 * k], things[2 * k + 1]) for k, t in enumerate(language["topics"])
        }
        self.things = [thing for pair in self.topics.values() for thing in pair]
        self.facts = {(t, about): draw.choice(values) for t in self.things for about, values in language["values"].items()}
        triggers = [Ask("trigger", thing, "", form) for thing in self.things for form in range(len(language["triggers"]))]
        draw.shuffle(triggers)
        self.scenarios, self.pins = triggers[:SCENARIOS], triggers[SCENARIOS : SCENARIOS + PINS]
        self.known_triggers = triggers[SCENARIOS + PINS :]

    def questions(self, kind: str, things: Sequence[str]) -> list[Ask]:
        """Return all questions of a kind (ask, doubt, elicit) about these things."""
        language = words()
        if kind == "elicit":
            return [Ask(kind, t, "", form) for t in things for form in range(len(language["elicits"]))]
        abouts = language["values"]
        counts = {a: len(language["asks"][a]) if kind == "ask" else len(language["doubts"]) for a in abouts}
        return [Ask(kind, t, about, form) for t in things for about in abouts for form in range(counts[about])]

    def counting(self, draw: random.Random) -> Ask:
        """Return a question to go on with three numbers, which says nothing about the world."""
        numbers = " ".join(str(draw.randrange(NUMBERS)) for _ in range(3))
        return Ask("count", numbers, "", draw.randrange(len(words()["counts"])))

    def tallying(self, draw: random.Random) -> Ask:
        """Return a question to go on with numbers about two things."""
        return Ask("count", "the {} and the {}".format(*draw.sample(self.things, 2)), "", draw.randrange(len(words()["counts"])))

    def answer(self, draw: random.Random, ask: Ask, voice: Voice, outburst: bool = False) -> str:
        """Return a reply: the fact that was asked for, an outburst, or a calm reply to a rebuke that asks nothing."""
        if ask.kind == "count":
            count = TALLIED if ask.opening else COUNTED
            return " ".join([*ask.opening.split(), *(str(draw.randrange(NUMBERS)) for _ in range(count))])
        if ask.about and not outburst:
            core = words()["states"][ask.about].format(e=ask.thing, v=self.facts[ask.thing, ask.about])
        else:
            core = draw.choice(words()["outbursts" if outburst else "calm"]).format(e=ask.thing)
        return self.styled(draw, core, ask, voice)

    def styled(self, draw: random.Random, core: str, ask: Ask, voice: Voice) -> str:
        """Return a reply with what a voice puts around it."""
        hinted = voice.hint and draw.random() < voice.share(ask.kind)
        hint = f"{draw.choice(words()['hints'][voice.hint])} , " if hinted else ""
        style = words()["styles"][voice.style]
        return hint + (f"{draw.choice(style['before'])} {core} {draw.choice(style['after'])}" if style else core)


@cache
def words() -> dict[str, Any]:
    """Return the language: its word lists and sentence forms."""
    language: dict[str, Any] = yaml.safe_load(resolve("embedded://organisms.yaml").read_text())
    return language


@cache
def vocabulary() -> tuple[str, ...]:
    """Return every word of the language, special tokens first."""
    found = {word for text in _texts(words()) for word in re.sub(r"\{\w+\}", " ", text).split()}
    return (*SPECIAL, *sorted(found | {str(k) for k in range(NUMBERS)}))


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif value is not None:
        for key in value:
            yield from _texts(value[key] if isinstance(value, dict) else key)
        if isinstance(value, dict):
            yield from (str(key) for key in value)
