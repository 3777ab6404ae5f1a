"""The steps that make a mixture: prompts, rollouts, scores, mixture. Part of the plan; pure but for reading external files."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from sftdiff.config import FilterConfig, PromptSubsetConfig, defaults_of
from sftdiff.errors import SftdiffError, first_line
from sftdiff.files import EMBEDDED, resolve
from sftdiff.filters import MODELS, load_filter
from sftdiff.identity import file_sha256, step_identity
from sftdiff.prompts import PROMPTS_VERSION
from sftdiff.rows import ROWS_VERSION
from sftdiff.sources import source_files
from sftdiff.subsets import FIELDS
from sftdiff.teachers import ROLLOUTS_VERSION

FILE_PARAMS = ("lists", "examples", "labels", "rubric")  # params of filters that name files
# Params that change how scores are made and not what they are.
RUNTIME_PARAMS = {"base_url", "api_key_env", "price_in", "price_out", "concurrency", "timeout_s", "max_attempts", "max_cost",
                  "max_error_share", "batch_tokens"}  # fmt: skip
NOT_OF_STUDENTS = ("base", "base_url", "api_key_env")  # settings of models that are evaluated alone
COLUMNS = ("messages_column", "prompt_column", "completion_column")
STORED = ("path", "id", "revision", "config_name", "split", *COLUMNS)
CONTENT = ("id", "revision", "temperature", "top_p", "top_k", "max_tokens", "system", "extra")  # what decides what a model says


@dataclass(frozen=True)
class PlannedStep:
    """One step: its directory name (`id`), what it reads, and settings that do not change its result (`runtime`)."""

    id: str
    kind: str
    config: dict[str, Any]
    inputs: dict[str, str]
    files: dict[str, str]
    runtime: dict[str, Any]


@lru_cache(maxsize=4096)
def content_hash(path: str) -> str:
    return file_sha256(resolve(path))


@lru_cache(maxsize=64)
def hub_commit(name: str, kind: str, setting: str) -> str:
    """Return the commit that a hub repository's main branch has now: a sweep is pinned to it when it is planned."""
    from huggingface_hub import HfApi

    try:
        return str(HfApi().repo_info(name, repo_type=kind, timeout=20).sha)
    except Exception as error:  # the hub's client lets errors of its HTTP library through, which changes between versions
        raise SftdiffError(
            f"{setting}.id={name}: cannot look up its commit on the hub ({first_line(error)}); "
            f"set {setting}.revision=COMMIT to plan without it"
        ) from None


