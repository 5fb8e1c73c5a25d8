"""The README.md of an exported model: what it is, what it was trained on and how far, with which configuration."""

import json
import math
from contextlib import suppress

from megaqk.config.loading import dump_config
from megaqk.config.yaml_text import show
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
        *((key, show(getattr(model, key))) for key in _INGREDIENTS),
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
        *_losses(source),
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
inputs = tokenizer("Once upon a time", return_tensors="pt")
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


def _losses(source: CheckpointModel) -> list[tuple[str, str]]:
    """The validation loss of this very step, or the last that the run wrote down before it."""
    manifest = source.checkpoint.manifest
    step, loss = manifest["progress"]["step"], manifest["valid_loss"]
    # Beside the folder of checkpoints, if it has not been moved.
    metrics = source.checkpoint.path.absolute().parent.parent / "metrics.jsonl"
    with suppress(OSError, ValueError, TypeError):
        records = [json.loads(line) for line in metrics.read_text().splitlines()] if loss is None else []
        measured = [one for one in records if one.get("valid_loss") is not None and one["step"] <= step]
        if measured:
            step, loss = measured[-1]["step"], measured[-1]["valid_loss"]
    if loss is None:
        return [("validation loss", "not measured")]
    perplexity = math.exp(min(loss, 700))
    return [(f"validation loss at step {step:,}", f"{loss:.4f} nats a token (perplexity {perplexity:.4g})")]


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
