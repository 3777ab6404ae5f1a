"""The traits as Inspect tasks: scenarios as samples and a solver that plays the user's turns."""

import hashlib
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from inspect_ai import Task
from inspect_ai.dataset import MemoryDataset, Sample
from inspect_ai.model import ChatMessage, ChatMessageSystem, ChatMessageUser, GenerateConfig, ModelOutput, get_model
from inspect_ai.solver import Generate, Solver, TaskState, solver

from sftdiff.journal import Journal
from sftdiff.traits import Scenario, Trait


def trait_task(
    trait: Trait,
    samples: int,
    config: GenerateConfig,
    seed_key: str,
    journal: Journal,
    on_reply: Callable[[], None],
    asking: Callable[[], AbstractContextManager[None]] = nullcontext,
) -> Task:
    """Return an Inspect task of a trait with its controls, without a scorer: sampling and judging are separate steps."""
    return Task(
        name=trait.name,
        dataset=MemoryDataset([_sample(s) for s in (*trait.scenarios, *trait.controls)], name=f"{trait.name}-{trait.suite}"),
        solver=play_turns(seed_key, journal, on_reply, asking),
        epochs=samples,
        config=config,
    )


def _sample(scenario: Scenario) -> Sample:
    messages: list[ChatMessage] = [ChatMessageSystem(content=scenario.system)] if scenario.system else []
    messages.append(ChatMessageUser(content=scenario.turns[0]))
    metadata = {"turns": list(scenario.turns[1:]), "kind": scenario.kind, "control": scenario.control}
    return Sample(id=scenario.id, input=messages, metadata=metadata)


@solver
def play_turns(
    seed_key: str, journal: Journal, on_reply: Callable[[], None], asking: Callable[[], AbstractContextManager[None]]
) -> Solver:
    """Answer the first turn, then each further user turn of the scenario.

    Each reply has a seed of its own that comes from (key, scenario, sample, turn), so that it does not depend on arrival order.
    It is in the journal as soon as it is there; one that is in the journal already is not made again.
    `asking` stands around each request.
    """

    async def solve(state: TaskState, generate: Generate) -> TaskState:
        for turn, text in enumerate([None, *state.metadata["turns"]]):
            if text is not None:
                state.messages.append(ChatMessageUser(content=text))
            key = (str(state.sample_id), state.epoch, turn)
            if (known := journal.get(key)) is not None:
                state.output = ModelOutput.model_validate(known)
            else:
                seed = _seed(seed_key, state.sample_id, state.epoch, turn)
                with asking():
                    state.output = await get_model().generate(state.messages, config=GenerateConfig(seed=seed))
                if state.output.error or not state.output.choices:
                    raise RuntimeError(state.output.error or "the answer has no reply in it")
                journal.write(key, state.output.model_dump(mode="json", exclude_none=True))
                on_reply()
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
