"""The megaqk decoder for transformers: a pre-norm transformer with rotary, learned or no positions.

Every ingredient is a key of the configuration. This file needs torch and transformers and nothing else.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import Cache, DynamicCache, GenerationMixin, PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": lambda x: F.gelu(x, approximate="tanh"),
    "relu_squared": lambda x: F.relu(x).square(),
    "swiglu": F.silu,
    "geglu": lambda x: F.gelu(x, approximate="tanh"),
}


class MegaqkConfig(PretrainedConfig):  # type: ignore[misc]
    """What `config.json` holds."""

    model_type = "megaqk"

    def __init__(
        self,
        vocab_size: int = 32000,
        hidden_size: int = 768,
        num_hidden_layers: int = 12,
        num_attention_heads: int = 12,
        num_key_value_heads: int = 12,
        head_dim: int = 64,
        intermediate_size: int = 3072,
        max_position_embeddings: int = 1024,
        norm: str = "layernorm",
        norm_eps: float = 1e-5,
        bias: bool = True,
        feed_forward: str = "gelu",
        positions: str = "learned",
        rotary_base: float = 10000.0,
        qk_norm: bool = False,
        initializer_range: float = 0.02,
        tie_word_embeddings: bool = True,
        **kwargs: Any,
    ) -> None:
        self.vocab_size = vocab_size
        self.hidden_size = hidden_size
        self.num_hidden_layers = num_hidden_layers
        self.num_attention_heads = num_attention_heads
        self.num_key_value_heads = num_key_value_heads
        self.head_dim = head_dim
        self.intermediate_size = intermediate_size
        self.max_position_embeddings = max_position_embeddings
        self.norm = norm
        self.norm_eps = norm_eps
        self.bias = bias
        self.feed_forward = feed_forward
        self.positions = positions
        self.rotary_base = rotary_base
        self.qk_norm = qk_norm
        self.initializer_range = initializer_range
        super().__init__(tie_word_embeddings=tie_word_embeddings, **kwargs)


def build_norm(config: MegaqkConfig, width: int) -> nn.Module:
    """LayerNorm or RMSNorm."""
    if config.norm == "rmsnorm":
        return nn.RMSNorm(width, eps=config.norm_eps)
    return nn.LayerNorm(width, eps=config.norm_eps, bias=config.bias)


def rotated(x: Tensor, positions: Tensor, base: float) -> Tensor:
    """Rotate (B, heads, S, D) by positions (B, S): feature i of the first half with feature i of the second."""
    width = x.shape[-1]
    frequencies = base ** -(torch.arange(0, width, 2, device=x.device).float() / width)
    angles = positions[:, None, :, None].float() * frequencies
    cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
    first, second = x.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)


class Attention(nn.Module):
    """Causal self-attention, multi-head or grouped-query."""

    def __init__(self, config: MegaqkConfig, index: int) -> None:
        super().__init__()
        self.config, self.index = config, index
        width, query = config.hidden_size, config.num_attention_heads * config.head_dim
        key = config.num_key_value_heads * config.head_dim
        self.query = nn.Linear(width, query, bias=config.bias)
        self.key = nn.Linear(width, key, bias=config.bias)
        self.value = nn.Linear(width, key, bias=config.bias)
        self.output = nn.Linear(query, width, bias=config.bias)
        if config.qk_norm:
            self.query_norm = build_norm(config, config.head_dim)
            self.key_norm = build_norm(config, config.head_dim)

    def forward(self, x: Tensor, positions: Tensor, mask: Tensor, cache: Cache | None) -> Tensor:
        """Map (B, S, H) to (B, S, H); the mask (B, 1, S, past + S) is True where a token may look."""
        query, key, value = (
            layer(x).unflatten(-1, (-1, self.config.head_dim)).transpose(1, 2)
            for layer in (self.query, self.key, self.value)
        )
        if self.config.qk_norm:
            query, key = self.query_norm(query), self.key_norm(key)
        if self.config.positions == "rotary":
            query, key = (rotated(y, positions, self.config.rotary_base) for y in (query, key))
        if cache is not None:
            key, value = cache.update(key, value, self.index)
        copies = query.shape[1] // key.shape[1]
        key, value = (y.repeat_interleave(copies, dim=1) for y in (key, value))
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        return self.output(mixed.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]


class FeedForward(nn.Module):
    """down(act(up x)), or down(act(gate x) * up x)."""

    def __init__(self, config: MegaqkConfig) -> None:
        super().__init__()
        self.activation = ACTIVATIONS[config.feed_forward]
        self.up = nn.Linear(config.hidden_size, config.intermediate_size, bias=config.bias)
        self.gate = None
        if config.feed_forward in ("swiglu", "geglu"):
            self.gate = nn.Linear(config.hidden_size, config.intermediate_size, bias=config.bias)
        self.output = nn.Linear(config.intermediate_size, config.hidden_size, bias=config.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, S, H) to (B, S, H)."""
        hidden = self.activation(self.up(x)) if self.gate is None else self.activation(self.gate(x)) * self.up(x)
        return self.output(hidden)  # type: ignore[no-any-return]