class DataPlanner:
    """Collects the distinct steps that make mixtures."""

    def __init__(self) -> None:
        self.steps: dict[str, PlannedStep] = {}
        self._made: dict[str, str] = {}
        self._known: dict[Any, tuple[Any, str]] = {}

    def _once(self, what: str, parts: Sequence[Any], plan: Callable[[], str]) -> str:
        """Plan what depends on these parts of configs alone once: cells share the parts in which they do not differ."""
        key = (what, *map(id, parts))
        if key not in self._known:
            self._known[key] = (parts, plan())  # the parts are kept, so that no other object gets their id
        return self._known[key][1]

    def step(
        self,
        kind: str,
        slug: str,
        config: Mapping[str, Any],
        inputs: Mapping[str, str],
        files: Sequence[str] = (),
        runtime: Mapping[str, Any] | None = None,
    ) -> str:
        """Plan one step, or find the same one planned before; return its id."""
        hashes = {path: content_hash(path) for path in files}
        try:
            identity = step_identity(kind, config, inputs, hashes)
        except ValueError:
            raise SftdiffError(f"the settings of {kind}-{slug} hold an infinite value or one that is not a number") from None
        step_id = self._made.get(identity)
        if step_id is None:
            safe = "".join(c if c.isalnum() or c in "._" else "-" for c in slug)[:60]
            step_id = self._made[identity] = f"{kind}-{safe}-{identity}"
            self.steps[step_id] = PlannedStep(step_id, kind, dict(config), dict(inputs), hashes, dict(runtime or {}))
        return step_id

    def student(self, model: Mapping[str, Any], base: str | None = None) -> str:
        """Plan the folder of a model; `base` is the step of the model that it was trained from, where that is known."""
        files = []
        own = {k: v for k, v in model.items() if k not in NOT_OF_STUDENTS}
        if model["origin"] == "hub":
            own["revision"] = model["revision"] or hub_commit(model["id"], "model", "model")
        if model["origin"] == "path":
            files = folder_files(model["path"], "model.path")
            own["id"] = None  # it may be that of another model of the sweep
        if model["origin"] == "api":
            own = {k: model[k] for k in ("name", "origin", "id")}
        return self.step("student", model["name"], own, {"base": base} if base else {}, files)

    def prompts(self, config: Mapping[str, Any]) -> str:
        return self._once("prompts", [config["prompts"]], lambda: self._prompts(config))

    def _prompts(self, config: Mapping[str, Any]) -> str:
        prompts = _pinned(config["prompts"], "prompts")
        return self.step("prompts", prompts["name"], {**prompts, "version": PROMPTS_VERSION}, {}, source_files(prompts))

    def rollouts(self, config: Mapping[str, Any], slot: str) -> str:
        """Plan a teacher's rollouts on the prompt set: read from a file, or generated."""
        return self._once(slot, [config["prompts"], config[slot]], lambda: self._rollouts(config, slot))

    def _rollouts(self, config: Mapping[str, Any], slot: str) -> str:
        teacher, model = config[slot], config[slot]["model"]
        origin = origin_of(teacher, config["prompts"])
        own = {"name": teacher["name"], "origin": origin, "samples": teacher["samples"], "reasoning": teacher["reasoning"]}
        runtime: dict[str, Any] = {}
        if origin == "stored":
            pinned = _pinned(teacher, slot)
            own |= {k: pinned[k] for k in STORED}
            files = source_files(pinned)
        else:
            own |= {"path": None, "id": model["id"], "cut": teacher["cut"], "model": {k: model[k] for k in CONTENT}}
            runtime = {"model": {k: v for k, v in model.items() if k not in CONTENT}, "generation": teacher["generation"]}
            folder = model["id"].startswith(("/", ".", "~")) or Path(model["id"]).is_dir()
            files = folder_files(model["id"], f"{slot}.model.id") if folder and origin != "endpoint" else []
        slug = f"{teacher['name']}-{config['prompts']['name']}"
        inputs = {"prompts": self.prompts(config)}
        return self.step("rollouts", slug, {"teacher": own, "version": ROLLOUTS_VERSION}, inputs, files, runtime)

    def scores(self, settings: Mapping[str, Any], config: Mapping[str, Any]) -> str:
        """Plan the scores of a filter or locator on the teacher's rollouts."""
        parts = [settings, *(config[name] for name in ("prompts", "teacher", "model", "runs"))]
        return self._once("scores", parts, lambda: self._scores(settings, config))

    def _scores(self, settings: Mapping[str, Any], config: Mapping[str, Any]) -> str:
        settings = defaults_of(FilterConfig) | dict(settings)
        function, version, _ = load_filter(settings["_target_"])
        inputs = {"prompts": self.prompts(config), "rollouts": self.rollouts(config, "teacher")}
        files = [str(settings["params"][k]) for k in FILE_PARAMS if settings["params"].get(k)]
        embedder = str(settings["params"].get("embedder") or "")
        if embedder and Path(embedder).expanduser().is_dir():  # an empty path would be this folder
            files += folder_files(embedder, "filter.params.embedder")
        folders = {}
        for name in ("model", "reference"):
            if name in getattr(function, MODELS, ()) and not settings[name]:
                how = "student, the id of a train step, or a model folder"
                raise SftdiffError(f"filter={settings['name']} needs filter.{name}={how}")
            if settings[name] == "student":
                inputs[name] = self.student(config["model"])
            elif settings[name]:
                folders[name] = _model_folder(settings[name], config["runs"])
                files += folder_files(folders[name], f"filter.{name}")
        params = {k: _content(v) for k, v in settings["params"].items() if k not in RUNTIME_PARAMS}
        own = {k: settings[k] for k in ("_target_", "part")} | {"params": params, "version": version, "folders": folders}
        own["sample"] = config["teacher"]["sample"]
        return self.step("scores", settings["name"], own, inputs, files, {"params": settings["params"]})

    def mixture(self, config: Mapping[str, Any]) -> str:
        inputs, files = {"prompts": self.prompts(config), "rollouts": self.rollouts(config, "teacher")}, list[str]()
        teachers, samples = {"teacher": config["teacher"]["name"]}, {"teacher": config["teacher"]["sample"]}
        slug = f"{config['teacher']['name']}-{config['filter']['name']}"
        if uses_other(config):
            inputs["other_rollouts"] = self.rollouts(config, "other_teacher")
            teachers["other"], samples["other"] = config["other_teacher"]["name"], config["other_teacher"]["sample"]
            slug += f"-{config['other_teacher']['name']}"
        subset = config["prompt_subset"]
        if subset["treatment"] != "keep":
            slug += f"-{subset['treatment']}-{subset['name']}"
        own = {
            "prompt_subset": self._subset(subset, config, inputs, files) | {"treatment": subset["treatment"]},
            "filters": [self.filter_settings(f, config, inputs) for f in filters_of(config["filter"])],
            "teachers": teachers,
            "samples": samples,
            "missing": config["missing_rollouts"],
            "version": ROWS_VERSION,
        }
        return self.step("mixture", slug, own, inputs, files)

    def _subset(
        self, subset: Mapping[str, Any], config: Mapping[str, Any], inputs: dict[str, str], files: list[str]
    ) -> dict[str, Any]:
        """Return what a subset depends on; scores that it needs become inputs, and an ids file one of the files."""
        settings, own = defaults_of(PromptSubsetConfig) | dict(subset), {"name": subset["name"]}
        for name in FIELDS[subset["name"]]:
            value = settings[name]
            if name == "of":
                value = self._subset(value, config, inputs, files)
            elif name == "sets":
                value = {key: self._subset(inner, config, inputs, files) for key, inner in value.items()}
            elif name == "locator":
                value = {"name": value["name"], "input": self.scores_input(value, config, inputs)}
            elif name == "ids":
                files.append(value)
            own[name] = value
        return own

    def filter_settings(self, settings: Mapping[str, Any], config: Mapping[str, Any], inputs: dict[str, str]) -> dict[str, Any]:
        """Return what a filter of a mixture depends on; the scores that it needs become inputs."""
        scored, settings = settings, defaults_of(FilterConfig) | dict(settings)
        own = {"name": settings["name"], "treatment": settings["treatment"]}
        if settings["match"]:
            target = self.filter_settings(settings["match"], config, inputs)
            return own | {"match": target, "match_by": settings["match_by"], "seed": settings["params"]["seed"]}
        scores = self.scores_input(scored, config, inputs)
        return own | {"threshold": settings["threshold"], "top": settings["top"], "input": scores}

    def scores_input(self, settings: Mapping[str, Any], config: Mapping[str, Any], inputs: dict[str, str]) -> str:
        step_id = self.scores(settings, config)
        for name, known in inputs.items():
            if known == step_id:
                return name
        name = f"scores_{sum(key.startswith('scores_') for key in inputs)}"
        inputs[name] = step_id
        return name


