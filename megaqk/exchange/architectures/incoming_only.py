"""Architectures that compute what a model of ours does by other tensors; in only."""

from math import sqrt
from typing import Any

import torch

from megaqk.exchange.architectures.architecture import Tensors, check_value
from megaqk.exchange.architectures.llama_family import NORMS, LlamaFamily
from megaqk.exchange.lazy import LazyTensor, constant, elementwise, gathered, part


def _scaled(x: LazyTensor, factor: float) -> LazyTensor:
    return x if factor == 1 else elementwise(x, lambda block: block * factor)


class Phi3(LlamaFamily):
    """Query, key and value, and gate and up, are one matrix each."""

    model_type, class_name = "phi3", "Phi3ForCausalLM"

    def plain(self, config: Any, theirs: Tensors) -> Tensors:
        """See `LlamaFamily`."""
        plain, head_dim = _Plain(theirs), self.keys(config)["head_dim"]
        query, key = (heads * head_dim for heads in (config.num_attention_heads, config.num_key_value_heads))
        ffn = config.intermediate_size
        for index in range(config.num_hidden_layers):
            layer = f"model.layers.{index}."
            for fused, parts in (
                ("self_attn.qkv_proj", {"self_attn.q_proj": query, "self_attn.k_proj": key, "self_attn.v_proj": key}),
                ("mlp.gate_up_proj", {"mlp.gate_proj": ffn, "mlp.up_proj": ffn}),
            ):
                whole, first = theirs[f"{layer}{fused}.weight"], 0
                for name, count in parts.items():
                    plain[f"{layer}{name}.weight"] = part(whole, first, count)
                    first += count
        return plain


class Helium(LlamaFamily):
    """Neighbouring features rotate together: even features of a head first, then odd ones, are Llama's order."""

    model_type, class_name = "helium", "HeliumForCausalLM"

    def plain(self, config: Any, theirs: Tensors) -> Tensors:
        """See `LlamaFamily`."""
        plain, head_dim = _Plain(theirs), self.keys(config)["head_dim"]
        within = torch.cat([torch.arange(0, head_dim, 2), torch.arange(1, head_dim, 2)])
        for name in [f"model.layers.{i}.self_attn.{x}_proj" for i in range(config.num_hidden_layers) for x in "qk"]:
            for tensor in (f"{name}.weight", f"{name}.bias"):
                if tensor in theirs:
                    x = theirs[tensor]
                    rows = torch.arange(x.shape[0]).view(-1, head_dim)[:, within].flatten()
                    plain[tensor] = gathered(x, rows)
        return plain


class Olmo(LlamaFamily):
    """LayerNorm whose weights are all 1."""

    model_type, class_name = "olmo", "OlmoForCausalLM"
    norm = "layernorm"

    def keys(self, config: Any) -> dict[str, Any]:
        """See `LlamaFamily`."""
        check_value(config, "clip_qkv")
        # Fixed in its code.
        config.rms_norm_eps = 1e-5
        return super().keys(config)

    def plain(self, config: Any, theirs: Tensors) -> Tensors:
        """See `LlamaFamily`."""
        norms = [f"layers.{i}.{name}" for i in range(config.num_hidden_layers) for name in NORMS]
        return _Plain(theirs, {f"model.{x}.weight": constant((config.hidden_size,), 1.0) for x in [*norms, "norm"]})


class Gemma(LlamaFamily):
    """Weights of norms count from 1, and the embedding's rows are longer on the way in than in the head."""

    model_type, class_name = "gemma", "GemmaForCausalLM"

    def keys(self, config: Any) -> dict[str, Any]:
        """See `LlamaFamily`."""
        check_value(config, "use_bidirectional_attention", False)
        return {**super().keys(config), "tied_embedding": False}

    def plain(self, config: Any, theirs: Tensors) -> Tensors:
        """See `LlamaFamily`."""
        names = [f"model.layers.{i}.{name}" for i in range(config.num_hidden_layers) for name in NORMS]
        shifted = {f"{x}.weight": elementwise(theirs[f"{x}.weight"], _one_more) for x in [*names, "model.norm"]}
        return _untied(config, _Plain(theirs, shifted), sqrt(config.hidden_size))


def _one_more(block: torch.Tensor) -> torch.Tensor:
    return block + 1


class Granite(LlamaFamily):
    """Llama with a factor for the embedding, the logits, what blocks write, and attention."""

    model_type, class_name = "granite", "GraniteForCausalLM"

    def keys(self, config: Any) -> dict[str, Any]:
        """See `LlamaFamily`."""
        return {**super().keys(config), "tied_embedding": False}

    def plain(self, config: Any, theirs: Tensors) -> Tensors:
        """See `LlamaFamily`."""
        plain, head_dim = _Plain(theirs), self.keys(config)["head_dim"]
        for index in range(config.num_hidden_layers):
            for name, factor in (
                ("self_attn.q_proj", config.attention_multiplier * sqrt(head_dim)),
                ("self_attn.o_proj", config.residual_multiplier),
                ("mlp.down_proj", config.residual_multiplier),
            ):
                for tensor in [f"model.layers.{index}.{name}.{kind}" for kind in ("weight", "bias")]:
                    if tensor in theirs:
                        plain[tensor] = _scaled(theirs[tensor], factor)
        plain = _untied(config, plain, config.embedding_multiplier)
        plain["lm_head.weight"] = _scaled(plain["lm_head.weight"], 1 / config.logits_scaling)
        return plain


class _Plain(dict[str, LazyTensor]):
    """Tensors in place of others; what is not among them is looked up there, by the way that notes what was used."""

    def __init__(self, theirs: Tensors, others: Tensors | None = None) -> None:
        super().__init__(others or {})
        self._theirs = theirs

    def __missing__(self, name: str) -> LazyTensor:
        return self._theirs[name]

    def __contains__(self, name: object) -> bool:
        return super().__contains__(name) or name in self._theirs


def _untied(config: Any, plain: _Plain, factor: float) -> _Plain:
    """With an input table that is longer by a factor than the head's, where there was one for both."""
    table = plain["model.embed_tokens.weight"]
    if config.tie_word_embeddings:
        plain["lm_head.weight"] = table
    plain["model.embed_tokens.weight"] = _scaled(table, factor)
    return plain
