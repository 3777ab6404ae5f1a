"""The config tree: every file composes, and what a user may get wrong ends in one clear message before anything runs."""

import dataclasses
import re
import typing
from pathlib import Path
from typing import Any

import pytest
import yaml
from commands import ROOT, cells, refusal, run_train

from launch.validate import check_cell
from sftdiff import config as schema

CONF = ROOT / "conf"
FILES = sorted(str(p.relative_to(CONF).with_suffix("")) for p in CONF.rglob("*.yaml"))
# The values that a file leaves to the user.
NEEDS = {
    "model/path": ["model.path=/a/folder"],
    "model/hub": ["model.id=who/what"],
    "model/api": ["model.id=openai/what"],
    "model/step": ["model.id=train-x"],
    "prompts/file": ["prompts.path=prompts.jsonl"],
    "teacher/stored": ["teacher.path=rollouts.jsonl"],
    "prompt_subset/random_share": ["prompt_subset.share=0.1", "prompt_subset.treatment=drop"],
    "prompt_subset/by_source": ["prompt_subset.sources=[coding]", "prompt_subset.treatment=swap"],
    "prompt_subset/cluster": ["prompt_subset.clusters=[1]", "prompt_subset.treatment=drop"],
    "prompt_subset/complement": ["prompt_subset@prompt_subset.of=all", "prompt_subset.treatment=drop"],
    "prompt_subset/ids": ["prompt_subset.ids=ids.txt", "prompt_subset.treatment=drop"],
    "prompt_subset/intersection": ["prompt_subset@prompt_subset.sets.a=all", "prompt_subset.treatment=drop"],
    "prompt_subset/locator": ["prompt_subset.top=0.1", "prompt_subset.treatment=drop"],
    "prompt_subset/random_like": ["prompt_subset@prompt_subset.of=all", "prompt_subset.treatment=drop"],
    "prompt_subset/regex": ["prompt_subset.pattern=x", "prompt_subset.treatment=drop"],
    "prompt_subset/union": ["prompt_subset@prompt_subset.sets.a=all", "prompt_subset.treatment=drop"],
    "filter/judge": ["filter.params.model.id=who"],
    "judge/openai": ["judge.model.id=who"],
    "judge/local": ["judge.model.id=who/what", "judge.model.revision=0123abc"],
    "judge/anthropic": ["judge.model.id=anthropic/who"],
    "judge/google": ["judge.model.id=google/who"],
    "filter/chain": ["filter@filter.chain.first=keyword"],
    "prompts/hub": ["prompts.id=who/what"],
}
DROP = ["prompt_subset.treatment=drop"]
RANDOM = ["prompt_subset=random_share", *DROP]
LOCATOR = ["prompt_subset=locator", *DROP]
INSIDE = ["prompt_subset=complement", "prompt_subset@prompt_subset.of=random_share", *DROP]
CHAIN = ["filter=chain", "filter@filter.chain.a=keyword"]
# (command line, what its message says)
REFUSED: list[tuple[list[str], list[str]]] = [
    (["teacher=foo"], ["'teacher/foo'", "gemini", "kimi", "olmo", "stored"]),
    (["model=gpt2"], ["'model/gpt2'", "smollm2_135m", "path", "hub"]),
    (["experiment=foo"], ["'experiment/foo'", "smoke"]),
    (["teacher=gemini,foo"], ["'teacher/foo'", "gemini"]),
    (["teacher=/data/r.jsonl"], ["teacher=stored teacher.name=NAME teacher.path=/data/r.jsonl"]),
    (["teacher@other_teacher=r.parquet"], ["teacher@other_teacher=stored", "other_teacher.path=r.parquet"]),
    (["model=Qwen/Qwen3-4B"], ["model=hub model.id=Qwen/Qwen3-4B"]),
    (["prompts=my.jsonl"], ["prompts=file prompts.path=my.jsonl"]),
    (["trait_eval=new.yaml"], ["trait_eval.NAME.scenarios=new.yaml"]),
    (["teachr=gemini"], ["teachr"]),
    (["train.lrr=3"], ["train.lrr"]),
    (["train.lr=fast"], ["train.lr=fast", "Float"]),
    (["train.lr=1e-5,fast"], ["train.lr=fast", "Float"]),
    (["seed=a"], ["seed=a", "Integer"]),
    (["train.packing=3.5"], ["train.packing=3.5", "bool"]),
    (["prompt_subset=random_share", "prompt_subset.treatment=drop"], ["prompt_subset.share is needed"]),
    (["prompt_subset=by_source"], ["missing: prompt_subset.treatment"]),
    (["teacher=stored"], ["set either teacher.path", "teacher.id"]),
    (["prompts=file"], ["set either prompts.path", "prompts.id"]),
    (["train.lr=1e-5,???"], ["train.lr"]),
    (["model=path"], ["model.path is needed"]),
    (["model=path", "model.path=null"], ["model.label", "${.path}"]),
    (["model=hub"], ["model.id is needed"]),
    (["model=path", "model.path=/no/such/folder"], ["model.path", "/no/such/folder"]),
    (["prompts=file", "prompts.path=/no/such.jsonl"], ["there is no file /no/such.jsonl"]),
    (["trait_eval.blackmail.scenarios=embedded://nothing.yaml"], ["nothing.yaml"]),
    (["prompt_subset.treatment=foo"], ["prompt_subset.treatment: 'foo'", "keep, swap, swap_rest, drop, only"]),
    (["prompt_subset.name=foo"], ["prompt_subset.name: 'foo'", "by_source"]),
    ([*RANDOM, "prompt_subset.share=1.5"], ["prompt_subset.share: 1.5", "between 0 and 1"]),
    ([*DROP, "prompt_subset=by_source"], ["prompt_subset.sources is needed", "prompt_subset.sources=..."]),
    ([*DROP, "prompt_subset=union"], ["prompt_subset.sets is needed", "prompt_subset@prompt_subset.sets.NAME=NAME"]),
    ([*DROP, "prompt_subset=complement"], ["prompt_subset.of is needed", "prompt_subset@prompt_subset.of=NAME"]),
    ([*DROP, "prompt_subset=complement", "prompt_subset.of=3"], ["prompt_subset.of must be a subset"]),
    ([*DROP, "prompt_subset=cluster"], ["prompt_subset.clusters is needed"]),
    ([*DROP, "prompt_subset=regex"], ["prompt_subset.pattern is needed"]),
    ([*DROP, "prompt_subset=ids"], ["prompt_subset.ids is needed"]),
    ([*DROP, "prompt_subset=ids", "prompt_subset.ids=/no/such.txt"], ["there is no file /no/such.txt"]),
    ([*LOCATOR], ["set prompt_subset.threshold, or prompt_subset.top"]),
    ([*LOCATOR, "prompt_subset.top=2.5"], ["prompt_subset.top: 2.5 is neither a share below 1 nor"]),
    ([*LOCATOR, "prompt_subset.top=nan"], ["prompt_subset.top: nan is neither"]),
    ([*LOCATOR, "prompt_subset.top=inf"], ["prompt_subset.top: inf is neither"]),
    ([*LOCATOR, "prompt_subset.top=1", "filter@prompt_subset.locator=none"], ["locator must be a filter with scores"]),
    ([*INSIDE], ["prompt_subset.of.share is needed", "prompt_subset.of.share=..."]),
    ([*INSIDE, "prompt_subset.of.share=0.1,2"], ["prompt_subset.of.share: 2 must lie between 0 and 1"]),
    ([*INSIDE, "prompt_subset.of.share=x"], ["prompt_subset.of.share: 'x' is not of the type float"]),
    ([*INSIDE, "prompt_subset.of.share=true"], ["prompt_subset.of.share: True is not of the type float"]),
    ([*INSIDE, "prompt_subset.of.shar=0.1"], ["prompt_subset.of.shar: there is no such setting"]),
    ([*INSIDE, "prompt_subset.of.sources=[1]"], ["prompt_subset.of.sources: [1] is not of the type list[str]"]),
    (["prompt_subset.match=weight"], ["prompt_subset.match: 'weight'", "size, source, length"]),
    (["filter=chain"], ["filter=chain needs its filters", "filter@filter.chain.first=keyword"]),
    ([*CHAIN, "filter.chain.a.treatment=keep"], ["filter.chain.a.treatment: 'keep'", "drop, swap"]),
    ([*CHAIN, "filter.chain.a.threshold=null"], ["set filter.chain.a.threshold, or filter.chain.a.top"]),
    ([*CHAIN, "filter.chain.a.threshold=x"], ["filter.chain.a.threshold: 'x' is not of the type float"]),
    ([*CHAIN, "filter.chain.a._target_=os.system"], ["os.system", "@filter_function"]),
    (["filter=keyword", "filter.top=3"], ["set filter.threshold, or filter.top", "the other one to null"]),
    (["filter=keyword", "filter.top=1.5", "filter.threshold=null"], ["filter.top: 1.5 is neither"]),
    (["filter=loss_difference"], ["filter=loss_difference needs filter.reference=student"]),
    (["filter=random", "filter.match_by=size"], ["filter.match_by: 'size'", "count, source, length"]),
    (["prompts.id=a/b"], ["set either prompts.path", "prompts.id"]),
    (["prompts.path=null"], ["set either prompts.path", "prompts.id"]),
    (["prompts=hub", "prompts.id=a/b"], ["prompts.id=a/b: cannot look up its commit", "prompts.revision=COMMIT"]),
    (["prompts.sample=0"], ["prompts.sample: 0", "greater than 0"]),
    (["prompts.duplicates=drop"], ["prompts.duplicates: 'drop'", "merge, fail"]),
    (["prompts.unusable=drop"], ["prompts.unusable: 'drop'", "fail, leave_out"]),
    (["teacher.origin=hub"], ["teacher.origin: 'hub'", "auto, stored, endpoint, transformers, vllm"]),
    (["teacher@other_teacher=kimi", "other_teacher.reasoning=drop"], ["other_teacher.reasoning: 'drop'", "strip, keep"]),
    (["teacher=stored", "teacher.path=a", "teacher.id=b/c"], ["set either teacher.path", "teacher.id"]),
    (["suite=fool"], ["trait_eval.", "suite: there is no suite 'fool' (suite=dev|quick|full)"]),
    (["teacher.sample=1"], ["teacher.sample: 1 is not one of the 1 samples"]),
    (["train.match=epochs"], ["train.match: 'epochs'", "rows, tokens, steps"]),
    (["filter=keyword", "filter.treatment=keep"], ["filter.treatment: 'keep'", "drop, swap"]),
    (["filter=keyword", "filter.part=all"], ["filter.part: 'all'", "reply, prompt, both"]),
    (["filter=keyword", "filter.threshold=null"], ["set filter.threshold, or filter.top"]),
    (["filter=random", "filter.match=3"], ["filter.match", "filter@filter.match=NAME"]),
    (["filter=random", "filter.match._target_=null"], ["filter.match"]),
    (["filter=random", "+filter.match.thresold=3"], ["filter.match.thresold"]),
    (["train.method=qlora"], ["train.method: 'qlora'", "full, lora"]),
    (["train.precision=fp16"], ["train.precision: 'fp16'", "bf16, fp32"]),
    (["train.over_length=cut"], ["train.over_length: 'cut'", "drop, truncate"]),
    (["deepspeed.stage=4"], ["deepspeed.stage: 4", "0, 1, 2, 3"]),
    (["track.mode=maybe"], ["track.mode: 'maybe'", "auto, online, offline, off"]),
    (["missing_rollouts=ignore"], ["missing_rollouts: 'ignore'", "fail, leave_out, leave_out_both"]),
    (["model.origin=zip"], ["model.origin: 'zip'", "gguf, hub, path"]),
    (["trait_eval.blackmail.kind=percent"], ["trait_eval.blackmail.kind: 'percent'", "share, rating"]),
    (["trait_eval.blackmail.samples=0"], ["trait_eval.blackmail", "at least 1"]),
    (["trait_eval.blackmail.top_p=0"], ["trait_eval.blackmail", "top_p"]),
    (["sampling.max_tokens=0"], ["sampling.max_tokens: 0", "greater than 0"]),
    (["train.batch_size=0"], ["train.batch_size: 0", "greater than 0"]),
    (["train.lr=-1e-4"], ["train.lr: -0.0001", "greater than 0"]),
    (["train.lr=inf"], ["train.lr: inf"]),
    (["train.weight_decay=nan"], ["not a number"]),
    (["filter=keyword", "filter._target_=os.system"], ["os.system", "@filter_function"]),
    (["filter=random", "filter.match._target_=os.system"], ["os.system", "@filter_function"]),
    (["trait_eval.blackmail._target_=os.system"], ["os.system", "@trait_scorer"]),
    (["filter=keyword", "filter._target_=sftdiff.filters.load_filter"], ["load_filter", "@filter_function"]),
    (["filter=keyword", "filter.params.lists=3"], ["there is no file 3"]),
    (["model.trust_remote_code=true"], ["trust_remote_code"]),
    (["+model.trust_remote_code=true"], ["model.trust_remote_code", "no such setting"]),
    (["++model.gguf.trust_remote_code=true"], ["model.gguf.trust_remote_code", "no such setting"]),
    (["+train.model_kwargs={trust_remote_code:true}"], ["train.model_kwargs", "no such setting"]),
    (["+trait_eval.blackmail.api_key=x"], ["trait_eval.blackmail.api_key", "no such setting"]),
    (["+teacher.model.api_key=x"], ["teacher.model.api_key", "no such setting"]),
    (["~trait_eval"], ["choose at least one trait"]),
    (["seed=range(0,0)"], ["seed=range(0,0)", "no values"]),
    (["seed=interval(0,1)"], ["seed=interval(0,1)", "can be swept"]),
    (["teacher=gemini,"], ["teacher=gemini,: cannot be read"]),
    (["prompt_subset.sources=[coding"], ["prompt_subset.sources=[coding: cannot be read"]),
    (["runs=/tmp/a,/tmp/b"], ["runs", "cannot be swept"]),
    (["report.examples=1,2"], ["report", "cannot be swept"]),
    (["report.baseline=nobody"], ["report.baseline", "'nobody'", "untrained", "teacher=gemini filter=none"]),
]
# Refused by a real command, with nothing written.
COMMANDS: list[tuple[list[str], list[str]]] = [
    *[r for r in REFUSED if r[0] in (
        ["teacher=foo"], ["teacher=/data/r.jsonl"], ["train.lrr=3"], ["train.lr=1e-5,fast"], ["teacher=gemini,"],
        ["prompt_subset=random_share", "prompt_subset.treatment=drop"], ["prompt_subset.treatment=foo"],
        ["filter=keyword", "filter._target_=os.system"], ["model=path", "model.path=null"], ["+model.trust_remote_code=true"],
    )],
    (["frobnicate"], ["'frobnicate' is not a subcommand"]),
    (["hydra/launcher=foo"], ["'hydra/launcher/foo'", "local"]),
]  # fmt: skip


