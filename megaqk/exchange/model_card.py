"""The README.md of an exported model: what it is, what it was trained on and how far, with which configuration."""

import math
from typing import Any

from megaqk.config.loading import dump_config
from megaqk.exchange.source import CheckpointModel
from megaqk.exchange.transformers_model import TransformersModel

_INGREDIENTS = ("num_layers", "hidden_size", "num_heads", "norm", "feed_forward", "positions", "bias", "qk_norm")


def model_card(source: CheckpointModel, result: TransformersModel, dtype: str) -> str:
    """The text, in Markdown."""
    config, manifest = source.config, source.checkpoint.manifest
    model, progress = config.model, manifest["progress"]
    parameters = sum(math.prod(tensor.shape) for tensor in source.tensors.values())
    facts = [
        ("architecture", f"{result.architecture.class_name} of transformers 5 or later"),
        ("parameters", f"{parameters:,}"),
        *((key, str(getattr(model, key))) for key in _INGREDIENTS),
        ("head_dim", str(model.head_size)),
        ("num_kv_heads", str(model.kv_heads)),
        ("feed-forward width", str(model.ffn_width)),
        ("vocabulary", f"{source.tokens:,}"),
        ("sequence length", f"{config.training.sequence_length:,}"),
        ("weights", dtype),
    ]
    training = [
        ("steps", f"{progress['step']:,}"),
        ("tokens", f"{progress['tokens']:,}"),
        *_losses(manifest),
        ("optimizer", f"AdamW, peak learning rate {config.optimizer.lr:g}, {config.schedule.kind}"),
        ("precision", config.training.precision),
    ]
    trusting = ", trust_remote_code=True" if result.own_code else ""
    return f"""---
library_name: transformers
pipeline_tag: text-generation
---

# {config.run.dir.rstrip("/").rsplit("/", 1)[-1]}, step {progress["step"]}

A language model pretrained with megaqk.

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("DIR"{trusting})
tokenizer = AutoTokenizer.from_pretrained("DIR")
inputs = tokenizer("Once upon a time", return_tensors="pt", return_token_type_ids=False)
print(tokenizer.decode(model.generate(**inputs, max_new_tokens=50)[0]))
```

## Model

{_table(facts)}

## Training

{_table(training)}

## Data

{_data(source)}

## Configuration

```yaml
{dump_config(config).strip()}
```
"""


def _losses(manifest: dict[str, Any]) -> list[tuple[str, str]]:
    loss = manifest["valid_loss"]
    if loss is None:
        return [("validation loss", "not measured at this step")]
    return [("validation loss", f"{loss:.4f} nats a token (perplexity {math.exp(min(loss, 700)):.4g})")]


def _data(source: CheckpointModel) -> str:
    data = source.checkpoint.manifest["data"]
    rows = []
    for corpus in data.get("corpora", []):
        name = corpus["name"] or source.config.data.corpus or source.config.data.text
        rows.append((f"`{name}`", f"split {', '.join(f'{part:g}' for part in corpus['split'])}"))
    rows.append(("tokenizer", f"sha256 `{data.get('tokenizer') or 'unknown'}`"))
    return _table(rows)


def _table(rows: list[tuple[str, str]]) -> str:
    return "\n".join(["| | |", "| --- | --- |", *(f"| {name} | {value} |" for name, value in rows)])
