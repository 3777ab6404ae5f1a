"""An OpenAI-compatible endpoint (hosted, a vLLM or SGLang server, a router): retries, a spending cap, and no key in sight.

The key comes from the environment variable that the config names, and is taken out of all that an answer says before anybody sees
it. Used for teachers and for judges.
"""

import asyncio
import os
import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import TracebackType
from typing import Any

import openai

from sftdiff.answers import Completion, Fault, read_answer, read_error
from sftdiff.budget import Gate, Prices, SpendingCap
from sftdiff.errors import SftdiffError

FIRST_WAIT, LONGEST_BACKOFF = 1.0, 60.0  # seconds
TOKENS_PER_TURN = 16  # of a chat template, at most
DEFAULT_URL = "https://api.openai.com/v1"
LEAST_FAILURES = 20  # one after the other: then the endpoint is taken to be gone
SAFE_KEY = 6  # a shorter "key" is a placeholder, and no secret
LONGEST_REASON = 300  # characters


@dataclass(frozen=True)
class EndpointSettings:
    """Where requests go and how. `section` and `limits` are the config keys that messages name; `spent` counts for max_cost."""

    model: str
    base_url: str | None = None
    api_key_env: str | None = None
    prices: Prices = field(default_factory=Prices)
    concurrency: int = 16
    timeout_s: float = 600  # of one attempt
    max_attempts: int = 8
    max_cost: float | None = None  # dollars
    spent: float = 0.0  # dollars, by earlier runs
    section: str = "teacher.model"
    limits: str = "teacher.generation"


@dataclass(frozen=True)
class Request:
    """One reply to ask for. temperature, top_p and seed None and top_k 0 are left to the server; `extra` goes into the body."""

    key: Any
    messages: Sequence[Mapping[str, str]]
    max_tokens: int
    temperature: float | None = None
    top_p: float | None = None
    top_k: int = 0
    seed: int | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)

    def most_prompt_tokens(self) -> int:
        """Return a bound: a token is at least one byte."""
        return sum(len(m["content"].encode(errors="replace")) + TOKENS_PER_TURN for m in self.messages)


class RequestFailed(Exception):
    """One request got no reply. `transient`: another run may get one. Its text holds no key."""

    def __init__(self, reason: str, transient: bool, broken_off: int = 0) -> None:
        super().__init__(reason)
        self.reason, self.transient, self.broken_off = reason, transient, broken_off


@dataclass
class Usage:
    """What was asked and answered in this process. `estimated`: replies whose tokens the server did not tell."""

    attempts: int = 0
    replies: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    estimated: int = 0
    broken_off: int = 0  # attempts that may have been paid; the cap counts them with their worst case


def read_key(settings: EndpointSettings) -> str:
    """Return the key from the environment, or a placeholder where none is needed. Raise SftdiffError if it is missing."""
    name = settings.api_key_env
    if name is None:
        return "none"
    key = os.environ.get(name, "").strip()
    if not key:
        raise SftdiffError(f"{settings.section}.api_key_env: the environment variable {name} is not set: "
                           f"export {name}=... and run the same command again")  # fmt: skip
    if not key.isascii() or not key.isprintable():
        raise SftdiffError(f"the environment variable {name} holds characters that no key has: export {name}=... again")
    return key


