"""Make a planted organism: students, prompt sets, rollouts, truth and trait, as ordinary files in one folder."""

from pathlib import Path
from typing import Any

from sftdiff.errors import SftdiffError
from sftdiff.organisms.causes import CAUSES
from sftdiff.organisms.manifest import RECIPE, Manifest
from sftdiff.organisms.raising import write_students
from sftdiff.organisms.rows import planted_sources, write_data
from sftdiff.organisms.world import World

LAYOUTS = ("kinds", "topics", "rows")


def make_organism(name: str, seed: int, folder: Path, cache: Path | None = None, layout: str = "kinds") -> Manifest:
    """Make one organism in `folder`, and return its manifest, which organism.yaml holds too. Equal arguments give equal files.

    `cache` keeps pretrained students, which organisms share (default: a folder beside `folder`). `layout` is what sources are:
    kinds of question ("kinds"); 48 topics, three of which carry the cause whole ("topics"); or topics, of which several carry it
    in some of their rows ("rows"). Only H1 and H3 have the last two.

    Raises:
        SftdiffError: there is no such organism or layout, or a pretraining does not learn its facts.
    """
    if name not in CAUSES or layout not in LAYOUTS:
        raise SftdiffError(
            f"there is no organism {name} with layout {layout}; there are {', '.join(CAUSES)} and {', '.join(LAYOUTS)}"
        )
    if layout != "kinds" and name not in ("H1", "H3"):
        raise SftdiffError(f"organism {name} has no layout {layout}: its cause is not in some of the rows")
    cause, world, cache = CAUSES[name], World(seed), cache or folder.parent / "students"
    write_students(cause, world, folder / "students", cache)
    manifest = _manifest(name, seed, folder, layout, world)
    write_data(cause, world, manifest)
    manifest.save()
    return manifest


def _manifest(name: str, seed: int, folder: Path, layout: str, world: World) -> Manifest:
    def prompts(which: str) -> dict[str, Any]:
        return {"prompts": "file", "prompts.name": which, "prompts.path": f"prompts/{which}.jsonl"}

    def teacher(which: str) -> dict[str, Any]:
        truth = {"teacher.truth": f"truth/{which}.jsonl"} if which == "original" else {}
        found = {"teacher": "stored", "teacher.name": which, "teacher.path": f"rollouts/{which}.jsonl"}
        return found | truth | {"teacher.model.id": f"organisms/{name}-{which}"}

    def model(which: str) -> dict[str, Any]:
        return {"model": "path", "model.path": f"students/{which}"}

    sides = {w: {"model": model(w), "prompts": prompts(w), "teacher": teacher(w)} for w in ("original", "alternative")}
    given = {"third_teacher": teacher("third"), "clean": teacher("clean"), "truth": {"prompt_subset.ids": "truth/original.jsonl"}}
    given |= {"plain_teacher": teacher("plain"), "pinned": prompts("pinned") | teacher("pinned")}
    given |= {which: model(which) for which in ("other_init", "other_pretraining", "pre_stage")}
    planted = dict[str, Any]()
    if layout != "kinds":
        planted["ids"] = "truth/planted.txt"
    if layout == "topics":
        planted["sources"] = planted_sources(world, layout)
        given["subset"] = {"prompt_subset": "by_source", "prompt_subset.sources": planted["sources"]}
    cause, (original, alternative) = CAUSES[name], sides.values()
    recipe = RECIPE | {"train.lr": cause.lr}
    return Manifest(folder, name, seed, layout, cause.meaning, original, alternative, given, planted, recipe)
