"""Every combination of ingredients that an architecture of transformers computes, at ordinary and odd shapes."""

import itertools
from collections import Counter
from typing import Any

import pytest
import torch

from megaqk.config.model import ModelConfig
from megaqk.errors import UserError
from megaqk.exchange.architectures import IN, architecture_for
from megaqk.exchange.architectures.centred import Centred
from megaqk.exchange.architectures.own import Own
from megaqk.exchange.in_memory import model_of
from megaqk.exchange.transformers_model import TransformersModel
from megaqk.model.context import ModelContext
from megaqk.model.decoder import Decoder
from tests.unit.exchange.tiny import (
    LENGTH,
    SHAPES,
    TOKENS,
    combinations,
    decoder_of,
    described,
    load_into,
    our_logits,
    relative_error,
    some_ids,
    tensors_of,
    tiny,
)

TOLERANCE = 1e-5
EXPORTED = {"every head its own": 120, "grouped": 120, "grouped, wide": 104, "not divided": 88}
SAME = ("norm", "bias", "feed_forward", "qk_norm", "positions", "tied_embedding", "num_layers", "hidden_size")
SAME_NUMBERS = ("num_heads", "kv_heads", "head_size", "ffn_width", "norm_eps")


def all_of(shape: str) -> list[ModelConfig]:
    models = [tiny(shape, **keys) for keys in combinations()]
    return [model for model in models if architecture_for(model) is not None]


ORDINARY, *ODD = SHAPES


@pytest.mark.parametrize(
    ("shape", "step"),
    [(ORDINARY, 1), *((shape, 2) for shape in ODD), *(pytest.param(shape, 1, marks=pytest.mark.full) for shape in ODD)],
)
def test_logits_are_ours_and_the_way_back_gives_the_same_bits(shape: str, step: int) -> None:
    """In steps of two models are tied and untied in turn."""
    ids = some_ids()
    for number, model in enumerate(all_of(shape)):
        if (number + number // 2) % step:
            continue
        decoder = decoder_of(model)
        there = described(decoder)
        theirs = model_of(there)
        expected = our_logits(decoder, ids)
        with torch.no_grad():
            error = relative_error(theirs(ids).logits, expected)
        assert error < TOLERANCE, f"{there.architecture.class_name} of {model}: relative error {error:.1e}"
        check_way_back(there, theirs.config, decoder, expected)


def check_way_back(there: TransformersModel, config: Any, decoder: Decoder, expected: torch.Tensor) -> None:
    keys, tensors = IN[there.architecture.model_type].from_transformers(config, there.tensors)
    back, model = ModelConfig(**keys), decoder.context.model
    if isinstance(there.architecture, Centred):
        # Another model that computes the same: its weights are not what they were.
        context = ModelContext(model=back, rows=TOKENS, tokens=TOKENS, max_positions=LENGTH)
        again = load_into(Decoder(context).eval().requires_grad_(False), tensors)
        assert relative_error(our_logits(again, some_ids()), expected) < TOLERANCE
        return
    names = (*SAME, *SAME_NUMBERS, *(("rotary_base",) if model.positions != "learned" else ()))
    assert [getattr(back, name) for name in names] == [getattr(model, name) for name in names]
    ours = tensors_of(decoder)
    assert ours.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert tensor.shape == ours[name].shape
        assert torch.equal(tensor.read(), ours[name].read()), f"{name} of {there.architecture.class_name}"


def test_how_many_there_are_and_where_they_go() -> None:
    assert {shape: len(all_of(shape)) for shape in SHAPES} == EXPORTED
    classes = Counter(architecture_for(model).class_name for model in all_of("every head its own"))  # type: ignore[union-attr]
    assert classes == {
        **{"Starcoder2ForCausalLM": 16, "LlamaForCausalLM": 16, "ArceeForCausalLM": 16, "DogeForCausalLM": 16},
        **{"PersimmonForCausalLM": 16, "StableLmForCausalLM": 16},
        **{"Qwen3ForCausalLM": 8, "ApertusForCausalLM": 8, "GPT2LMHeadModel": 8},
    }


@pytest.mark.parametrize(
    ("keys", "ingredients"),
    [
        (
            {"norm": "layernorm", "bias": True, "feed_forward": "swiglu", "positions": "rotary"},
            r"model.norm = layernorm or model.feed_forward = swiglu or model.bias = true: must be another",
        ),
        (
            {"norm": "rmsnorm", "bias": False, "feed_forward": "gelu", "positions": "learned"},
            r"model.norm = rmsnorm or model.positions = learned: must be another",
        ),
        (
            {"norm": "layernorm", "feed_forward": "gelu", "positions": "learned", "head_dim": 6},
            r"model.head_dim = 6 or model.positions = learned: must be another",
        ),
    ],
)
def test_what_none_computes_is_refused_by_ingredient(keys: dict[str, Any], ingredients: str) -> None:
    decoder = decoder_of(tiny(**keys))
    with pytest.raises(UserError, match=ingredients):
        described(decoder)
    own = described(decoder, remote_code=True)
    with torch.no_grad():
        assert relative_error(model_of(own)(some_ids()).logits, our_logits(decoder, some_ids())) < TOLERANCE


def test_own_code_computes_every_other_combination_and_comes_back() -> None:
    ids, own = some_ids(), Own()
    for shape, keys in zip(itertools.cycle(SHAPES), combinations(), strict=False):
        model = tiny(shape, **keys)
        if architecture_for(model) is not None:
            continue
        decoder = decoder_of(model)
        there = described(decoder, remote_code=True)
        theirs = model_of(there)
        with torch.no_grad():
            assert relative_error(theirs(ids).logits, our_logits(decoder, ids)) < TOLERANCE
        back, tensors = own.from_transformers(theirs.config, there.tensors)
        ours = tensors_of(decoder)
        assert ours.keys() == tensors.keys()
        assert all(torch.equal(tensor.read(), ours[name].read()) for name, tensor in tensors.items())
        assert ModelConfig(**back).model_dump(include=set(SAME)) == model.model_dump(include=set(SAME))
