"""QK-clip, a rival of the timing multiplier."""

from pydantic import Field

from megaqk.config.base import Section


class QkClipConfig(Section):
    """After each step the query and key weights of a head whose largest logit was above a threshold shrink to it.

    This is QK-clip of Kimi K2 (arXiv 2507.20534), after AdamW too.
    """

    threshold: float | None = Field(
        None,
        gt=0,
        description="Largest logit (query x key / sqrt(head_dim)) that a head may reach over the global batch of a "
        "step; Kimi K2 takes 100; null never clips. It computes the logits a second time, waits for the device once a "
        "step, and bypasses training.compile in the blocks.",
    )
