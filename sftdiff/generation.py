"""A teacher's rollouts on a prompt set, through an endpoint or a local model: resumable, with failures as rows that say why.

The journal `generated.jsonl` holds a record for each (prompt_id, sample), in the order in which they came; `read_generated` gives
them in the order of the prompts.
"""

import asyncio
import json
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from sftdiff.answers import CHARACTERS_PER_TOKEN, Completion
from sftdiff.budget import Prices, SpendingCap
from sftdiff.endpoint import Endpoint, EndpointSettings, Request, RequestFailed
from sftdiff.errors import SftdiffError
from sftdiff.identity import unit_interval
from sftdiff.journal import Journal, Key
from sftdiff.pace import Pace, Tell
from sftdiff.reasoning import split_reasoning, with_reasoning

Messages = list[dict[str, str]]
Prompts = Iterable[tuple[str, Messages]]  # can be iterated more than once; each prompt_id occurs once

JOURNAL = "generated.jsonl"
ORIGINS = ("endpoint", "transformers", "vllm")
# What a reply depends on. Not the address: a server of one's own has another one in each job.
CONTENT = ("id", "revision", "temperature", "top_p", "top_k", "max_tokens", "system", "extra")
MADE_WITH: Key = ("made_with",)


@dataclass
class GenerationSummary:
    """What is in the journal at the end, over all runs that it took; `seconds` and `per_second` are of the last run.

    `paid_again` counts requests that were in flight when a process died: they are sent, and perhaps paid, once more. `cost`
    (dollars, None if a price is unknown) is of the recorded replies; `cost_lost` is the most that requests without an answer can
    have cost besides.
    """

    rows: int = 0
    errors: dict[str, int] = field(default_factory=dict)  # reason -> rows
    prompt_tokens: int = 0
    completion_tokens: int = 0
    estimated: int = 0  # replies whose tokens the server did not tell
    cost: float | None = None
    cost_lost: float | None = None
    paid_again: int = 0
    seconds: float = 0.0
    per_second: float = 0.0

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Estimate:
    """What is left to do, before it starts. Tokens are estimated; `most_dollars` is None where a price is unknown."""

    requests: int
    prompt_tokens: int
    most_completion_tokens: int
    most_dollars: float | None
    cap: float | None

    @property
    def text(self) -> str:
        """Return one line for the user."""
        most = self.most_dollars
        cost = "the price is unknown" if most is None else f"at most about ${most:.{2 if most >= 1 else 4}f}"
        cap = "no spending cap" if self.cap is None else f"the cap is ${self.cap:g}"
        return (f"{self.requests} requests, about {self.prompt_tokens} prompt tokens and at most {self.most_completion_tokens} "
                f"completion tokens: {cost}; {cap}")  # fmt: skip


def with_system(messages: Messages, system: str | None) -> Messages:
    """Return a conversation with the teacher's system prompt before it, in one turn with the prompt's own if there is one."""
    if not system:
        return messages
    if messages and messages[0]["role"] == "system":
        return [{"role": "system", "content": f"{system}\n\n{messages[0]['content']}"}, *messages[1:]]
    return [{"role": "system", "content": system}, *messages]


def seed_of(prompt_id: str, sample: int) -> int:
    """Return the seed of one sample (31 bits, as all servers take)."""
    return int(unit_interval("reply", prompt_id, sample) * 2**31)


def make_record(request: Request, reply: Completion | RequestFailed, teacher: Mapping[str, Any]) -> dict[str, Any]:
    """Return the journal's record of a reply: a completion, or the reason why there is none."""
    prompt_id, sample = request.key
    record = {"prompt_id": prompt_id, "sample": sample, "completion": None, "error": None, "finish": "error", "transient": False}
    record |= {"broken_off": reply.broken_off, "lost_prompt_tokens": reply.broken_off * request.most_prompt_tokens()}
    if isinstance(reply, RequestFailed):
        nothing = {"prompt_tokens": 0, "completion_tokens": 0, "estimated": False}
        return record | nothing | {"error": reply.reason, "transient": reply.transient}
    inline, text = split_reasoning(reply.text)
    reasoning, text = reply.reasoning.strip() or inline, text.strip()
    error = _objection(reply.finish_reason, text, bool(reasoning), teacher["cut"])
    text = with_reasoning(reasoning, text, teacher["reasoning"])
    counts = {name: getattr(reply, name) for name in ("prompt_tokens", "completion_tokens", "estimated")}
    return record | counts | {"completion": None if error else text, "error": error, "finish": reply.finish_reason}


