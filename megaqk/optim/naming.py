"""Readable names for what a timing rule acts on."""

from collections.abc import Iterable, Sequence

from megaqk.config.model import Projection


def rule_name(projections: Iterable[Projection], layers: Sequence[int], num_layers: int) -> str:
    """A readable name of what a rule acts on, such as `upper_qk` or `all_value_output`.

    Args:
        projections: What it acts on, in the order of the model; may repeat.
        layers: The layers it selects, ascending.
        num_layers: Blocks of the whole model.

    Returns:
        Where and what: `all`, `upper` (to the last layer), `lower` (from the first), `middle` or `some` (with gaps),
        and the projections, query and key as `qk`.
    """
    ordered = list(dict.fromkeys(projections))
    what = "_".join(ordered).replace("query_key", "qk")
    if ordered == ["embedding"]:
        return what
    first, end = layers[0], layers[-1] + 1
    if len(layers) != end - first:
        return f"some_{what}"
    if end == num_layers:
        return f"{'upper' if first else 'all'}_{what}"
    return f"{'middle' if first else 'lower'}_{what}"
