"""What the command-line tests share: a tiny text, prepared once, and a configuration that trains on it in seconds."""

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from megaqk.config.yaml_text import format_yaml

WORDS = ["the", "cat", "sat", "on", "a", "mat", "and", "saw", "nine", "old", "dogs", "run", "home", "by", "night"]
DOCUMENTS = 120


@pytest.fixture(scope="session")
def data_section(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The `data` section of a prepared tiny text."""
    from megaqk.config.data import DataConfig
    from megaqk.corpus.prepare import prepare

    folder = tmp_path_factory.mktemp("data")
    words = random.Random(0)
    lines = [" ".join(words.choices(WORDS, k=words.randint(10, 40))) for _ in range(DOCUMENTS)]
    (folder / "text.jsonl").write_text("".join(json.dumps({"text": line}) + "\n" for line in lines))
    section = {"text": str(folder / "text.jsonl"), "cache_dir": str(folder / "cache"), "vocab_size": 300}
    section["split"] = [0.7, 0.2, 0.1]
    prepare(DataConfig.model_validate(section))
    return section


@pytest.fixture(scope="session")
def write_config(data_section: dict[str, Any]) -> Callable[..., Path]:
    """Write the configuration of a run into its folder and return the file."""

    def write(folder: Path, **sections: dict[str, Any]) -> Path:
        base: dict[str, dict[str, Any]] = {
            "run": {"dir": str(folder / "run")},
            "model": {"preset": "gpt", "num_layers": 4, "hidden_size": 32, "num_heads": 4, "init_std": 0.1},
            "parallel": {},
            "optimizer": {"lr": 3e-3},
            "schedule": {"kind": "cosine", "warmup_steps": 2, "min_lr_ratio": 0.1},
            "qk_timing": {"enabled": True, "multiplier": 0.1, "unit": "steps", "hold": 4, "release_end": 8},
            "data": data_section,
            "training": {
                "steps": 10,
                "global_batch_size": 8,
                "micro_batch_size": 2,
                "sequence_length": 16,
                "seed": 5,
            },
            "checkpoint": {"every": 3, "keep": 2},
            "logging": {"every": 1},
            "evaluation": {"every": 5, "batches": 1},
        }
        for name, values in sections.items():
            base[name] = {**base.get(name, {}), **values}
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / "config.yaml"
        path.write_text(format_yaml(base))
        return path

    return write


@pytest.fixture
def relative_corpus(data_section: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A `data` section that names its corpus relative to the folder in which a run is started."""
    [folder] = [path.parent for path in Path(data_section["cache_dir"]).glob("*/corpus.bin")]
    monkeypatch.chdir(folder)
    return {"text": None, "corpus": "corpus", "tokenizer": "tokenizer.model"}
