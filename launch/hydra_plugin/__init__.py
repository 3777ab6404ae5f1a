"""sftdiff's Hydra plugins, found as `hydra_plugins.sftdiff`: the sweeper and the launchers."""

import itertools
from collections import Counter
from collections.abc import Sequence
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.utils import JobReturn
from hydra.errors import CompactHydraException
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

from launch.settings import LocalLauncherConfig, SftdiffSweeperConfig
from launch.sweeper import expand, split_axes
from sftdiff.errors import SftdiffError


class SftdiffSweeper(Sweeper):
    """Hands the whole product of the overrides to the launcher as one batch of cells."""

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        from hydra.core.plugins import Plugins

        self.hydra_context, self.config = hydra_context, config
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> Any:
        """Compose and check every cell, then launch."""
        assert self.config is not None and self.hydra_context is not None and self.launcher is not None
        loader = self.hydra_context.config_loader
        try:
            if isinstance(self.launcher, LocalLauncher):
                return self.launcher.launch_cells(list(expand(arguments, self.config, loader)))
            jobs = self.launcher.launch(_job_overrides(arguments, loader), initial_job_idx=0)
            return [job.return_value for job in jobs]  # raises what a job raised
        except SftdiffError as error:
            raise CompactHydraException(str(error)) from error


def _job_overrides(arguments: Sequence[str], loader: Any) -> list[list[str]]:
    """Expand for a launcher that composes each job by itself (Hydra's own, submitit's)."""
    return [list(choice) for choice in itertools.product(*(axis.choices for axis in split_axes(arguments, loader)))]


class LocalLauncher(Launcher):
    """Plans the sweep and runs its steps on this machine."""

    def __init__(self, dry_run: bool, processes: int) -> None:
        self.dry_run, self.processes = dry_run, processes

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

    def launch_cells(self, cells: Sequence[tuple[dict[str, str], dict[str, Any]]]) -> Sequence[JobReturn]:
        """Run a whole sweep; raises SftdiffError when a step failed."""
        from launch.run import run_sweep

        run_sweep(cells, dry_run=self.dry_run, processes=self.processes)
        return []


def register() -> None:
    """Make the plugins and their config nodes known to Hydra; an editable install hides them from its discovery."""
    from hydra.core.plugins import Plugins

    Plugins.instance().register(SftdiffSweeper)
    Plugins.instance().register(LocalLauncher)
    store = ConfigStore.instance()
    store.store(group="hydra/sweeper", name="sftdiff", node=SftdiffSweeperConfig, provider="sftdiff")
    store.store(group="hydra/launcher", name="local", node=LocalLauncherConfig, provider="sftdiff")


__all__ = ["LocalLauncher", "SftdiffSweeper", "register"]
