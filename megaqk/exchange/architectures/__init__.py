"""The architectures of transformers that compute what models of ours do."""

from megaqk.config.model import ModelConfig
from megaqk.config.yaml_text import show
from megaqk.errors import UserError
from megaqk.exchange.architectures.architecture import Architecture
from megaqk.exchange.architectures.centred import Centred
from megaqk.exchange.architectures.doge import Doge
from megaqk.exchange.architectures.gpt2 import Gpt2
from megaqk.exchange.architectures.incoming_only import Gemma, Granite, Helium, Olmo, Phi3
from megaqk.exchange.architectures.llama import (
    Apertus,
    Arcee,
    Llama,
    Mistral,
    Qwen2,
    Qwen3,
    SeedOss,
    SmolLm3,
    Starcoder2,
)
from megaqk.exchange.architectures.own import Own
from megaqk.exchange.architectures.persimmon import Persimmon
from megaqk.exchange.architectures.stablelm import StableLm

_RMS = (Llama(), Mistral(), SmolLm3(), Qwen3(), Arcee(), Apertus())

OUT: tuple[Architecture, ...] = (
    *(Gpt2(), *_RMS, Starcoder2(), Persimmon(), StableLm()),
    *(Centred(architecture) for architecture in _RMS),
    Doge(),
)
"""Those that a model may go to, in order of preference."""

_IN_ONLY = (Qwen2(), SeedOss(), Phi3(), Helium(), Olmo(), Gemma(), Granite())
IN: dict[str, Architecture] = {one.model_type: one for one in (*OUT, *_IN_ONLY, Own()) if not isinstance(one, Centred)}
"""Those that a model may come from, by what `config.json` calls them."""


def architecture_for(model: ModelConfig) -> Architecture | None:
    """The architecture that computes what a model does; None if there is none."""
    return next((one for one in OUT if not one.obstacles(model)), None)


def refusal_of(model: ModelConfig) -> UserError:
    """Why there is no architecture for a model: what has to change for the ones that lack least."""
    lacking = [one.obstacles(model) for one in OUT]
    fewest = min(map(len, lacking))
    values = {**dict(model), "head_dim": model.head_size}
    options = [
        " with ".join(f"model.{key} = {show(values[key])}" for key in keys) for keys in lacking if len(keys) == fewest
    ]
    return UserError(
        f"{' or '.join(dict.fromkeys(options))}: must be another, no architecture of transformers computes it with the "
        "rest of the model; or give --remote-code, which writes the model's own code beside it"
    )
