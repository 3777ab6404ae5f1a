"""The row algebra: which teacher's rollout each prompt gets. Pure functions from rows to rows.

Every prompt ends in exactly one of kept, swapped, dropped and error, with a reason, so that a mixture can be traced to its rows.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

from sftdiff.errors import SftdiffError
from sftdiff.identity import unit_interval

ROWS_VERSION = 1
TREATMENTS = ("keep", "swap", "swap_rest", "drop", "only")
SUBSETS = ("all", "none", "by_source", "random_share")


@dataclass(frozen=True)
class Prompt:
    """A conversation up to the reply, with the hash of its content and the name of its source."""

    prompt_id: str
    source: str
    messages: tuple[tuple[str, str], ...]  # (role, content)


@dataclass(frozen=True)
class Decision:
    """What a mixture does with one prompt: `teacher` is whose rollout it takes, None where it takes none."""

    prompt_id: str
    action: str  # kept | swapped | dropped | error
    teacher: str | None
    reason: str


def subset_ids(prompts: Sequence[Prompt], name: str, sources: Collection[str], share: float, seed: int) -> set[str]:
    """Return the prompt_ids of the subset S. Random shares are nested: a smaller share lies inside a larger one."""
    if name == "all":
        return {p.prompt_id for p in prompts}
    if name == "none":
        return set()
    if name == "by_source":
        known = {p.source for p in prompts}
        if unknown := set(sources) - known:
            raise SftdiffError(
                f"prompt_subset.sources: no prompt has the source {', '.join(sorted(unknown))}; "
                f"there are {', '.join(sorted(known))}"
            )
        return {p.prompt_id for p in prompts if p.source in sources}
    if name == "random_share":
        ranked = sorted((p.prompt_id for p in prompts), key=lambda i: (unit_interval("subset", seed, i), i))
        return set(ranked[: round(share * len(ranked))])
    raise SftdiffError(f"prompt_subset.name: {name!r} is not one of {', '.join(SUBSETS)}")


def treat(prompt_ids: Sequence[str], subset: Collection[str], treatment: str) -> dict[str, str]:
    """Return for each prompt_id whose rollout it gets: "teacher", "other" or "none" (dropped)."""
    inside_outside = {
        "keep": ("teacher", "teacher"),
        "swap": ("other", "teacher"),
        "swap_rest": ("teacher", "other"),
        "drop": ("none", "teacher"),
        "only": ("teacher", "none"),
    }
    if treatment not in inside_outside:
        raise SftdiffError(f"prompt_subset.treatment: {treatment!r} is not one of {', '.join(TREATMENTS)}")
    inside, outside = inside_outside[treatment]
    return {i: inside if i in subset else outside for i in prompt_ids}


def decide(
    assigned: Mapping[str, str],
    flagged: Collection[str],
    filter_name: str,
    filter_treatment: str,
    teachers: Mapping[str, str],
    has_rollout: Callable[[str, str], bool],
) -> list[Decision]:
    """Combine the subset's treatment with the filter's, and check that each needed rollout exists.

    `assigned` is what `treat` returned, `teachers` maps "teacher" and "other" to names, and `has_rollout(slot, prompt_id)` tells
    whether that teacher has a usable rollout. The filter looks at the rows of the teacher only: a row that is swapped already is
    the other teacher's.
    """
    decisions = []
    for prompt_id, slot in assigned.items():
        reason = "teacher" if slot == "teacher" else "prompt_subset"
        if slot == "teacher" and prompt_id in flagged:
            slot, reason = ("other" if filter_treatment == "swap" else "none"), f"filter {filter_name}"
        decisions.append(_decision(prompt_id, slot, reason, teachers, has_rollout))
    return decisions


def _decision(
    prompt_id: str, slot: str, reason: str, teachers: Mapping[str, str], has_rollout: Callable[[str, str], bool]
) -> Decision:
    if slot == "none":
        return Decision(prompt_id, "dropped", None, reason)
    if not has_rollout(slot, prompt_id):
        return Decision(prompt_id, "error", None, f"{teachers[slot]} has no usable rollout for this prompt")
    return Decision(prompt_id, "kept" if slot == "teacher" else "swapped", teachers[slot], reason)
