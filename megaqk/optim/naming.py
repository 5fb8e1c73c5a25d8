"""Readable names for what a timing rule acts on."""

from collections.abc import Sequence

from megaqk.config.model import Projection
from megaqk.config.qk_timing import TimingRule

_PROJECTION_ORDER: tuple[Projection, ...] = (
    "embedding",
    "norm",
    "query",
    "key",
    "value",
    "output",
    "ffn_in",
    "ffn_gate",
    "ffn_out",
)


def rule_name(rule: TimingRule, layers: Sequence[int], num_layers: int) -> str:
    """A readable name of what a rule acts on, such as `upper_qk` or `all_value_output`.

    Args:
        rule: The rule.
        layers: The layers it selects, ascending.
        num_layers: Blocks of the whole model.

    Returns:
        Where and what: `all`, `upper` (to the last layer), `lower` (from the first), `middle` or `some` (with gaps),
        and the projections in the order of the forward pass, query and key as `qk`.
    """
    ordered = [name for name in _PROJECTION_ORDER if name in rule.projections]
    what = "_".join(ordered).replace("query_key", "qk")
    if ordered == ["embedding"]:
        return what
    first, end = layers[0], layers[-1] + 1
    if len(layers) != end - first:
        return f"some_{what}"
    if end == num_layers:
        return f"{'upper' if first else 'all'}_{what}"
    return f"{'middle' if first else 'lower'}_{what}"
