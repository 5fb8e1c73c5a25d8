"""Causal self-attention with separate query, key and value projections."""

from torch import Tensor, nn

from megaqk.model.context import ModelContext
from megaqk.model.core_attention import causal_scores, core_attention
from megaqk.model.norms import build_norm
from megaqk.model.parameters import linear_roles
from megaqk.model.positions import Rotary
from megaqk.parallel.linear import ColumnParallelLinear, Output, RowParallelLinear


class Attention(nn.Module):
    """Multi-head or grouped-query attention, split over the tensor-parallel group by head.

    Query and key weights are parameters of their own, so that a learning rate multiplier acts on whole tensors.

    Args:
        context: What all layers share.
        index: Global depth of the block.
    """

    def __init__(self, context: ModelContext, index: int) -> None:
        super().__init__()
        model, tp = context.model, context.tp
        self.context = context
        self.index = index
        self.head_dim = model.head_size
        query_width, kv_width = model.num_heads * model.head_size, model.kv_heads * model.head_size
        outputs = {
            "query": Output(query_width, *linear_roles("query", index)),
            "key": Output(kv_width, *linear_roles("key", index)),
            "value": Output(kv_width, *linear_roles("value", index)),
        }
        self.qkv = ColumnParallelLinear(model.hidden_size, outputs, bias=model.bias, tp=tp)
        output = Output(model.hidden_size, *linear_roles("output", index, writes_residual=True))
        self.output = RowParallelLinear(query_width, output, bias=model.bias, tp=tp)
        if model.qk_norm:
            # One weight for all heads, while each rank sees its own heads only.
            self.query_norm = build_norm(model, model.head_size, layer=index, tp=tp, partial_gradient=True)
            self.key_norm = build_norm(model, model.head_size, layer=index, tp=tp, partial_gradient=True)
        self.rotary = (
            Rotary(model.head_size, context.max_positions, model.rotary_base) if model.positions == "rotary" else None
        )

    def forward(self, x: Tensor, positions: Tensor, first_sample: int) -> Tensor:
        """Attend over (B, S, H), or this rank's (B, S / size, H) under sequence parallelism.

        Args:
            x: The normalised residual stream.
            positions: (B, S) over the whole sequence.
            first_sample: Names the micro-batch for dropout.
        """
        query, key, value = self.qkv(x)
        return self.output(self._mix(query, key, value, positions, first_sample))  # type: ignore[no-any-return]

    def _mix(self, query: Tensor, key: Tensor, value: Tensor, positions: Tensor, first_sample: int) -> Tensor:
        """Mix (B, S, heads x D) values over positions; every rank has the whole sequence of its own heads."""
        query, key, value = (x.view(*x.shape[:2], -1, self.head_dim).transpose(1, 2) for x in (query, key, value))
        context = self.context
        if context.model.qk_norm:
            query, key = self.query_norm(query), self.key_norm(key)
        if self.rotary is not None:
            query, key = self.rotary(query, key, positions)
        documents = positions if context.separate_documents else None
        if context.taps:
            if documents is not None:
                context.taps.show("documents", self.index, documents)
            context.taps.show("query", self.index, query)
            context.taps.show("key", self.index, key)
            if context.taps.wants("scores"):
                context.taps.show("scores", self.index, causal_scores(query.detach(), key.detach(), documents))
        dropout = context.model.attention_dropout if self.training else 0.0
        seeds = (
            context.rng.seeds(first_sample, len(query), f"layers.{self.index}.attention", sharded=True)
            if dropout
            else ()
        )
        mixed = core_attention(query, key, value, documents=documents, dropout=dropout, seeds=seeds)
        return mixed.transpose(1, 2).flatten(2)