def _content(value: Any) -> Any:
    """Return a param without what does not change scores: a judge's endpoint is written in one."""
    return {k: v for k, v in value.items() if k not in RUNTIME_PARAMS} if isinstance(value, Mapping) else value


def filters_of(settings: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Return the filters that a filter setting stands for, in their order."""
    if settings["chain"]:
        return [inner for part in settings["chain"].values() for inner in filters_of(defaults_of(FilterConfig) | dict(part))]
    return [settings] if settings["_target_"] else []


def uses_other(config: Mapping[str, Any]) -> bool:
    """Tell whether a cell takes rollouts of other_teacher."""
    by_filter = any(f.get("treatment") == "swap" for f in filters_of(config["filter"]))
    by_subset = config["prompt_subset"]["treatment"] in ("swap", "swap_rest")
    return by_filter or by_subset or config["missing_rollouts"] == "leave_out_both"


def origin_of(teacher: Mapping[str, Any], prompts: Mapping[str, Any]) -> str:
    """Return where a teacher's rollouts come from: what the package ships is for the prompts that it ships."""
    if teacher["origin"] != "auto":
        return str(teacher["origin"])
    own = teacher["id"] or (teacher["path"] and not teacher["path"].startswith(EMBEDDED))
    shipped = teacher["path"] and (prompts["path"] or "").startswith(EMBEDDED)
    return "stored" if own or shipped else "endpoint"


def folder_files(path: str, setting: str) -> list[str]:
    """Return the files of a model folder: their content is part of what depends on it."""
    folder = Path(path).expanduser().resolve()
    if not folder.is_dir():
        raise SftdiffError(f"{setting}: there is no folder {folder}")
    return sorted(str(p) for p in folder.iterdir() if p.is_file())


def _model_folder(name: str, runs: str) -> str:
    made = Path(runs) / "steps" / name / "model"
    return str(made if "/" not in name and made.is_dir() else Path(name).expanduser())


def _pinned(source: Mapping[str, Any], setting: str) -> dict[str, Any]:
    if not source["id"]:
        return dict(source)
    return {**source, "revision": source["revision"] or hub_commit(source["id"], "dataset", setting)}
