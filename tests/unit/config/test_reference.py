from pathlib import Path

import pytest

from megaqk.config.loading import load_config
from megaqk.config.reference import reference_markdown
from megaqk.config.root import Config
from megaqk.parallel.world import World
from megaqk.runtime.launch import Launch

CONFIGS = Path(__file__).parents[3] / "configs"


def test_every_key_is_explained() -> None:
    for name, field in Config.model_fields.items():
        for key, inner in getattr(field.annotation, "model_fields", {}).items():
            assert inner.description, f"{name}.{key} has no description"


def test_the_reference_beside_the_configurations_is_up_to_date() -> None:
    assert (CONFIGS / "README.md").read_text(encoding="utf-8") == reference_markdown(), (
        "run: python -m megaqk.config.reference > configs/README.md"
    )


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_shipped_configuration_is_valid(path: Path) -> None:
    config = load_config(path)
    parallel = config.parallel
    assert World(config, Launch(world_size=parallel.tensor * parallel.pipeline)).data == 1


def test_the_pair_differs_in_its_blocks_only() -> None:
    gpt, llama = (load_config(CONFIGS / f"{name}-270m.yaml") for name in ("gpt", "llama"))
    differing = {key for key in Config.model_fields if getattr(gpt, key) != getattr(llama, key)}
    assert differing == {"run", "model"}
    ingredients = {key for key, value in gpt.model if value != getattr(llama.model, key)}
    assert ingredients == {"preset", "norm", "bias", "feed_forward", "positions"}
