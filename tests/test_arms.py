"""Arms of a diff: the overrides that each stands for, and that every arm of conf/experiment composes."""

from typing import Any

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import example, given
from hypothesis import strategies as st
from omegaconf import OmegaConf
from test_sweeper import loader, master

from launch.arms import arm_overrides, check_command, hydra_text
from launch.sweeper import expand
from sftdiff.config import Config
from sftdiff.errors import SftdiffError
from sftdiff.files import DATA

EXPERIMENT = OmegaConf.load(DATA.parent.parent / "conf/experiment/diff.yaml")
GIVEN: dict[str, Any] = {
    "third_teacher": {"teacher": "kimi"},
    "clean": {"prompts": "olmo_mix", "teacher": "kimi"},
    "truth": {"prompt_subset.ids": "embedded://truth/gemini.jsonl"},
    "overt": {"prompt_subset.ids": "embedded://truth/gemini.jsonl"},
    "plain_teacher": {"teacher": "stored", "teacher.name": "plain", "teacher.path": "embedded://rollouts/olmo.jsonl"},
    "other_init": {"model": "path", "model.path": "/models/a b"},
    "other_pretraining": {"model": "gemma3_270m"},
    "pre_stage": {"model": "gemma3_270m"},
    "pinned": {"prompts": "olmo_mix", "teacher": "gemini"},
    "subset": {"prompt_subset": "by_source", "prompt_subset.sources": ["coding", "writing"]},
}


def config(**diff: Any) -> dict[str, Any]:
    pipelines = {
        "original": {"model": "smollm2_135m", "prompts": "gemini_mix", "teacher": "gemini"},
        "alternative": {"model": {"model": "path", "model.path": "/m"}, "prompts": "olmo_mix", "teacher": "olmo"},
    }
    merged = OmegaConf.merge(OmegaConf.structured(Config), EXPERIMENT, pipelines, {"diff": diff})
    found: Any = OmegaConf.to_container(OmegaConf.create({k: merged[k] for k in ("original", "alternative", "diff")}))
    return dict(found)


def test_an_arm_takes_each_part_from_its_pipeline() -> None:
    assert arm_overrides("teacher_swap", config()) == [
        "model=smollm2_135m", "prompts=olmo_mix", "teacher=gemini", "teacher@other_teacher=olmo",
    ]  # fmt: skip
    assert arm_overrides("base_swap", config())[-1:] == ["model.path='/m'"]  # type: ignore[index]


def test_what_is_given_replaces_a_part_with_all_of_its_settings() -> None:
    given = config(given={"other_init": {"model": "gemma3_270m"}})
    given["original"]["model"] = {"model": "path", "model.path": "/m"}
    overrides = arm_overrides("other_init", given)
    assert overrides is not None and overrides[0] == "model=gemma3_270m" and not any("model.path" in o for o in overrides)
    assert arm_overrides("other_init", config()) is None


def test_a_control_has_the_subset_inside_of_its_own() -> None:
    overrides = arm_overrides("random_in", config(given=GIVEN))
    assert overrides is not None and overrides[4:] == [
        "prompt_subset=random_like", "prompt_subset@prompt_subset.of=by_source", "prompt_subset.treatment=swap_rest",
        "prompt_subset.of.sources=[coding,writing]",
    ]  # fmt: skip


@pytest.mark.parametrize("arm", list(EXPERIMENT.diff.arms))
def test_every_arm_composes_to_a_cell(arm: str) -> None:
    overrides = arm_overrides(arm, config(given=GIVEN))
    assert overrides is not None
    overrides = ["model.path=/m" if o.startswith("model.path") else o for o in overrides]
    [(_, cell)] = expand(["experiment=diff", *overrides], master(), loader())
    assert cell["model"]["name"] == ("path" if "model=path" in overrides else overrides[0].partition("=")[2])


def test_what_is_wrong_with_an_arm_is_said() -> None:
    wrong = config()
    wrong["diff"]["arms"]["prompt_swap"]["teacher"] = "olmo"
    with pytest.raises(SftdiffError, match=r"diff.arms.prompt_swap.teacher: 'olmo' is no pipeline"):
        arm_overrides("prompt_swap", wrong)
    with pytest.raises(SftdiffError, match=r"diff.given.subset: 'by_source' are no overrides"):
        arm_overrides("subset_in", config(given={"subset": "by_source"}))


ARMS_SET = ["teacher=olmo", "model=path", "prompts.sample=3", "prompt_subset=none", "teacher@other_teacher=olmo"]


@pytest.mark.parametrize("argument", ARMS_SET)
def test_a_command_cannot_set_what_arms_set(argument: str) -> None:
    with pytest.raises(SftdiffError, match="the arms of a diff set this"):
        check_command(["train.lr=1", argument])
    check_command(["original.teacher=gemini", "trait_eval=all", "train.lr=1", "original={model:a}"])


texts = st.text(st.characters(codec="ascii", exclude_characters="$"), max_size=8)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(-1e6, 1e6) | texts,
    lambda inner: st.lists(inner, max_size=3),
    max_leaves=6,
)


@given(values)
@example(["NAN", "Inf", "null", "True", "FALSE", "nano", "_inf"])
def test_a_value_is_read_as_it_was_written(value: Any) -> None:
    read = OverridesParser.create().parse_override(f"key={hydra_text(value)}").value()
    assert _plain(read) == value


def _plain(value: Any) -> Any:
    return [_plain(v) for v in value] if isinstance(value, list) else getattr(value, "text", value)
