"""sftdiff: find out which part of an SFT pipeline gives a model an unwanted trait."""

from sftdiff.packages import prefer_beside

__version__ = "0.1.0"

# The Hydra config tree lies in conf/ at the top of a checkout and is installed as `sftdiff.conf`.
prefer_beside("sftdiff.conf", "conf")
