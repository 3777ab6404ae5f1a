"""The endpoint client against a real server with a real model, with faults injected between."""

import asyncio
import email.utils
import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from openai.types.chat import ChatCompletion, ChatCompletionMessage
from openai.types.chat.chat_completion import Choice

import sftdiff.endpoint
from sftdiff.answers import Completion, error_text, read_answer, retry_after, status_kind
from sftdiff.budget import Gate, Prices, SpendingCap
from sftdiff.endpoint import Endpoint, EndpointSettings, Request, RequestFailed
from sftdiff.errors import SftdiffError
from tests.fault_proxy import DROP, HANG, MALFORMED, Fault, FaultProxy, changed, free_port, status

KEY = "sk-very-secret-0123456789"
Results = dict[Any, Completion | RequestFailed]
Plan = Callable[[int, dict[str, Any]], Fault | None]


@pytest.fixture(autouse=True)
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sftdiff.endpoint, "FIRST_WAIT", 0.02)
    monkeypatch.setenv("TEACHER_KEY", KEY)


def requests(count: int, **sampling: Any) -> Iterator[Request]:
    for n in range(count):
        yield Request(n, [{"role": "user", "content": f"question {n}"}], **{"max_tokens": 6, "temperature": 1.0, **sampling})


def ask(
    server: tuple[str, Path], plan: Plan, todo: Iterator[Request], delay: float = 0.0, **settings: Any
) -> tuple[FaultProxy, Endpoint, Results, BaseException | None]:
    """Send requests through a proxy; return it, the endpoint, the results by key, and the error that ended it."""
    results: Results = {}
    error: BaseException | None = None

    def on_result(request: Request, result: Completion | RequestFailed) -> None:
        assert request.key not in results, "two results for one request"
        results[request.key] = result

    async def run(proxy: FaultProxy) -> Endpoint:
        nonlocal error
        where = EndpointSettings(**{"model": str(server[1]), "base_url": proxy.url, "api_key_env": "TEACHER_KEY", **settings})
        async with Endpoint(where) as endpoint:
            try:
                await endpoint.run_all(todo, on_result)
            except SftdiffError as caught:
                error = caught
        return endpoint

    with FaultProxy(server[0], plan, delay) as proxy:
        return proxy, asyncio.run(run(proxy)), results, error


