"""What of a block's activations is kept for the backward pass, and what is computed a second time."""

import logging
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import (
    CheckpointPolicy,
    checkpoint,
    create_selective_checkpoint_contexts,
)

# Under the compiler it warns of in-place operators, which a block has none of, on every rank.
logging.getLogger("torch._higher_order_ops.wrap").setLevel(logging.ERROR)

aten, ours = torch.ops.aten, torch.ops.megaqk

PRODUCTS: frozenset[Any] = frozenset(
    {
        aten.mm.default,
        aten.addmm.default,
        ours.column_forward.default,
        ours.row_forward.default,
        aten._scaled_dot_product_flash_attention.default,
        aten._scaled_dot_product_efficient_attention.default,
        aten._scaled_dot_product_cudnn_attention.default,
        aten._scaled_dot_product_flash_attention_for_cpu.default,
        torch.ops.higher_order.flex_attention,
    }
)
"""What selective recomputation keeps: all that is expensive. Norms, rotations and activations are cheap to repeat."""


def _keep_products(ctx: Any, operator: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
    del ctx, args, kwargs
    return CheckpointPolicy.MUST_SAVE if operator in PRODUCTS else CheckpointPolicy.PREFER_RECOMPUTE


def recomputed(write: Callable[..., Tensor], recompute: str, *arguments: Any) -> Tensor:
    """Call a block's forward pass.

    Args:
        write: The function; it draws no random numbers but by `parallel.rng`, which repeats them.
        recompute: "none" keeps what autograd keeps, "full" only the arguments, "selective" the `PRODUCTS`.
        *arguments: Those of `write`.
    """
    if recompute == "none":
        return write(*arguments)
    repeat = partial(checkpoint, use_reentrant=False, preserve_rng_state=False)
    if recompute == "selective":
        repeat = partial(repeat, context_fn=partial(create_selective_checkpoint_contexts, _keep_products))
    return repeat(write, *arguments)  # type: ignore[no-any-return]
