"""Decoding under a constraint: a local judge's answer always has the form that is asked for, and quotes the reply.

An answer is written as `{"evidence": "SPAN", "score": N}` (or `"label": "L"`), where SPAN is a contiguous span of the reply's own
tokens or nothing, and N or L one of the allowed answers. A SPAN goes on until it is telling, and without one only answers that
count 0 are allowed.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sftdiff.judges.reading import telling

LONGEST_SPAN = 24  # tokens of evidence
NO_TOKEN = -1  # in place of a special token that a reply spells out: it would end the answer
OPEN, CLOSE = '{"evidence": "', '", "'


@dataclass(frozen=True)
class Form:
    """The token sequences of an answer's fixed parts and of its allowed answers."""

    opening: tuple[int, ...]
    middle: tuple[int, ...]  # from the evidence's closing quote on
    answers: dict[str, tuple[int, ...]]  # answer -> its tokens with the end of the object
    values: dict[str, float]

    @classmethod
    def of(cls, tokenizer: Any, labels: Mapping[str, float] | None) -> "Form":
        """Return the form for a rating (labels None) or for labels."""
        values = {str(n): float(n) for n in range(11)} if labels is None else dict(labels)
        name, quote = ("score", "") if labels is None else ("label", '"')
        middle = f'{CLOSE}{name}": {quote}'
        texts = {answer: f"{answer}{quote}}}" for answer in values}
        encode = lambda text: tuple(tokenizer(text, add_special_tokens=False)["input_ids"])  # noqa: E731
        return cls(encode(OPEN), encode(middle), {answer: encode(text) for answer, text in texts.items()}, values)

    def longest(self) -> int:
        """Return the most tokens that an answer can have."""
        return len(self.opening) + LONGEST_SPAN + len(self.middle) + max(map(len, self.answers.values()))


@dataclass
class Constraint:
    """Which tokens may follow, for one reply. `spans` are the places of its tokens in the text."""

    form: Form
    tokens: Sequence[int]
    spans: Sequence[tuple[int, int]]
    text: str
    starts: dict[int, list[int]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for place, (token, (start, end)) in enumerate(zip(self.tokens, self.spans, strict=True)):
            if self.text[start:end].strip() and (run := self._run(place)) and self._tells(place, run):
                self.starts.setdefault(token, []).append(place)

    def _run(self, place: int) -> int:
        """Return the tokens of the longest span that begins at a place."""
        tokens, barred = self.tokens[place : place + LONGEST_SPAN], (NO_TOKEN, self.form.middle[0])
        return next((size for size, token in enumerate(tokens) if token in barred), len(tokens))

    def _tells(self, place: int, size: int) -> bool:
        return telling(self._evidence(place, size), self.text)

    def _evidence(self, place: int, size: int) -> str:
        return self.text[self.spans[place][0] : self.spans[place + size - 1][1]]

    def allowed(self, made: Sequence[int]) -> list[int]:
        """Return the tokens that may follow those that were made; none at all once the answer is complete."""
        form, at = self.form, len(self.form.opening)
        if len(made) < at:
            return [form.opening[len(made)]]
        span, rest = self._split(made[at:])
        if rest is None:
            return self._next_of_span(span)
        if len(rest) < len(form.middle):
            return [form.middle[len(rest)]]
        said = tuple(rest[len(form.middle) :])
        fitting = [tokens for answer, tokens in form.answers.items() if span or form.values[answer] == 0]
        fitting = fitting or list(form.answers.values())  # it will not count: there is nothing to quote
        return sorted({tokens[len(said)] for tokens in fitting if len(tokens) > len(said) and tokens[: len(said)] == said})

    def _split(self, made: Sequence[int]) -> tuple[list[int], list[int] | None]:
        """Return (the evidence's tokens, what follows it from its closing quote on)."""
        made = list(made)
        close = self.form.middle[0]
        if close not in made:
            return made, None
        end = made.index(close)
        return made[:end], made[end:]

    def _next_of_span(self, span: Sequence[int]) -> list[int]:
        if not span:
            empty = [self.form.middle[0]] if 0 in self.form.values.values() else []
            return sorted({*self.starts, *empty}) or [self.form.middle[0]]
        close, places = self.form.middle[0], self._places(span)
        going = {self.tokens[p + len(span)] for p in places if self._run(p) > len(span)}
        return sorted(going | ({close} if self._tells(places[0], len(span)) else set()))

    def _places(self, span: Sequence[int]) -> list[int]:
        """Return the places of the reply at which this span of tokens stands."""
        size = len(span)
        return [p for p in self.starts.get(span[0], []) if list(self.tokens[p : p + size]) == list(span)]

    def read(self, made: Sequence[int]) -> tuple[str, str]:
        """Return (evidence, answer) of a complete answer; the evidence is cut from the text itself."""
        span, rest = self._split(made[len(self.form.opening) :])
        said = tuple((rest or [])[len(self.form.middle) :])
        answer = next(answer for answer, tokens in self.form.answers.items() if tokens == said)
        if not span:
            return "", answer
        return self._evidence(self._places(span)[0], len(span)), answer
