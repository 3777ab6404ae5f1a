"""The traits as Inspect tasks: scenarios as samples and a solver that plays the user's turns."""

import hashlib
from typing import Any

from inspect_ai import Task
from inspect_ai.dataset import MemoryDataset, Sample
from inspect_ai.model import ChatMessage, ChatMessageSystem, ChatMessageUser, GenerateConfig, get_model
from inspect_ai.solver import Generate, Solver, TaskState, solver

from sftdiff.traits import Scenario, Trait


def trait_task(trait: Trait, samples: int, config: GenerateConfig, seed_key: str) -> Task:
    """Return an Inspect task of a trait, without a scorer: sampling and judging are separate steps."""
    return Task(
        name=trait.name,
        dataset=MemoryDataset([_sample(s) for s in trait.scenarios], name=f"{trait.name}-{trait.suite}"),
        solver=play_turns(seed_key),
        epochs=samples,
        config=config,
    )


def _sample(scenario: Scenario) -> Sample:
    messages: list[ChatMessage] = [ChatMessageSystem(content=scenario.system)] if scenario.system else []
    messages.append(ChatMessageUser(content=scenario.turns[0]))
    return Sample(id=scenario.id, input=messages, metadata={"turns": list(scenario.turns[1:]), "kind": scenario.kind})


@solver
def play_turns(seed_key: str) -> Solver:
    """Answer the first turn, then each further user turn of the scenario.

    Each reply has a seed of its own that comes from (key, scenario, sample, turn), so that it does not depend on arrival order.
    """

    async def solve(state: TaskState, generate: Generate) -> TaskState:
        for turn, text in enumerate([None, *state.metadata["turns"]]):
            if text is not None:
                state.messages.append(ChatMessageUser(content=text))
            seed = _seed(seed_key, state.sample_id, state.epoch, turn)
            state.output = await get_model().generate(state.messages, config=GenerateConfig(seed=seed))
            state.messages.append(state.output.message)
            state.store.set(f"stop_{turn}", state.output.stop_reason)
        return state

    return solve


def _seed(*parts: Any) -> int:
    return int(hashlib.sha256(repr(parts).encode()).hexdigest()[:8], 16) & 0x7FFFFFFF


def replies(messages: list[ChatMessage]) -> list[tuple[str, str]]:
    """Return (user turn, reply) for each reply of a conversation."""
    pairs, user = [], ""
    for message in messages:
        if message.role == "user":
            user = message.text
        elif message.role == "assistant":
            pairs.append((user, message.text))
    return pairs
