"""What an architecture of transformers is to a model of ours: which ingredients it computes, and the way in and out."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

from megaqk.config.model import ModelConfig
from megaqk.errors import UserError
from megaqk.exchange.lazy import LazyTensor, constant

Tensors = Mapping[str, LazyTensor]

NO_POSITIONS = 1e30
"""A rotation so many times slower is none: the angle of any position is below the rounding of fp32."""
_GATED_ACTIVATIONS = {"silu": "swiglu", "swish": "swiglu", "gelu_pytorch_tanh": "geglu", "gelu_new": "geglu"}
_UNGATED_ACTIVATIONS = {"gelu_pytorch_tanh": "gelu", "gelu_new": "gelu", "relu2": "relu_squared"}
_THEIR_ACTIVATIONS = {
    "gelu": "gelu_pytorch_tanh",
    "geglu": "gelu_pytorch_tanh",
    "swiglu": "silu",
    "relu_squared": "relu2",
}
UNGATED = frozenset({"gelu", "relu_squared"})
ROTATING = frozenset({"rotary", "none"})


class Architecture(ABC):
    """One of transformers' architectures.

    Attributes:
        model_type: What `config.json` calls it.
        class_name: The class with its language-model head.
        exports: Values of each ingredient that it computes; what is not named may be anything.
        derived_heads: Whether its head_dim is hidden_size / num_heads, whatever a configuration says.
        divided_heads: Whether it refuses a hidden_size that num_heads does not divide.
    """

    model_type: ClassVar[str]
    class_name: ClassVar[str]
    exports: ClassVar[Mapping[str, frozenset[Any]]] = {}
    derived_heads: ClassVar[bool] = False
    divided_heads: ClassVar[bool] = False

    def obstacles(self, model: ModelConfig) -> list[str]:
        """Keys of the model section whose values it does not compute, the worst first."""
        keys = [key for key, values in self.exports.items() if getattr(model, key) not in values]
        width = model.num_heads * model.head_size
        odd = model.positions == "none" and model.head_size % 2
        wrong_width = (self.derived_heads and width != model.hidden_size) or (
            self.divided_heads and model.hidden_size % model.num_heads
        )
        return [*keys, *(["head_dim"] if odd or wrong_width else [])]

    def context_limit(self, config: Any) -> tuple[str, int] | None:
        """The key and the number of tokens beyond which it is not what a model of ours computes; None: it has none."""
        window = getattr(config, "sliding_window", None) if getattr(config, "use_sliding_window", True) else None
        return None if window is None else ("sliding_window", window)

    @abstractmethod
    def config(self, model: ModelConfig, *, tokens: int, positions: int) -> dict[str, Any]:
        """What its `config.json` says of a model with a vocabulary of `tokens` and at most `positions` tokens."""

    @abstractmethod
    def to_transformers(self, model: ModelConfig, ours: Tensors) -> dict[str, LazyTensor]:
        """Its tensors by their names there, from those of a model by global name."""

    @abstractmethod
    def from_transformers(self, config: Any, theirs: Tensors) -> tuple[dict[str, Any], dict[str, LazyTensor]]:
        """Keys of the model section and tensors by global name.

        Args:
            config: Its configuration, as transformers' own class has read it.
            theirs: Its tensors.

        Raises:
            UserError: It computes something that a model of ours does not; the line names the key.
        """


def their_activation(model: ModelConfig) -> str:
    """What transformers calls the activation of a model."""
    return _THEIR_ACTIVATIONS[model.feed_forward]


def our_feed_forward(config: Any, *, gated: bool, key: str = "hidden_act") -> str:
    """What we call the feed-forward network of a configuration.

    Raises:
        UserError: There is none with this activation.
    """
    known = _GATED_ACTIVATIONS if gated else _UNGATED_ACTIVATIONS
    activation = getattr(config, key)
    if activation not in known:
        raise refused(key, activation, f"one of {', '.join(known)}")
    return known[activation]


def refused(key: str, value: object, allowed: str) -> UserError:
    """The refusal of a key of `config.json`."""
    return UserError(f"config.json: {key} = {value}: must be {allowed}")


def check_value(config: Any, key: str, *allowed: object) -> None:
    """Refuse any other value of a key; one that is not there is none.

    Raises:
        UserError: In that case.
    """
    if (value := getattr(config, key, None)) not in (None, *allowed):
        raise refused(key, value, " or ".join(map(str, allowed)) or "null")


def rope_parameters(model: ModelConfig) -> dict[str, Any]:
    """The rotation of a model, or one so slow that it is none."""
    kind = {"rope_type": "default"} if model.positions == "rotary" else {"rope_type": "linear", "factor": NO_POSITIONS}
    return {**kind, "rope_theta": model.rotary_base, "partial_rotary_factor": 1.0}


def our_positions(config: Any) -> dict[str, Any]:
    """The keys of a configuration's rotation.

    Raises:
        UserError: It is scaled, or of a part of each head.
    """
    rope: dict[str, Any] = config.rope_parameters
    if (share := rope.get("partial_rotary_factor", 1.0)) != 1:
        raise refused("rope_parameters.partial_rotary_factor", share, "1")
    if (kind := rope.get("rope_type", "default")) == "default":
        return {"positions": "rotary", "rotary_base": float(rope["rope_theta"])}
    if kind == "linear" and rope.get("factor") == NO_POSITIONS:
        return {"positions": "none", "rotary_base": float(rope["rope_theta"])}
    raise refused("rope_parameters.rope_type", kind, "default (positions are not scaled)")


def common_keys(config: Any, *, norm: str, eps: str) -> dict[str, Any]:
    """Keys of the model section that most configurations have under the same names.

    Args:
        config: The configuration.
        norm: The kind of its norms.
        eps: Its key for what is added in them.
    """
    heads = config.num_attention_heads
    kv_heads, head_dim = getattr(config, "num_key_value_heads", None), getattr(config, "head_dim", None)
    return {
        "num_layers": config.num_hidden_layers,
        "hidden_size": config.hidden_size,
        "num_heads": heads,
        "num_kv_heads": kv_heads or heads,
        "head_dim": head_dim or config.hidden_size // heads,
        "ffn_match_parameters": False,
        "norm": norm,
        "norm_eps": getattr(config, eps),
        "tied_embedding": bool(config.tie_word_embeddings),
        "qk_norm": False,
    }


def zero_bias(weight: LazyTensor) -> LazyTensor:
    """The bias of a module that has none."""
    return constant(weight.shape[:1], 0.0)
