"""GPT-2: LayerNorm, no gate, learned positions; matrices lie there by column."""

from collections.abc import Mapping
from typing import Any

from megaqk.config.model import ModelConfig
from megaqk.exchange.architectures.architecture import (
    UNGATED,
    Architecture,
    Tensors,
    check_value,
    common_keys,
    our_feed_forward,
    their_activation,
    zero_bias,
)
from megaqk.exchange.architectures.llama import NO
from megaqk.exchange.architectures.stand_ins import bias_is_absent, copied_heads, head_rows
from megaqk.exchange.lazy import LazyTensor, gathered, joined, part, transposed

_KINDS = ("query", "key", "value")
_NORMS = {"ln_1": "attention_norm.", "ln_2": "ffn_norm."}
_LINEAR = {"attn.c_proj": "attention.output.", "mlp.c_fc": "ffn.input.up_", "mlp.c_proj": "ffn.output."}


class Gpt2(Architecture):
    """Query, key and value are one matrix, and every query head has a key head of its own."""

    model_type, class_name = "gpt2", "GPT2LMHeadModel"
    exports = {
        "norm": frozenset({"layernorm"}),
        "feed_forward": UNGATED,
        "positions": frozenset({"learned"}),
        "qk_norm": NO,
    }
    derived_heads = True

    def config(self, model: ModelConfig, *, tokens: int, positions: int) -> dict[str, Any]:
        """See `Architecture`."""
        return {
            "vocab_size": tokens,
            "n_positions": positions,
            "n_embd": model.hidden_size,
            "n_layer": model.num_layers,
            "n_head": model.num_heads,
            "n_inner": model.ffn_width,
            "activation_function": their_activation(model),
            "layer_norm_epsilon": model.norm_eps,
            "resid_pdrop": model.dropout,
            "embd_pdrop": model.dropout,
            "attn_pdrop": model.attention_dropout,
            "initializer_range": model.init_std,
            "tie_word_embeddings": model.tied_embedding,
        }

    def context_limit(self, config: Any) -> tuple[str, int] | None:
        """See `Architecture`."""
        return "n_positions", config.n_positions

    def to_transformers(self, model: ModelConfig, ours: Tensors) -> dict[str, LazyTensor]:
        """See `Architecture`."""
        named = {"transformer.wte.weight": ours["embedding.weight"]}
        named["transformer.wpe.weight"] = ours["embedding_output.positions.weight"]
        copies = [head // (model.num_heads // model.kv_heads) for head in range(model.num_heads)]
        rows = head_rows(copies, model.head_size)

        def put(theirs: str, mine: str, weight: LazyTensor, *, linear: bool) -> None:
            named[f"{theirs}.weight"] = transposed(weight) if linear else weight
            named[f"{theirs}.bias"] = ours.get(f"{mine}bias") or zero_bias(weight)

        for index in range(model.num_layers):
            theirs, mine = f"transformer.h.{index}.", f"layers.{index}."
            for names, linear in ((_NORMS, False), (_LINEAR, True)):
                for their, our in names.items():
                    put(f"{theirs}{their}", f"{mine}{our}", ours[f"{mine}{our}weight"], linear=linear)
            qkv = {}
            for kind in ("weight", "bias") if model.bias else ("weight",):
                parts = [ours[f"{mine}attention.qkv.{one}_{kind}"] for one in _KINDS]
                if model.kv_heads < model.num_heads:
                    parts = [parts[0], *(gathered(x, rows) for x in parts[1:])]
                qkv[kind] = joined(parts)
            named[f"{theirs}attn.c_attn.weight"] = transposed(qkv["weight"])
            named[f"{theirs}attn.c_attn.bias"] = qkv.get("bias") or zero_bias(qkv["weight"])
        put("transformer.ln_f", "final_norm.norm.", ours["final_norm.norm.weight"], linear=False)
        if not model.tied_embedding:
            named["lm_head.weight"] = ours["head.weight"]
        return named

    def from_transformers(self, config: Any, theirs: Tensors) -> tuple[dict[str, Any], dict[str, LazyTensor]]:
        """See `Architecture`."""
        for key, value in (
            ("scale_attn_weights", True),
            ("scale_attn_by_inverse_layer_idx", False),
            ("add_cross_attention", False),
        ):
            check_value(config, key, value)
        width, heads = config.n_embd, config.n_head
        keys = {
            **common_keys(config, norm="layernorm", eps="layer_norm_epsilon"),
            "ffn_hidden_size": config.n_inner or 4 * width,
            "feed_forward": our_feed_forward(config, gated=False, key="activation_function"),
            "positions": "learned",
        }
        # The base model's own files have no prefix.
        root = "" if "wte.weight" in theirs else "transformer."
        biases, weights = dict[str, LazyTensor](), dict[str, LazyTensor]()

        def take(their: str, mine: str, *, linear: bool) -> None:
            weight = theirs[f"{root}{their}.weight"]
            weights[mine] = transposed(weight) if linear else weight
            biases[mine] = theirs[f"{root}{their}.bias"]

        for index in range(config.n_layer):
            for names, linear in ((_NORMS, False), ({**_LINEAR, "attn.c_attn": "qkv"}, True)):
                for their, our in names.items():
                    take(f"h.{index}.{their}", f"layers.{index}.{our}", linear=linear)
        take("ln_f", "final_norm.norm.", linear=False)
        keys["bias"] = not bias_is_absent(config, biases.values())
        fused = [x for named in (weights, biases) for mine, x in named.items() if mine.endswith("qkv")]
        both = [part(x, place * width, width) for x in fused for place in (1, 2)]
        kv_heads = keys["num_kv_heads"] = copied_heads(config, heads, both)
        rows = head_rows(range(0, heads, heads // kv_heads), width // heads)
        tensors = {
            "embedding.weight": theirs[f"{root}wte.weight"],
            "embedding_output.positions.weight": theirs[f"{root}wpe.weight"],
        }
        for kind, named in (("weight", weights), ("bias", biases if keys["bias"] else {})):
            for mine, x in named.items():
                tensors.update(_split(x, mine, kind, width, rows if kv_heads < heads else None))
        if not keys["tied_embedding"]:
            tensors["head.weight"] = theirs["lm_head.weight"]
        return keys, tensors


def _split(x: LazyTensor, mine: str, kind: str, width: int, rows: Any) -> Mapping[str, LazyTensor]:
    """A tensor by its global name; of query, key and value three."""
    if not mine.endswith("qkv"):
        return {f"{mine}{kind}": x}
    parts = [part(x, place * width, width) for place in range(3)]
    if rows is not None:
        parts = [parts[0], *(gathered(one, rows) for one in parts[1:])]
    layer = mine.removesuffix("qkv")
    return {f"{layer}attention.qkv.{one}_{kind}": x for one, x in zip(_KINDS, parts, strict=True)}
