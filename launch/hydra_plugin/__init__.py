"""sftdiff's Hydra plugins, found as `hydra_plugins.sftdiff`: the sweeper and the launchers."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.utils import JobReturn
from hydra.errors import CompactHydraException
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

from launch.sweeper import expand
from sftdiff.errors import SftdiffError


@dataclass
class SftdiffSweeperConfig:
    _target_: str = "hydra_plugins.sftdiff.SftdiffSweeper"


@dataclass
class LocalLauncherConfig:
    _target_: str = "hydra_plugins.sftdiff.LocalLauncher"
    dry_run: bool = False
    processes: int = 1  # ranks of a train step; more than one needs deepspeed=zero1|zero2|zero3 or plain data parallel


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
            return self.launcher.launch(_job_overrides(arguments, loader), initial_job_idx=0)
        except SftdiffError as error:
            raise CompactHydraException(str(error)) from error


def _job_overrides(arguments: Sequence[str], loader: Any) -> list[list[str]]:
    """Expand for a launcher that composes each job by itself (Hydra's own, submitit's)."""
    import itertools

    from launch.sweeper import split_axes

    fixed, axes = split_axes(arguments, loader)
    return [[*fixed, *choice] for choice in itertools.product(*(a.choices for a in axes))]


class LocalLauncher(Launcher):
    """Plans the sweep and runs its steps on this machine."""

    def __init__(self, dry_run: bool, processes: int) -> None:
        self.dry_run, self.processes = dry_run, processes

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.hydra_context, self.task_function, self.config = hydra_context, task_function, config

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Compose each job (for other sweepers) and run all as one sweep."""
        loader, cells = self.hydra_context.config_loader, []
        for overrides in job_overrides:
            cells += list(expand(list(overrides), self.config, loader))
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
