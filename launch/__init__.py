"""The login node's side of sftdiff: composes cells, plans steps and runs them. Knows Hydra, submitit and Slurm, never torch."""