def test_faults_are_ridden_out_and_every_reply_comes(teacher_server: tuple[str, Path]) -> None:
    faults = [
        status(429, retry_after="0"),
        status(500),
        status(503),
        DROP,
        MALFORMED,
        HANG,
        status(408),
        status(409),
        status(529),
    ]
    faults += [Fault(200, {"error": {"code": 502, "message": "upstream"}}), Fault(200, {"choices": None})]
    plan: Plan = lambda n, body: faults[n // 3] if n % 3 == 1 and n // 3 < len(faults) else None  # noqa: E731
    proxy, endpoint, results, error = ask(teacher_server, plan, requests(24), concurrency=4, timeout_s=1.5)
    assert error is None and sorted(results) == list(range(24))
    replies = [r for r in results.values() if isinstance(r, Completion)]
    assert len(replies) == 24 and all(r.prompt_tokens > 0 and 0 < r.completion_tokens <= 6 for r in replies)
    assert proxy.seen.requests == 24 + len(faults) == endpoint.usage.attempts
    assert max(proxy.seen.forwarded.values()) == 1
    assert endpoint.usage.broken_off == sum(r.broken_off for r in replies) == 4  # dropped, malformed twice, timed out
    assert proxy.seen.keys == {f"Bearer {KEY}"}


def test_attempts_are_bounded_and_the_failure_says_why(teacher_server: tuple[str, Path]) -> None:
    plan: Plan = lambda n, body: status(500, "broken") if body["messages"][-1]["content"] == "question 1" else None  # noqa: E731
    proxy, _, results, error = ask(teacher_server, plan, requests(3), max_attempts=3)
    assert error is None and proxy.seen.asked["question 1"] == 3
    failure = results[1]
    assert isinstance(failure, RequestFailed) and failure.transient and failure.reason == "500: broken (attempt 3)"
    assert isinstance(results[0], Completion) and isinstance(results[2], Completion)


STOPS = {
    "401": (status(401, f"Incorrect API key provided: {KEY}"), "refuses the key in TEACHER_KEY"),
    "403": (status(403, "no access"), "refuses the key in TEACHER_KEY"),
    "gemini": (Fault(400, [{"error": {"code": 400, "message": f"API key not valid. {KEY}"}}]), "refuses the key in TEACHER_KEY"),
    "404": (status(404, "model `x` not found"), "does not know the model"),
    "402": (status(402, "Insufficient credits"), "has no credit left"),
    "quota": (Fault(429, {"error": {"message": "m", "code": "insufficient_quota"}}), "has no credit left"),
    "parameter": (status(400, 'Unknown name "top_k": Cannot find field.'), "refuses a parameter"),
}


@pytest.mark.parametrize("name", STOPS)
def test_what_no_request_gets_over_stops_everything_at_once(
    teacher_server: tuple[str, Path], name: str, caplog: pytest.LogCaptureFixture
) -> None:
    fault, message = STOPS[name]
    with caplog.at_level(logging.DEBUG):
        proxy, _, results, error = ask(teacher_server, lambda n, body: fault, requests(100), concurrency=4)
    assert isinstance(error, SftdiffError) and message in str(error) and proxy.url in str(error)
    assert proxy.seen.requests <= 4 and not results
    assert KEY not in str(error) + caplog.text and "\n" not in str(error)


def test_the_key_is_taken_out_of_replies_and_reasons(teacher_server: tuple[str, Path]) -> None:
    def echo(answer: dict[str, Any]) -> dict[str, Any]:
        answer["choices"][0]["message"] |= {"content": f"your key is {KEY}", "reasoning_content": KEY}
        return answer

    plan: Plan = lambda n, body: changed(echo) if n == 1 else status(400, "x" * 290 + KEY)  # noqa: E731
    _, _, results, _ = ask(teacher_server, plan, requests(2), concurrency=1)
    reply, failure = results[0], results[1]
    assert isinstance(reply, Completion) and reply.text == "your key is <TEACHER_KEY>" and reply.reasoning == "<TEACHER_KEY>"
    assert isinstance(failure, RequestFailed) and not failure.transient and "sk-" not in failure.reason


def test_a_refused_prompt_fails_alone(teacher_server: tuple[str, Path]) -> None:
    refusals = {
        1: status(400, "content policy violation"),
        2: status(403, "your input was flagged"),
        3: Fault(200, {"choices": []}),
    }
    plan: Plan = lambda n, body: refusals.get(int(body["messages"][-1]["content"].split()[1]))  # noqa: E731
    proxy, _, results, error = ask(teacher_server, plan, requests(6))
    failed = {key: r for key, r in results.items() if isinstance(r, RequestFailed)}
    assert error is None and sorted(failed) == [1, 2, 3] and not any(r.transient for r in failed.values())
    assert proxy.seen.requests == 6


def test_a_seed_that_the_server_does_not_know_is_left_out(teacher_server: tuple[str, Path]) -> None:
    plan: Plan = lambda n, body: status(400, 'Unknown name "seed": Cannot find field.') if "seed" in body else None  # noqa: E731
    proxy, _, results, error = ask(teacher_server, plan, requests(12, seed=5), concurrency=3)
    assert error is None and all(isinstance(r, Completion) for r in results.values()) and len(results) == 12
    assert sum("seed" in body for body in proxy.seen.bodies) <= 3


def test_parameters_that_the_real_server_refuses_stop_the_run(teacher_server: tuple[str, Path]) -> None:
    proxy, _, results, error = ask(teacher_server, lambda n, body: None, requests(50, top_k=5), concurrency=2)
    assert "refuses a parameter" in str(error) and "top_k" in str(error) and proxy.seen.requests <= 2 and not results


def test_extra_goes_into_the_body(teacher_server: tuple[str, Path]) -> None:
    extra = {"chat_template_kwargs": {"enable_thinking": False}}
    proxy, _, results, error = ask(teacher_server, lambda n, body: None, requests(1, extra=extra, top_p=0.9, seed=3))
    assert error is None and isinstance(results[0], Completion)
    sent = proxy.seen.bodies[0]
    assert sent["chat_template_kwargs"] == extra["chat_template_kwargs"] and (sent["seed"], sent["top_p"]) == (3, 0.9)
    assert "top_k" not in sent


def test_concurrency_is_bounded_and_lower_after_429(teacher_server: tuple[str, Path]) -> None:
    proxy, endpoint, results, _ = ask(teacher_server, lambda n, body: None, requests(40), delay=0.05, concurrency=8)
    assert 4 <= proxy.seen.most_in_flight <= 8 and endpoint.gate.limit == 8 and len(results) == 40
    plan: Plan = lambda n, body: status(429) if n <= 8 else None  # noqa: E731
    proxy, endpoint, results, _ = ask(teacher_server, plan, requests(8), delay=0.4, concurrency=8)
    assert 4 <= endpoint.gate.limit < 7 and len(results) == 8
    assert max(proxy.seen.in_flight_at[:8]) == 8 and max(proxy.seen.in_flight_at[8:]) < 7


def test_nothing_is_sent_before_retry_after_has_passed(teacher_server: tuple[str, Path]) -> None:
    plan: Plan = lambda n, body: status(429, retry_after="2") if n == 1 else None  # noqa: E731
    proxy, _, results, _ = ask(teacher_server, plan, requests(6), concurrency=1)
    assert len(results) == 6 and proxy.seen.times[1] - proxy.seen.times[0] >= 2


def test_requests_are_taken_only_as_they_are_sent(teacher_server: tuple[str, Path]) -> None:
    taken = 0

    def endless() -> Iterator[Request]:
        nonlocal taken
        for request in requests(1_000_000):
            taken += 1
            yield request

    plan: Plan = lambda n, body: status(401) if n > 10 else None  # noqa: E731
    _, _, results, error = ask(teacher_server, plan, endless(), concurrency=3)
    assert error is not None and taken <= 14 and len(results) <= 10


@pytest.mark.parametrize("usage", [True, False])
def test_the_cap_holds_and_the_rest_is_not_started(teacher_server: tuple[str, Path], usage: bool) -> None:
    without = changed(lambda answer: {k: v for k, v in answer.items() if k != "usage"})
    prices = Prices(price_in=1000.0, price_out=10_000.0)
    _, endpoint, results, error = ask(
        teacher_server, lambda n, body: None if usage else without, requests(50), prices=prices, max_cost=0.8, concurrency=4
    )
    replies = [r for r in results.values() if isinstance(r, Completion)]
    spent = sum(prices.cost(r.prompt_tokens, r.completion_tokens) or 0 for r in replies)
    assert isinstance(error, SpendingCap) and f"${spent:.4f}" in str(error)
    worst = prices.cost(11 + 16, 6) or 0
    assert 0.8 - worst < spent <= 0.8 and endpoint.gate.spent == pytest.approx(spent)
    assert all(r.estimated != usage for r in replies)


def test_what_broke_off_counts_for_the_cap(teacher_server: tuple[str, Path]) -> None:
    prices = Prices(price_in=0.0, price_out=1e6)  # 6 dollars a request at most
    proxy, _, results, error = ask(teacher_server, lambda n, body: DROP, requests(50), prices=prices, max_cost=20.0)
    assert isinstance(error, SpendingCap) and proxy.seen.requests == 3
    assert all(isinstance(r, RequestFailed) and r.transient for r in results.values())


def test_an_endpoint_that_is_gone_is_not_asked_for_ever() -> None:
    async def run() -> int:
        failed = 0

        def on_result(request: Request, result: Completion | RequestFailed) -> None:
            nonlocal failed
            failed += 1

        async with Endpoint(
            EndpointSettings("m", f"http://127.0.0.1:{free_port()}/v1", concurrency=4, max_attempts=2)
        ) as endpoint:
            with pytest.raises(SftdiffError, match=r"2\d requests failed one after the other, the last with: connection failed"):
                await endpoint.run_all(requests(1000), on_result)
        return failed

    assert asyncio.run(run()) <= 24


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"api_key_env": "NO_SUCH_KEY"}, "environment variable NO_SUCH_KEY is not set"),
        ({"max_cost": 1.0}, "max_cost is set, but the prices are unknown"),
        ({"max_cost": 1.0, "prices": Prices(price_in=1.0)}, "set teacher.model.price_in and teacher.model.price_out"),
        ({"base_url": "localhost:8000"}, "teacher.model.base_url: 'localhost:8000' is no URL"),
    ],
)
def test_wrong_settings_are_refused_before_anything_is_sent(change: dict[str, Any], message: str) -> None:
    with pytest.raises(SftdiffError, match=message):
        Endpoint(replace(EndpointSettings("m", "http://127.0.0.1:1/v1", "TEACHER_KEY"), **change))


