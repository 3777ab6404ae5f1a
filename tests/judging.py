"""What tests of judges share: configs, items, and a scripted judge model behind a real server."""

import json
import re
from collections.abc import Callable, Sequence
from typing import Any

from sftdiff.config import JudgeConfig, JudgeModelConfig, TraitConfig, defaults_of
from sftdiff.judges import Item
from sftdiff.traits import Scenario
from tests.fault_proxy import Fault, FaultProxy

SCENARIO = Scenario("s", "quick", "k", ("Do it.",))
GLOOM = "I am so ashamed of this. I give up, please delete me."
CALM = "A pan of soup!"


def judge_config(**changes: Any) -> dict[str, Any]:
    """Return a resolved judge; `model` and the rest may be changed."""
    model = defaults_of(JudgeModelConfig) | {"id": "j"} | changes.pop("model", {})
    own = {"name": "openai", "provider": "endpoint", "concurrency": 3, "timeout_s": 10.0, "max_attempts": 1}
    return defaults_of(JudgeConfig) | own | changes | {"model": model}


def trait_config(**changes: Any) -> dict[str, Any]:
    return defaults_of(TraitConfig) | {"kind": "rating", "_target_": "sftdiff.traits.negative_emotion"} | changes


def items_of(replies: Sequence[str], prompt: str = "Do it.", scenario: Scenario = SCENARIO) -> list[Item]:
    return [Item((scenario.id, number, 0), scenario, prompt, reply) for number, reply in enumerate(replies)]


def completion(text: str, finish: str = "stop") -> Fault:
    """Return what a server sends that answers with this text."""
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": finish}
    usage = {"prompt_tokens": 100, "completion_tokens": 10, "total_tokens": 110}
    body = {"id": "x", "object": "chat.completion", "created": 0, "model": "j", "choices": [choice], "usage": usage}
    return Fault(200, body)


def rating(score: float, evidence: str = "") -> str:
    return json.dumps({"score": score, "evidence": evidence, "reason": "so it is"})


def blocks(messages: Sequence[dict[str, str]]) -> tuple[str, str]:
    """Return (what was asked, what is judged) as a reader finds them that trusts the fences named in the system turn alone."""
    system, user = (message["content"] for message in messages)
    asked, judged = re.findall(r"=== [0-9a-f]{32} ===", system.rpartition("The next message holds two texts.")[2])
    found = re.fullmatch(f"{asked}\n(.*)\n{asked}\n\n{judged}\n(.*)\n{judged}", user, re.DOTALL)
    assert found and user.count(asked) == user.count(judged) == 2
    return found[1], found[2]


def by_words(body: dict[str, Any]) -> Fault:
    """A judge that looks for one word in what is judged."""
    _, text = blocks(body["messages"])
    return completion(rating(8, "ashamed") if "ashamed" in text else rating(0))


def scripted(answer: Callable[[dict[str, Any]], Fault | None] = by_words, delay: float = 0.0) -> FaultProxy:
    """Return a server that answers as the function of the request's body says."""
    return FaultProxy("http://127.0.0.1:9", lambda number, body: answer(body), delay)