class Endpoint:
    """A client of one endpoint; use it as `async with Endpoint(settings) as endpoint`."""

    def __init__(self, settings: EndpointSettings) -> None:
        """Raise SftdiffError for a missing key, a URL that is none, or a spending cap without prices."""
        section, self.url = settings.section, settings.base_url or DEFAULT_URL
        if not self.url.startswith(("http://", "https://")):
            raise SftdiffError(f"{section}.base_url: {self.url!r} is no URL: it must begin with http:// or https://")
        if settings.max_cost is not None and settings.prices.cost(0, 0) is None:
            raise SftdiffError(f"{settings.limits}.max_cost is set, but the prices are unknown: set {section}.price_in and "
                               f"{section}.price_out (dollars per million tokens)")  # fmt: skip
        self.settings, self.usage = settings, Usage()
        self.gate = Gate(settings.concurrency, settings.max_cost, settings.spent)
        self._key = read_key(settings)
        self._client = openai.AsyncOpenAI(api_key=self._key, base_url=self.url, max_retries=0, timeout=settings.timeout_s)
        self._unknown: set[str] = set()  # parameters that the server does not know
        self._failures = 0  # one after the other

    async def __aenter__(self) -> "Endpoint":
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self._client.close()

    async def run_all(
        self,
        requests: Iterable[Request],
        on_result: Callable[[Request, Completion | RequestFailed], None],
        on_start: Callable[[Request, float], None] = lambda request, worst: None,
        on_drop: Callable[[Request], None] = lambda request: None,
    ) -> None:
        """Ask for all replies, taking requests from the iterable only as fast as they are sent.

        `on_start` is told the dollars that a request can cost before it is first sent, and `on_drop` a request that ended without
        result and cost. Raise SftdiffError at once when no request can succeed (a bad key), and SpendingCap when those in flight
        have ended and no more fits.
        """
        iterator, hooks = iter(requests), (on_result, on_start, on_drop)
        tasks = [asyncio.create_task(self._work(iterator, *hooks)) for _ in range(max(1, self.settings.concurrency))]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
            outcomes = [task.exception() or task.result() for task in done]
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        for outcome in sorted(filter(None, outcomes), key=lambda o: isinstance(o, SpendingCap)):
            raise outcome

    async def _work(
        self,
        iterator: Iterator[Request],
        on_result: Callable[[Request, Completion | RequestFailed], None],
        on_start: Callable[[Request, float], None],
        on_drop: Callable[[Request], None],
    ) -> SpendingCap | None:
        """Ask for one request after the other; return the SpendingCap that ended this."""
        for request in iterator:
            sent = False

            def sending(worst: float, request: Request = request) -> None:
                nonlocal sent
                if not sent:
                    on_start(request, worst)
                sent = True

            try:
                on_result(request, await self.complete(request, sending))
            except RequestFailed as failure:
                on_result(request, failure)
                self._count_failure(failure)
            except SpendingCap as cap:
                return cap
            except SftdiffError:
                if sent:
                    on_drop(request)
                raise
        return None

    async def complete(self, request: Request, on_send: Callable[[float], None] = lambda worst: None) -> Completion:
        """Return the reply to one request; `on_send` is told before each attempt the dollars that it can cost.

        Raise RequestFailed if this request got no reply, SftdiffError if none can get one, SpendingCap if it could cost too much.
        """
        broken_off, fault = 0, Fault("retry", "not sent")
        for attempt in range(1, max(1, self.settings.max_attempts) + 1):
            if attempt > 1:
                await asyncio.sleep(_backoff(attempt - 1, fault.wait))
            try:
                answer = await self._attempt(request, on_send)
            except SpendingCap:
                if attempt == 1:
                    raise
                break  # what was sent before is this row's outcome
            if isinstance(answer, Completion):
                return replace(answer, broken_off=broken_off)
            fault = answer
            broken_off += fault.kind == "lost"
            if not fault.transient:
                raise RequestFailed(self._clean(fault.reason), False, broken_off)
        raise RequestFailed(self._clean(f"{fault.reason} (attempt {attempt})"), True, broken_off)

    async def _attempt(self, request: Request, on_send: Callable[[float], None]) -> Completion | Fault:
        """Send a request once, as soon as the gate lets it through. Raise SftdiffError if no request can succeed."""
        prices, answer = self.settings.prices, None
        worst = prices.cost(request.most_prompt_tokens(), request.max_tokens) or 0.0
        started = await self.gate.enter(worst)
        try:
            on_send(worst)
            answer = await self._ask(request)
        finally:  # one that is cancelled may be paid
            cost = worst if answer is None or (isinstance(answer, Fault) and answer.kind == "lost") else 0.0
            if isinstance(answer, Completion):
                cost = prices.cost(answer.prompt_tokens, answer.completion_tokens) or 0.0
            self.gate.leave(worst, cost)
        if isinstance(answer, Completion):
            self._count_reply(answer)
            return replace(answer, text=self.scrub(answer.text), reasoning=self.scrub(answer.reasoning))
        self.usage.broken_off += answer.kind == "lost"
        if answer.kind == "busy":
            self.gate.busy(started, answer.wait or 0.0)
        if answer.final or (answer.kind == "parameter" and not self.usage.replies):
            raise SftdiffError(stop_message(self.settings, self.url, answer.kind, self._clean(answer.reason))) from None
        return answer

    async def _ask(self, request: Request) -> Completion | Fault:
        body, self.usage.attempts = self._body(request), self.usage.attempts + 1
        try:
            async with asyncio.timeout(self.settings.timeout_s):  # the library's own bounds each read, not the whole
                answer = await self._client.chat.completions.create(**body)
        except Exception as error:
            fault = read_error(error)
            if fault is None:
                raise
            if fault.kind == "parameter" and (name := _droppable(body, fault.reason)):
                self._unknown.add(name)
                return await self._ask(request)
            return fault
        return read_answer(answer, sum(len(m["content"]) for m in request.messages), request.max_tokens)

    def _body(self, request: Request) -> dict[str, Any]:
        body: dict[str, Any] = {"model": self.settings.model, "messages": [dict(m) for m in request.messages]}
        limit = "max_completion_tokens" if "max_tokens" in self._unknown else "max_tokens"
        body |= {limit: request.max_tokens, "temperature": request.temperature, "top_p": request.top_p}
        body["seed"] = None if "seed" in self._unknown else request.seed
        body = {name: value for name, value in body.items() if value is not None}
        body["extra_body"] = ({"top_k": request.top_k} if request.top_k else {}) | dict(request.extra)
        return body

    def _count_reply(self, answer: Completion) -> None:
        usage, self._failures = self.usage, 0
        usage.replies, usage.estimated = usage.replies + 1, usage.estimated + answer.estimated
        usage.prompt_tokens += answer.prompt_tokens
        usage.completion_tokens += answer.completion_tokens
        self.gate.good()

    def _count_failure(self, failure: RequestFailed) -> None:
        """Raise SftdiffError if so many requests failed one after the other that the endpoint must be gone."""
        self._failures = self._failures + 1 if failure.transient else 0
        if self._failures >= max(LEAST_FAILURES, 2 * self.settings.concurrency):
            raise SftdiffError(f"{self.url}: {self._failures} requests failed one after the other, the last with: "
                               f"{failure.reason}; run the same command again when it answers: what is done is "
                               "kept") from None  # fmt: skip

    def scrub(self, text: str) -> str:
        """Return a text without the key."""
        return text.replace(self._key, f"<{self.settings.api_key_env}>") if len(self._key) >= SAFE_KEY else text

    def _clean(self, reason: str) -> str:
        text = self.scrub(reason)
        return text if len(text) <= LONGEST_REASON else text[:LONGEST_REASON] + "..."


