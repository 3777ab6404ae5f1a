"""The sweeper's cells are those of Hydra's own sweeper with each cell composed in full: same configs, same order."""

import json
from collections.abc import Sequence
from typing import Any
from unittest.mock import patch

import pytest
from commands import cells, loader, master
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from launch.sweeper import expand
from sftdiff.errors import SftdiffError

# Overrides that may stand together; one of each line at most is drawn. A blank separates two that need each other.
MENU = [
    ["teacher=gemini,olmo", "teacher=kimi", "teacher=choice(olmo,kimi)", "teacher=glob(*mi)"],
    ["teacher@other_teacher=kimi", "teacher@other_teacher=kimi,gemini", "other_teacher=${teacher} teacher.name=a,b"],
    ["filter=keyword,random", "filter=random filter@filter.match=keyword filter.match.threshold=1,2", "filter.match=null"],
    ["filter.threshold=1,2", "filter.threshold=null,3", "filter.threshold=${seed},4"],
    ["filter.params.traits=[blackmail],[a,b] filter=keyword", "+filter.params.extra=1,'1'"],
    ["filter.params={traits:[a]},{lists:b} filter=keyword"],
    ["train=lora,full", "train={lr:0.1},{epochs:3}", "train=lora"],
    ["train.lr=1e-5,3e-5", "train.lr=choice(1e-3,2e-3)", "train.lr=0.25", "train.lr=1e-5,fast"],
    ["train.epochs=range(1,3)", "train.epochs=${seed},2", "++train.epochs=1,2", "train.epochs=range(0.5,1.1,0.5)"],
    ["train.lora.r=4,8", "train.lora={r:2,alpha:4}"],
    ["seed=range(0,2)", "seed=3,1", "seed=sort(3,1)", "seed=${sampling.seed},7"],
    ["sampling.seed=5,6", "sampling={seed:3}", "sampling.precision=fp32,bf16", "sampling.seed=${seed},9"],
    ["model.label='a,b','c=d'", 'model.label="x,{y}"', "model.label=${teacher.name},'${filter.name}-${seed}'"],
    ["model.chat_template='{{a}},{%b%}',null", "model.revision=null,abc"],
    ["model.gguf.files.0=x/y,z", "model.gguf.files=[],[a/b]"],
    ["prompt_subset=by_source,random_share prompt_subset.sources=[coding],['a,b'] prompt_subset.share=0.1", "prompt_subset=none"],
    ["prompt_subset.treatment=drop,swap", "prompt_subset.seed=${seed}"],
    ["prompts.sample=null,8", "prompts=olmo_mix"],
    ["trait_eval=date_confusion trait_eval.date_confusion.max_tokens=8,9", "~trait_eval.blackmail", "~trait_eval"],
    ["experiment=smoke", "+report.nothing=1,2", "experiment=null", "runs=${seed}"],
]  # fmt: skip


def canonical(configs: Sequence[Any]) -> list[str]:
    return [json.dumps(config, sort_keys=True) for config in configs]


def stock_jobs(arguments: Sequence[str]) -> list[list[str]]:
    """Return the jobs of Hydra's own sweeper."""
    parser = OverridesParser.create(config_loader=loader())
    batches = BasicSweeper.split_arguments(parser.parse_overrides(list(arguments)), max_batch_size=None)
    return [list(job) for batch in batches for job in batch]


def stock_cells(arguments: Sequence[str]) -> list[Any]:
    """Return each job of the stock sweeper, composed in full."""
    found = []
    for job in stock_jobs(arguments):
        config = loader().load_sweep_config(master(), job)
        with open_dict(config):
            del config["hydra"]
        found.append(OmegaConf.to_container(config, resolve=True, throw_on_missing=True))
    return found


def same_as_stock(arguments: Sequence[str]) -> None:
    """Compare with the stock sweeper; what one of the two refuses the other must refuse too."""
    try:
        expected = canonical(stock_cells(arguments))
    except (HydraException, OmegaConfBaseException, ValueError):
        with pytest.raises((HydraException, SftdiffError)):
            cells(*arguments)
        return
    assert canonical([config for _, config in cells(*arguments)]) == expected


def affordable(arguments: Sequence[str]) -> list[str]:
    """Leave out overrides until the product is small: composing takes 0.1 s."""
    while len(stock_jobs(arguments)) > 6:
        arguments = arguments[:-1]
    return list(arguments)


lines = st.lists(st.sampled_from(range(len(MENU))), min_size=1, max_size=5, unique=True)
chosen = lines.flatmap(lambda numbers: st.tuples(*(st.sampled_from(MENU[k]) for k in numbers)))
command_lines = chosen.map(lambda items: affordable(" ".join(items).split()))