class Block(nn.Module):
    """x + attention(norm(x)), then x + ffn(norm(x))."""

    def __init__(self, config: MegaqkConfig, index: int) -> None:
        super().__init__()
        self.attention_norm = build_norm(config, config.hidden_size)
        self.attention = Attention(config, index)
        self.ffn_norm = build_norm(config, config.hidden_size)
        self.ffn = FeedForward(config)

    def forward(self, x: Tensor, positions: Tensor, mask: Tensor, cache: Cache | None) -> Tensor:
        """Add the block's two writes to (B, S, H)."""
        x = x + self.attention(self.attention_norm(x), positions, mask, cache)
        return x + self.ffn(self.ffn_norm(x))  # type: ignore[no-any-return]


class MegaqkForCausalLM(PreTrainedModel, GenerationMixin):  # type: ignore[misc]
    """The decoder and its head."""

    config_class = MegaqkConfig
    base_model_prefix = ""
    _supports_sdpa = True
    _no_split_modules = ["Block"]  # noqa: RUF012  # transformers' own way
    _tied_weights_keys = {"head.weight": "embedding.weight"}  # noqa: RUF012

    def __init__(self, config: MegaqkConfig) -> None:
        super().__init__(config)
        self.embedding = nn.Embedding(config.vocab_size, config.hidden_size)
        self.positions = None
        if config.positions == "learned":
            self.positions = nn.Embedding(config.max_position_embeddings, config.hidden_size)
        self.layers = nn.ModuleList(Block(config, index) for index in range(config.num_hidden_layers))
        self.final_norm = build_norm(config, config.hidden_size)
        self.head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        """The token embedding."""
        return self.embedding

    def get_output_embeddings(self) -> nn.Module:
        """The head."""
        return self.head

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int = 0,
        **_: Any,
    ) -> CausalLMOutputWithPast:
        """Logits (B, S, V) of token ids (B, S), and the mean loss of labels (B, S), shifted here, -100 left out."""
        batch, length = input_ids.shape
        if past_key_values is None and use_cache:
            past_key_values = DynamicCache()
        past = past_key_values.get_seq_length() if past_key_values is not None else 0
        places = torch.arange(past + length, device=input_ids.device)
        mask = (places <= places[past:, None]).expand(batch, 1, -1, -1)
        if attention_mask is not None:
            # A padding token sees itself, as a softmax over nothing is no number.
            seen = attention_mask[:, None, None, :].bool() | (places == places[past:, None])
            mask = mask & seen
        if position_ids is None:
            position_ids = places[past:].expand(batch, -1)
        hidden = self.embedding(input_ids)
        if self.positions is not None:
            hidden = hidden + self.positions(position_ids)
        for layer in self.layers:
            hidden = layer(hidden, position_ids, mask, past_key_values)
        logits = self.head(self.final_norm(hidden[:, -logits_to_keep:]))
        loss = None
        if labels is not None:
            loss = F.cross_entropy(logits[:, :-1].flatten(0, 1).float(), labels[:, 1:].flatten())
        return CausalLMOutputWithPast(loss=loss, logits=logits, past_key_values=past_key_values)