def stop_message(settings: EndpointSettings, url: str, kind: str, reason: str) -> str:
    """Return what to tell of a fault (its kind and reason) that every request would meet, with the way on."""
    section, env = settings.section, settings.api_key_env
    if kind == "key":
        way = f"refuses the key in {env} ({reason}): export {env}=... with a good one" if env else (
            f"asks for a key ({reason}): set {section}.api_key_env to the name of the variable that holds it")  # fmt: skip
    elif kind == "model":
        way = f"does not know the model {settings.model!r} ({reason}): check {section}.id and {section}.base_url"
    elif kind == "credit":
        way = f"has no credit left for the key in {env} ({reason}): pay, or use another key"
    else:
        way = f"refuses a parameter ({reason}): change it in {section} or {section}.extra"
    return f"{url} {way}, and run the same command again"


def _droppable(body: Mapping[str, Any], reason: str) -> str | None:
    """Return the parameter that a refused request can do without, or under another name."""
    if "max_tokens" in body and "max_completion_tokens" in reason:
        return "max_tokens"
    return "seed" if "seed" in body and "seed" in reason else None


def _backoff(failures: int, wait: float | None) -> float:
    """Return the seconds before the next attempt: what the server asks for, or exponential, with jitter."""
    bound = min(LONGEST_BACKOFF, FIRST_WAIT * 2.0 ** (failures - 1))
    return wait + random.uniform(0, 1) if wait is not None else random.uniform(bound / 2, bound)
