"""sftdiff's Hydra plugins, found as `hydra_plugins.sftdiff`: the sweeper and the launchers."""

import itertools
from collections import Counter
from collections.abc import Sequence
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf

from launch.cli import part_of, rounds_of
from launch.settings import LocalLauncherConfig, SftdiffSweeperConfig, SlurmLauncherConfig
from launch.sweeper import as_hydra_wants, expand, split_axes
from sftdiff.errors import SftdiffError

Cells = Sequence[tuple[dict[str, str], dict[str, Any]]]


class SftdiffSweeper(Sweeper):
    """Hands the whole product of the overrides to the launcher as one batch of cells."""

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        from hydra.core.plugins import Plugins

        self.hydra_context, self.config, self.task_function = hydra_context, config, task_function
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> Any:
        """Compose and check every cell, then launch."""
        assert self.config is not None and self.hydra_context is not None and self.launcher is not None
        loader = self.hydra_context.config_loader
        try:
            if part := part_of(getattr(self.task_function, "__name__", "")):
                return part(list(expand(arguments, self.config, loader)), dry_run=self.config.hydra.launcher.dry_run)
            if isinstance(self.launcher, CellLauncher) and (rounds := rounds_of(getattr(self.task_function, "__name__", ""))):
                return self.launcher.launch_rounds(rounds, arguments)
            if isinstance(self.launcher, CellLauncher):
                return self.launcher.launch_cells(list(expand(arguments, self.config, loader)))
            jobs = self.launcher.launch(_job_overrides(arguments, loader), initial_job_idx=0)
            return [job.return_value for job in jobs]  # raises what a job raised
        except SftdiffError as error:
            raise SystemExit(str(error)) from error  # Hydra would add a line about stack traces


def _job_overrides(arguments: Sequence[str], loader: Any) -> list[list[str]]:
    """Expand for a launcher that composes each job by itself (Hydra's own, submitit's)."""
    choices = (map(as_hydra_wants, axis.choices) for axis in split_axes(arguments, loader))
    return [list(choice) for choice in itertools.product(*choices)]


class CellLauncher(Launcher):
    """A launcher that takes a whole sweep as cells."""

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.hydra_context, self.task_function, self.config = hydra_context, task_function, config

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Compose each job (for other sweepers) and run all as one sweep."""
        shared, cells = Counter(o for overrides in job_overrides for o in overrides), []
        for overrides in job_overrides:
            axes = [o.partition("=") for o in overrides if shared[o] < len(job_overrides)]
            for _, config in expand(list(overrides), self.config, self.hydra_context.config_loader):
                cells.append(({key: value for key, _, value in axes}, config))
        return self.launch_cells(cells)

    def launch_cells(self, cells: Cells) -> Sequence[JobReturn]:
        """Run a whole sweep; raises SftdiffError when it cannot be planned, submitted or finished."""
        raise NotImplementedError

    def launch_rounds(self, rounds: Any, arguments: list[str]) -> Sequence[JobReturn]:
        """Run a diff or a search, or go on with it; raises SftdiffError as `launch_cells` does."""
        raise NotImplementedError

    def builder(self) -> Any:
        """Return what plans the cells of this command: trainings, or evaluations of models that are there."""
        from launch.evaluate import build_evaluation
        from launch.plan import build_plan

        return build_evaluation if getattr(self.task_function, "__name__", "") == "run_evaluation" else build_plan


class LocalLauncher(CellLauncher):
    """Plans the sweep and runs its steps on this machine."""

    def __init__(self, dry_run: bool, processes: int) -> None:
        self.dry_run, self.processes = dry_run, processes

    def launch_cells(self, cells: Cells) -> Sequence[JobReturn]:
        from launch.run import run_sweep

        run_sweep(cells, dry_run=self.dry_run, processes=self.processes, build=self.builder())
        return []

    def launch_rounds(self, rounds: Any, arguments: list[str]) -> Sequence[JobReturn]:
        from launch.run import run_plan

        def execute(plan: Any) -> None:
            run_plan(plan, self.dry_run, self.processes)

        rounds(arguments, self.config, self.hydra_context.config_loader, execute, self.dry_run, 0)
        return []


class SlurmLauncher(CellLauncher):
    """Plans the sweep and submits its steps to Slurm. Takes the settings of conf/hydra/launcher/slurm.yaml."""

    def __init__(self, **settings: Any) -> None:
        self.settings: dict[str, Any] = {
            key: OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value
            for key, value in settings.items()
        }

    def launch_cells(self, cells: Cells) -> Sequence[JobReturn]:
        from launch.slurm import run_on_slurm

        run_on_slurm(cells, self.settings, self.builder())
        return []

    def launch_rounds(self, rounds: Any, arguments: list[str]) -> Sequence[JobReturn]:
        from launch.slurm import ZERO_STAGE, checked_settings, submit_plan

        settings = checked_settings(self.settings)

        def execute(plan: Any) -> None:
            submit_plan(plan, settings)

        rounds(arguments, self.config, self.hydra_context.config_loader, execute, settings["dry_run"], ZERO_STAGE)
        return []


def register() -> None:
    """Make the plugins and their config nodes known to Hydra; an editable install hides them from its discovery."""
    from hydra.core.plugins import Plugins

    Plugins.instance().register(SftdiffSweeper)
    Plugins.instance().register(LocalLauncher)
    Plugins.instance().register(SlurmLauncher)
    store = ConfigStore.instance()
    store.store(group="hydra/sweeper", name="sftdiff", node=SftdiffSweeperConfig, provider="sftdiff")
    store.store(group="hydra/launcher", name="local", node=LocalLauncherConfig, provider="sftdiff")
    store.store(group="hydra/launcher", name="slurm_schema", node=SlurmLauncherConfig, provider="sftdiff")


__all__ = ["LocalLauncher", "SftdiffSweeper", "SlurmLauncher", "register"]