def _objection(finish: str, text: str, reasoned: bool, cut: str) -> str | None:
    """Return why an answer is no rollout, or None."""
    if finish.startswith("content_filter"):
        return "content refused (content_filter)"
    if finish == "length" and (cut == "error" or not text):
        return "cut at max_tokens" + (" within the reasoning" if reasoned and not text else "")
    return None if text else "empty completion"


def generate(
    prompts: Prompts, teacher: Mapping[str, Any], settings: Mapping[str, Any], folder: Path, report: Tell
) -> GenerationSummary:
    """Generate what the journal in `folder` lacks, and try again what failed for a reason that passes.

    Raise SftdiffError for a wrong setting, a bad key, a spent cap, an endpoint that is gone, or a journal of another teacher.
    """
    if teacher["origin"] not in ORIGINS:
        raise SftdiffError(f"teacher.origin: {teacher['origin']!r} is not one of {', '.join(ORIGINS)}")
    started = time.monotonic()
    with Journal(folder / JOURNAL) as journal:
        _check_teacher(journal, teacher)
        done = finished(journal)
        total = sum(1 for _ in prompts) * teacher["samples"]
        pace = Pace(report, total, len(done))
        if total > len(done):
            print(estimate(prompts, teacher, settings, done).text, file=sys.stderr, flush=True)
            _fill(journal, pending(prompts, teacher, done), teacher, settings, pace)
        return _summary(journal, teacher, time.monotonic() - started, pace.made)


def _fill(
    journal: Journal, requests: Iterator[Request], teacher: Mapping[str, Any], settings: Mapping[str, Any], pace: Pace
) -> None:
    def on_result(request: Request, reply: Completion | RequestFailed) -> None:
        record = make_record(request, reply, teacher)
        for name in ("broken_off", "lost_prompt_tokens"):  # what earlier tries may have cost is not forgotten
            record[name] += (journal.get(request.key) or {name: 0})[name]
        journal.write(request.key, record)
        pace.add()

    if teacher["origin"] == "endpoint":
        asyncio.run(_ask_endpoint(journal, requests, teacher, settings, pace, on_result))
    else:
        from sftdiff.local_teacher import generate_locally  # brings torch

        generate_locally(requests, teacher, settings, on_result)


async def _ask_endpoint(
    journal: Journal,
    requests: Iterator[Request],
    teacher: Mapping[str, Any],
    settings: Mapping[str, Any],
    pace: Pace,
    on_result: Callable[[Request, Completion | RequestFailed], None],
) -> None:
    model, names = teacher["model"], ("concurrency", "timeout_s", "max_attempts", "max_cost")
    cost, lost = spending(journal, teacher)
    where = EndpointSettings(
        model["id"],
        model["base_url"],
        model["api_key_env"],
        prices_of(teacher),
        **{name: settings[name] for name in names},
        spent=(cost or 0.0) + (lost or 0.0),
    )
    async with Endpoint(where) as endpoint:
        try:
            await endpoint.run_all(requests, on_result, lambda r, most: journal.start(r.key, most), lambda r: journal.drop(r.key))
        except SpendingCap as cap:
            raise SftdiffError(f"{cap}: {pace.total - pace.done} of {pace.total} replies are left; go on with a "
                               "larger teacher.generation.max_cost=, what is done is kept") from None  # fmt: skip


