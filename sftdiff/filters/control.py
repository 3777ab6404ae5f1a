"""The control that other filters are measured against."""

from collections.abc import Mapping, Sequence
from typing import Any

from sftdiff.corpus import Rows
from sftdiff.filters import filter_function
from sftdiff.identity import unit_interval


@filter_function(version=1)
def random_scores(rows: Rows, params: Mapping[str, Any]) -> Sequence[float]:
    """Score = a hash of `params["seed"]` and the prompt_id in [0, 1): it does not look at the row."""
    return [unit_interval("random filter", params["seed"], key) for key in rows.ids]