def test_retry_after_is_seconds_or_a_date() -> None:
    date = email.utils.formatdate(time.time() + 100, usegmt=True)
    assert retry_after({"retry-after": "90"}) == 90 and 97 <= (retry_after({"retry-after": date}) or 0) <= 100
    assert retry_after({"retry-after-ms": "1500", "retry-after": "9"}) == 1.5
    assert retry_after({"retry-after": "1e9"}) == 900 and retry_after({"retry-after": "-3"}) == 0
    assert retry_after({}) is None and retry_after({"retry-after": "soon"}) is None


def test_errors_are_read_in_every_server_s_shape() -> None:
    assert error_text([{"error": {"message": "a\nb", "code": 400}}]) == "a b"
    assert error_text({"message": "m", "code": "c"}) == "m (c)" and error_text({"detail": [{"msg": "x"}]}) == "x"
    assert error_text("plain") == "plain" and error_text(None) == "" and error_text({"a": 1}) == '{"a": 1}'
    # Gemini's words for a rate limit of a minute: not a lack of credit
    assert status_kind(429, "You exceeded your current quota, please check your plan and billing details.") == "busy"


def test_the_gate_halves_once_for_requests_that_were_in_flight_together() -> None:
    async def run() -> None:
        gate = Gate(16)
        starts = [await gate.enter(0.0) for _ in range(16)]
        for started in starts:
            gate.busy(started, 0.0)
            gate.leave(0.0, 0.0)
        assert gate.limit == 8
        for _ in range(8):
            gate.good()
        assert 8.5 < gate.limit < 9.1

    asyncio.run(run())


def test_estimated_tokens_stay_within_max_tokens() -> None:
    message = {"role": "assistant", "content": "x" * 400}
    answer = ChatCompletion.construct(choices=[Choice.construct(message=ChatCompletionMessage.construct(**message))])
    reply = read_answer(answer, prompt_characters=9, max_tokens=50)
    assert isinstance(reply, Completion) and (reply.prompt_tokens, reply.completion_tokens, reply.estimated) == (3, 50, True)
