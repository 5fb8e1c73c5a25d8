"""Causal self-attention with separate query, key and value projections."""

from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from megaqk.model.context import ModelContext
from megaqk.model.document_attention import document_attention
from megaqk.model.norms import build_norm
from megaqk.model.positions import Rotary
from megaqk.parallel.linear import ColumnParallelLinear, RowParallelLinear


class Attention(nn.Module):
    """Multi-head or grouped-query attention, split over the tensor-parallel group by head.

    Query and key weights are parameters of their own, so that a learning rate multiplier acts on whole tensors.
    """

    def __init__(self, context: ModelContext) -> None:
        super().__init__()
        model, tp = context.model, context.tp
        self.context = context
        self.head_dim = model.head_size
        self.grouped = model.kv_heads != model.num_heads
        query_width, kv_width = model.num_heads * model.head_size, model.kv_heads * model.head_size
        widths = {"query": query_width, "key": kv_width, "value": kv_width}
        self.qkv = ColumnParallelLinear(model.hidden_size, widths, bias=model.bias, tp=tp)
        self.output = RowParallelLinear(query_width, model.hidden_size, bias=model.bias, tp=tp)
        if model.qk_norm:
            # One weight for all heads, while each rank sees its own heads only.
            self.query_norm = build_norm(model, model.head_size, tp=tp, partial_gradient=True)
            self.key_norm = build_norm(model, model.head_size, tp=tp, partial_gradient=True)
        self.rotary = (
            Rotary(model.head_size, context.max_positions, model.rotary_base) if model.positions == "rotary" else None
        )

    def forward(self, x: Tensor, positions: Tensor | None, call: int) -> Tensor:
        """Attend over (B, S, H), or this rank's (B, S / size, H) under sequence parallelism.

        Args:
            x: The normalised residual stream.
            positions: (B, S) over the whole sequence where documents are kept apart, else None.
            call: Names the forward pass for dropout.
        """
        query, key, value = self.qkv(x)
        if self.context.recompute == "selective" and self.training:
            mixed = checkpoint(
                self._core, query, key, value, positions, call, use_reentrant=False, preserve_rng_state=False
            )
        else:
            mixed = self._core(query, key, value, positions, call)
        return self.output(mixed)  # type: ignore[no-any-return]

    def _core(self, query: Tensor, key: Tensor, value: Tensor, positions: Tensor | None, call: int) -> Tensor:
        """Mix (B, S, heads x D) values over positions; every rank has the whole sequence of its own heads."""
        query, key, value = (x.view(*x.shape[:2], -1, self.head_dim).transpose(1, 2) for x in (query, key, value))
        model = self.context.model
        if model.qk_norm:
            query, key = self.query_norm(query), self.key_norm(key)
        if self.rotary is not None:
            query, key = self.rotary(query, positions), self.rotary(key, positions)
        dropout = model.attention_dropout if self.training else 0.0
        if positions is not None:
            mixed = document_attention(query, key, value, positions)
        elif dropout:
            with self.context.rng.scope(call, "attention", query.device, sharded=True):
                mixed = self._attend(query, key, value, dropout)
        else:
            mixed = self._attend(query, key, value, 0.0)
        return mixed.transpose(1, 2).flatten(2)

    def _attend(self, query: Tensor, key: Tensor, value: Tensor, dropout: float) -> Tensor:
        return F.scaled_dot_product_attention(
            query, key, value, is_causal=True, dropout_p=dropout, enable_gqa=self.grouped
        )
