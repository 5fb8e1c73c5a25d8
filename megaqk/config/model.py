"""The decoder: two presets, and every ingredient between them as a key of its own."""

from typing import Any, Literal

from pydantic import Field, model_validator

from megaqk.config.base import Section, refusal

Norm = Literal["layernorm", "rmsnorm"]
FeedForward = Literal["gelu", "relu_squared", "swiglu", "geglu"]
Positions = Literal["learned", "rotary", "none"]
Projection = Literal["query", "key", "value", "output", "ffn_in", "ffn_gate", "ffn_out", "norm", "embedding"]

PRESETS: dict[str, dict[str, Any]] = {
    "gpt": {
        "norm": "layernorm",
        "bias": True,
        "feed_forward": "gelu",
        "positions": "learned",
        "tied_embedding": True,
    },
    "llama": {
        "norm": "rmsnorm",
        "bias": False,
        "feed_forward": "swiglu",
        "positions": "rotary",
        "tied_embedding": False,
    },
}
"""What a preset sets; an explicit key wins over it. All other keys share one default."""

GATED: frozenset[str] = frozenset({"swiglu", "geglu"})


class ModelConfig(Section):
    """Architecture of the decoder. A preset fills in the ingredients that are not given."""

    preset: Literal["gpt", "llama"] = Field(
        "gpt", description="Sets norm, bias, feed_forward, positions and tied_embedding where they are not given."
    )
    num_layers: int = Field(12, ge=1, le=10_000, description="Transformer blocks in the whole model.")
    hidden_size: int = Field(768, ge=1, le=1_000_000, description="Width of the residual stream.")
    num_heads: int = Field(12, ge=1, le=100_000, description="Query heads.")
    num_kv_heads: int | None = Field(None, ge=1, le=100_000, description="Key/value heads; null means num_heads.")
    head_dim: int | None = Field(
        None, ge=1, le=100_000, description="Width of a head; null means hidden_size / num_heads."
    )
    ffn_hidden_size: int | None = Field(
        None, ge=1, le=10_000_000, description="Feed-forward width; null means 4 x hidden_size."
    )
    ffn_match_parameters: bool = Field(
        True, description="Read ffn_hidden_size as the ungated width and give gated variants 2/3 of it."
    )
    ffn_multiple_of: int | None = Field(
        None,
        ge=1,
        description="A matched gated width is rounded to a multiple of this; null means the largest of 128, 64, 32, 16 "
        "and 8 that changes it by at most 2 %.",
    )
    vocab_size: int | None = Field(
        None, ge=2, le=100_000_000, description="Embedding rows; null means the tokenizer's, padded."
    )
    vocab_multiple_of: int = Field(128, ge=1, description="A vocabulary taken from the tokenizer is padded to this.")
    norm: Norm = Field("layernorm", description="Kind of every norm.")
    norm_eps: float = Field(1e-5, gt=0, description="Added to the variance or mean square.")
    bias: bool = Field(True, description="Biases in linear layers and in LayerNorm.")
    feed_forward: FeedForward = Field("gelu", description="Activation; swiglu and geglu multiply by a gate.")
    positions: Positions = Field("learned", description="How a token knows its place.")
    rotary_base: float = Field(10000.0, gt=0, description="Base of the rotary wavelengths.")
    tied_embedding: bool = Field(True, description="The output head is the token embedding.")
    qk_norm: bool = Field(False, description="Normalise each query and key head before the dot product.")
    dropout: float = Field(0.0, ge=0, lt=1, description="On embeddings and on each residual write.")
    attention_dropout: float = Field(0.0, ge=0, lt=1, description="On the attention weights.")
    init_std: float = Field(0.02, gt=0, description="Standard deviation of initial matrices and embeddings.")
    init_scale_residual: bool = Field(
        True, description="Divide the deviation of residual-writing matrices by sqrt(2 x num_layers)."
    )

    @model_validator(mode="before")
    @classmethod
    def _apply_preset(cls, values: Any) -> Any:
        # A value of the wrong type is left to the ordinary field checks.
        preset = values.get("preset", "gpt") if isinstance(values, dict) else None
        return {**PRESETS[preset], **values} if isinstance(preset, str) and preset in PRESETS else values

    @model_validator(mode="after")
    def _check_shapes(self) -> "ModelConfig":
        if self.head_dim is None and self.hidden_size % self.num_heads:
            raise refusal(
                "hidden_size",
                self.hidden_size,
                f"must be divisible by model.num_heads = {self.num_heads} (or give model.head_dim)",
            )
        if self.num_heads % self.kv_heads:
            raise refusal("num_kv_heads", self.kv_heads, f"must divide model.num_heads = {self.num_heads}")
        if self.positions == "rotary" and self.head_size % 2:
            raise refusal("head_dim", self.head_size, "must be even with model.positions = rotary")
        return self

    @property
    def kv_heads(self) -> int:
        """Number of key/value heads."""
        return self.num_heads if self.num_kv_heads is None else self.num_kv_heads

    @property
    def head_size(self) -> int:
        """Width of one attention head."""
        return self.hidden_size // self.num_heads if self.head_dim is None else self.head_dim

    @property
    def gated(self) -> bool:
        """Whether the feed-forward network multiplies two input projections."""
        return self.feed_forward in GATED

    @property
    def drops(self) -> bool:
        """Whether there is any dropout."""
        return self.dropout > 0 or self.attention_dropout > 0

    @property
    def ffn_width(self) -> int:
        """Actual feed-forward width.

        A gated network has three matrices where an ungated one has two, so equal parameters mean 2/3 of the width.
        """
        width = 4 * self.hidden_size if self.ffn_hidden_size is None else self.ffn_hidden_size
        if self.gated and self.ffn_match_parameters:
            wanted = width * 2 / 3
            given = self.ffn_multiple_of
            # Products over a width that is odd in multiples of 8, also after tensor parallelism, miss the fast kernels.
            for multiple in (given,) if given else (128, 64, 32, 16, 8):
                rounded = max(multiple, round(wanted / multiple) * multiple)
                if abs(rounded - wanted) <= 0.02 * wanted:
                    break
            return rounded
        return width
