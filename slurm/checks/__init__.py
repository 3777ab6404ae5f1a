"""The checks of slurm/preflight: what they share, those of the login node, the job, and what the job runs on the nodes."""
