"""Settings of sftdiff's Hydra plugins. They travel to the jobs of stock launchers, which can import `launch` only."""

from dataclasses import dataclass


@dataclass
class SftdiffSweeperConfig:
    _target_: str = "hydra_plugins.sftdiff.SftdiffSweeper"


@dataclass
class LocalLauncherConfig:
    _target_: str = "hydra_plugins.sftdiff.LocalLauncher"
    dry_run: bool = False
    processes: int = 1  # ranks of a train step; more than one needs deepspeed=zero1|zero2|zero3 or plain data parallel