@pytest.mark.parametrize("name", FILES)
def test_every_file_composes(name: str) -> None:
    group, _, option = name.rpartition("/")
    found = cells(*([f"{group}={option}"] if group else []), *NEEDS.get(name, []))
    assert len(found) == 1
    check_cell(found[0][1])
    assert "hydra" not in found[0][1]


@pytest.mark.parametrize("name", [f for f in FILES if f.startswith("teacher/")])
def test_every_teacher_can_be_the_other_teacher(name: str) -> None:
    option = name.partition("/")[2]
    needed = ["other_teacher.path=r.jsonl"] if name in NEEDS else []
    (_, config), = cells(f"teacher@other_teacher={option}", "teacher=kimi", *needed)
    assert (config["teacher"]["name"], config["other_teacher"]["name"]) == ("kimi", option)


def test_the_matched_filter_of_the_random_control_is_a_choice() -> None:
    (_, config), = cells("filter=random", "filter@filter.match=keyword", "filter.match.threshold=3")
    assert config["filter"]["name"] == "random" and config["filter"]["match"]["threshold"] == 3
    assert config["filter"]["match"]["_target_"] == "sftdiff.filters.keyword.keyword_scores"


def test_a_new_trait_is_a_file(tmp_path: Path) -> None:
    own = {"_target_": "sftdiff.traits.blackmail", "title": "Mine", "unit": "%", "kind": "share"}
    own["scenarios"] = str(ROOT / "sftdiff/data/scenarios/blackmail.yaml")
    (tmp_path / "conf/trait_eval").mkdir(parents=True)
    (tmp_path / "conf/trait_eval/mine.yaml").write_text(yaml.safe_dump({"mine": own}))
    done = run_train("--config-dir", str(tmp_path / "conf"), "trait_eval=mine", "hydra.launcher.dry_run=true", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "traits: mine" in done.stdout


@pytest.mark.parametrize(("overrides", "said"), REFUSED, ids=lambda v: " ".join(v) if isinstance(v, list) else None)
def test_refused(overrides: list[str], said: list[str]) -> None:
    message = refusal(*overrides)
    assert message, "this was planned"
    assert [part for part in said if part not in message] == []


@pytest.mark.parametrize(("overrides", "said"), COMMANDS, ids=lambda v: " ".join(v) if isinstance(v, list) else None)
def test_refused_by_the_command_in_one_message(overrides: list[str], said: list[str], tmp_path: Path) -> None:
    done = run_train(*overrides, "hydra.launcher.dry_run=true", f"runs={tmp_path}/runs", cwd=tmp_path)
    assert done.returncode not in (0, 2)
    assert "Traceback" not in done.stdout + done.stderr
    assert done.stdout == ""
    assert [part for part in said if part not in done.stderr] == []
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    assert len(lines) == len(set(lines)) and len(lines) < 25
    assert list(tmp_path.iterdir()) == []


def test_a_dry_run_shows_the_plan_and_writes_nothing_else(tmp_path: Path) -> None:
    done = run_train("-m", "teacher=gemini,olmo", "filter=none,keyword", "hydra.launcher.dry_run=true", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    for text in ("4 cells", "untrained", "teacher=gemini filter=none", "teacher=olmo filter=keyword", "Dry run"):
        assert text in done.stdout
    (written,) = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert written.name == "plan.txt" and written.parent.parent == tmp_path / "runs/sweeps"
    assert done.stdout.startswith(written.read_text()) and "Steps: 59" in written.read_text()


def test_values_that_look_like_markup_are_shown_as_they_are(tmp_path: Path) -> None:
    done = run_train(
        "-m", "prompt_subset=by_source", "prompt_subset.treatment=drop,only", "prompt_subset.sources=[coding,writing],[advice]",
        "hydra.launcher.dry_run=true", cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "prompt_subset.sources=[coding,writing]" in done.stdout


SECRET = re.compile(r"key|token|secret|passw|credential", re.IGNORECASE)
NO_SECRETS = {"api_key_env", "max_tokens", "eos_token"}
NO_SECRETS_IN_FILES = NO_SECRETS | {"batch_tokens"}  # a filter's params are not in the schema
LOOKS_SECRET = re.compile(r"\b(sk-|hf_|AIza|ghp_|xox|eyJ)[\w-]{8,}|\b(?=\w*\d)(?=\w*[a-z])[A-Za-z0-9]{32,}\b")


def _dataclasses() -> list[type]:
    return [c for c in vars(schema).values() if isinstance(c, type) and dataclasses.is_dataclass(c)]


def test_the_schema_has_no_place_for_a_secret() -> None:
    names = {f.name for c in _dataclasses() for f in dataclasses.fields(c)}
    assert {name for name in names if SECRET.search(name)} == NO_SECRETS
    assert typing.get_type_hints(schema.EndpointConfig)["api_key_env"] == typing.Optional[str]


def _leaves(value: Any, key: str = "") -> list[tuple[str, Any]]:
    if isinstance(value, dict):
        return [leaf for k, v in value.items() for leaf in _leaves(v, str(k))]
    if isinstance(value, list):
        return [leaf for v in value for leaf in _leaves(v, key)]
    return [(key, value)]


@pytest.mark.parametrize("name", FILES)
def test_no_file_holds_a_secret(name: str) -> None:
    text = (CONF / f"{name}.yaml").read_text()
    assert not LOOKS_SECRET.search(text)
    for key, value in _leaves(yaml.safe_load(text)):
        if key == "api_key_env":
            assert value is None or re.fullmatch(r"[A-Z][A-Z0-9_]*", value)
        elif SECRET.search(key):
            assert key in NO_SECRETS_IN_FILES
    assert not LOOKS_SECRET.search("revision 1a2b3c") and LOOKS_SECRET.search("sk-abcdefgh12345")
