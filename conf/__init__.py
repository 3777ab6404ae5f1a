"""The Hydra config tree, installed as the package `sftdiff.conf`."""