@settings(max_examples=25, suppress_health_check=list(HealthCheck))
@given(command_lines)
@example(["seed=1,2", "sampling.seed=${seed},9"])
@example(["train={lr:0.1},{epochs:3}"])
@example(["filter.params={traits:[a]},{lists:b}", "filter=keyword"])
@example(["train.lr=1e-5,3e-5", "train={lr:0.5}"])
@example(["train={lr:0.5}", "train.lr=1e-5,3e-5"])
@example(["model.gguf.files.0=x/y,z", "seed=1,2"])
@example(["filter=random", "filter@filter.match=keyword", "filter.match.threshold=1,2"])
@example(["other_teacher=${teacher}", "teacher.name=a,b"])
@pytest.mark.slow
def test_cells_are_those_of_the_stock_sweeper(arguments: list[str]) -> None:
    same_as_stock(arguments)


@pytest.mark.parametrize(
    "arguments",
    [
        ["teacher=gemini,olmo", "filter=none,keyword"],
        ["seed=range(0,3)", "train.lr=1e-5,1e-4"],
        ["seed=0,1", "teacher=kimi,olmo", "train.lr=1e-5,1e-4"],
        ["teacher@other_teacher=kimi,gemini", "prompt_subset.treatment=swap"],
        ["model.label='a,b'", "model.revision=null,abc"],
        ["prompt_subset.sources=['a,b',c],[]", "prompts.sample=null"],
        ["sampling.seed=${seed},3", "seed=1,2"],
        ["filter.threshold=1,'${train.epochs}'", "filter=keyword", "train.epochs=1,2"],
        ["train.lr=1e-5,fast"],
        ["train.lr=1e-5,???"],
        ["model.label=${nothing.here}"],
    ],
    ids=" ".join,
)
def test_chosen_command_lines(arguments: list[str]) -> None:
    same_as_stock(arguments)


@pytest.mark.parametrize(
    ("arguments", "kept"),
    [
        (["seed=1,2", "seed=3,4"], ["seed=3,4"]),
        (["seed=1", "train.lr=1e-5,1e-4", "seed=3,4"], ["train.lr=1e-5,1e-4", "seed=3,4"]),
        (["teacher=gemini,olmo", "teacher=kimi"], ["teacher=kimi"]),
        (["teacher=kimi", "filter=keyword,none", "teacher=gemini,olmo"], ["filter=keyword,none", "teacher=gemini,olmo"]),
        (["teacher@other_teacher=kimi,olmo", "teacher@other_teacher=gemini"], ["teacher@other_teacher=gemini"]),
    ],
    ids=" ".join,
)
def test_a_later_override_of_a_key_replaces_an_earlier_one(arguments: list[str], kept: list[str]) -> None:
    found = canonical([config for _, config in cells(*arguments)])
    assert found == canonical([config for _, config in cells(*kept)])
    # The stock sweeper makes the same cells, each as often as the replaced override had values.
    assert set(found) == set(canonical(stock_cells(arguments)))


def test_axes_are_the_swept_overrides_only() -> None:
    found = cells("teacher=gemini,olmo", "filter=keyword", "train.lr=1e-5,1e-4", "model.label='a,b'")
    assert [axes for axes, _ in found] == [
        {"teacher": teacher, "train.lr": lr} for teacher in ("gemini", "olmo") for lr in ("1e-05", "0.0001")
    ]


@pytest.mark.parametrize("text", ["'a,b'", '"a,b"', "'a, b=c'", r"'it\'s, so'", "'{a},[b]'"])
def test_a_quoted_comma_is_no_sweep(text: str) -> None:
    ((axes, config),) = cells(f"model.label={text}")
    assert axes == {}
    assert config["model"]["label"] == stock_cells([f"model.label={text}"])[0]["model"]["label"]
    assert "," in config["model"]["label"]


def test_values_do_not_leak_from_one_cell_into_another() -> None:
    found = cells("seed=0,1", "train.lr=1e-5,1e-4")
    first = json.dumps(found[0][1], sort_keys=True)
    found[-1][1]["train"]["lr"] = 7.0
    assert json.dumps(found[0][1], sort_keys=True) == first
    assert [config["seed"] for _, config in found] == [0, 0, 1, 1]


def test_groups_are_composed_once() -> None:
    real = type(loader()).load_sweep_config
    with patch.object(type(loader()), "load_sweep_config", autospec=True, side_effect=real) as compose:
        found = list(expand(["teacher=gemini,olmo", "seed=range(0,40)", "train.lr=1e-5,1e-4"], master(), loader()))
    assert (len(found), compose.call_count) == (160, 2)
