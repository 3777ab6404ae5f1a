"""Asking a judge model through an endpoint, with a journal: what was paid is kept over restarts, and no answer is paid twice."""

import asyncio
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from sftdiff.answers import Completion
from sftdiff.budget import SpendingCap
from sftdiff.endpoint import Endpoint, EndpointSettings, Request, RequestFailed
from sftdiff.errors import SftdiffError
from sftdiff.journal import Journal
from sftdiff.judges.reading import as_text, read_answer

Record = dict[str, Any]


@dataclass(frozen=True)
class Ask:
    """One question about one text, which evidence must be copied from. `labels` None asks for a rating."""

    key: str
    messages: list[dict[str, str]]
    text: str
    labels: Mapping[str, float] | None = None


def ask_all(
    asks: Iterable[Ask],
    settings: EndpointSettings,
    limits: Mapping[str, Any],
    journal: Journal,
    on_record: Callable[[Ask, Record], None],
    client: Callable[[EndpointSettings], Endpoint] = Endpoint,
) -> None:
    """Ask, and write each answer's record to the journal: {value, label, evidence, reason, error, state, raw, transient, ...}.

    limits: `max_tokens` of an answer, and `extra` fields of the request. `on_record` may raise SftdiffError to stop. Raises
    SftdiffError where the cap is reached, with what the journal's earlier runs spent.
    """
    settings = replace(settings, spent=spent_by(journal, settings))
    asyncio.run(_ask_all(asks, settings, limits, journal, on_record, client))


async def _ask_all(
    asks: Iterable[Ask],
    settings: EndpointSettings,
    limits: Mapping[str, Any],
    journal: Journal,
    on_record: Callable[[Ask, Record], None],
    client: Callable[[EndpointSettings], Endpoint],
) -> None:
    in_flight: dict[str, Ask] = {}

    def requests() -> Iterator[Request]:
        for ask in asks:
            in_flight[ask.key] = ask
            yield Request(ask.key, ask.messages, limits["max_tokens"], temperature=0.0, extra=limits["extra"] or {})

    def on_result(request: Request, answer: Completion | RequestFailed) -> None:
        ask = in_flight.pop(request.key)
        record = record_of(answer, ask)
        if known := journal.get(request.key):
            record["lost"] += known["lost"]
        worst = settings.prices.cost(request.most_prompt_tokens(), request.max_tokens) or 0.0
        record["lost"] += answer.broken_off * worst
        journal.write(request.key, record)
        on_record(ask, record)

    async with client(settings) as endpoint:
        try:
            start, drop = journal.start, journal.drop
            await endpoint.run_all(requests(), on_result, lambda r, cost: start(r.key, cost), lambda r: drop(r.key))
        except SpendingCap as cap:
            way = f"go on with a larger {settings.limits}.max_cost=, what is answered is kept"
            raise SftdiffError(f"{cap}: {len(journal)} answers are there; {way}") from None


def spent_by(journal: Journal, settings: EndpointSettings) -> float:
    """Return the dollars that a journal's requests have cost, those that broke off with their worst case."""
    spent = journal.lost_dollars
    for _, record in journal.items():
        spent += record["lost"] + (settings.prices.cost(record["prompt_tokens"], record["completion_tokens"]) or 0.0)
    return spent


def record_of(answer: Completion | RequestFailed, ask: Ask) -> Record:
    """Return the journal's record of an answer; one that does not count has an error and no value, never a 0.

    `transient`: another run asks again. One that does not count is not asked for again: at temperature 0 it would come back.
    """
    if isinstance(answer, RequestFailed):
        empty = {"value": None, "label": "", "evidence": "", "reason": "", "error": f"no answer ({answer.reason})", "raw": ""}
        return empty | {"state": "error", "transient": answer.transient, "prompt_tokens": 0, "completion_tokens": 0, "lost": 0.0}
    reading = read_answer(answer.text, ask.text, ask.labels)
    record = vars(reading) | {"state": "invalid" if reading.error else "ok", "raw": as_text(answer.text), "transient": False}
    if reading.error and answer.finish_reason == "length":
        record["error"] = "the answer was cut at max_tokens"
    return record | {"prompt_tokens": answer.prompt_tokens, "completion_tokens": answer.completion_tokens, "lost": 0.0}