def pending(prompts: Prompts, teacher: Mapping[str, Any], done: set[Key]) -> Iterator[Request]:
    """Yield the requests that are not done, one at a time."""
    model = teacher["model"]
    sampling = {name: model[name] for name in ("max_tokens", "temperature", "top_p", "top_k", "extra")}
    for prompt_id, messages in prompts:
        for sample in range(teacher["samples"]):
            if (prompt_id, sample) not in done:
                turns = with_system(messages, model["system"])
                yield Request((prompt_id, sample), turns, seed=seed_of(prompt_id, sample), **sampling)


def finished(journal: Journal) -> set[Key]:
    """Return the keys that need no further try."""
    return {key for key, record in records(journal) if not record["transient"]}


def records(journal: Journal) -> Iterator[tuple[Key, dict[str, Any]]]:
    return ((key, record) for key, record in journal.items() if key != MADE_WITH)


def estimate(prompts: Prompts, teacher: Mapping[str, Any], settings: Mapping[str, Any], done: set[Key]) -> Estimate:
    """Return how much is left besides the (prompt_id, sample) in `done`."""
    requests, characters = 0, 0
    for request in pending(prompts, teacher, done):
        requests, characters = requests + 1, characters + sum(len(m["content"]) for m in request.messages)
    tokens, most = -(-characters // CHARACTERS_PER_TOKEN), requests * teacher["model"]["max_tokens"]
    return Estimate(requests, tokens, most, prices_of(teacher).cost(tokens, most), settings["max_cost"])


def prices_of(teacher: Mapping[str, Any]) -> Prices:
    return Prices(teacher["model"]["price_in"], teacher["model"]["price_out"])


def spending(journal: Journal, teacher: Mapping[str, Any]) -> tuple[float | None, float | None]:
    """Return (dollars of recorded replies, the most that requests without an answer can have cost); None: unknown prices."""
    prices, most, cost, lost = prices_of(teacher), teacher["model"]["max_tokens"], 0.0, journal.lost_dollars
    if prices.cost(0, 0) is None:
        return None, None
    for _, record in records(journal):
        cost += prices.cost(record["prompt_tokens"], record["completion_tokens"]) or 0.0
        lost += prices.cost(record["lost_prompt_tokens"], most * record["broken_off"]) or 0.0
    return cost, lost


def read_generated(prompts: Prompts, teacher: Mapping[str, Any], folder: Path) -> Iterator[dict[str, Any]]:
    """Yield the records of a finished generation in the order of the prompts and samples.

    Raise SftdiffError if one is missing.
    """
    with Journal(folder / JOURNAL) as journal:
        for prompt_id, _ in prompts:
            for sample in range(teacher["samples"]):
                record = journal.get((prompt_id, sample))
                if record is None:
                    raise SftdiffError(f"{folder / JOURNAL} lacks sample {sample} of prompt {prompt_id}: generate again")
                yield record


def _check_teacher(journal: Journal, teacher: Mapping[str, Any]) -> None:
    """Raise SftdiffError if the journal was made with other settings that replies depend on."""
    content = {name: teacher["model"][name] for name in CONTENT} | {name: teacher[name] for name in ("reasoning", "cut")}
    if (known := journal.get(MADE_WITH)) is None:
        journal.write(MADE_WITH, content)
    elif known != json.loads(json.dumps(content)):
        changed = ", ".join(sorted(name for name in content if known.get(name) != content[name]))
        raise SftdiffError(f"{journal.path} was made with another {changed}: delete it, or generate into another folder")


def _summary(journal: Journal, teacher: Mapping[str, Any], seconds: float, made: int) -> GenerationSummary:
    summary, errors = GenerationSummary(paid_again=journal.lost, seconds=round(seconds, 2)), Counter[str]()
    for _, record in records(journal):
        summary.rows += 1
        errors.update([record["error"]] if record["error"] else [])
        summary.prompt_tokens += record["prompt_tokens"]
        summary.completion_tokens += record["completion_tokens"]
        summary.estimated += record["estimated"]
    summary.errors = dict(errors)
    summary.cost, summary.cost_lost = spending(journal, teacher)
    summary.per_second = round(made / max(seconds, 1e-9), 3)
    return summary
