"""What TensorBoard shows of a run beside its curves: their layout, the configuration, the table of hyper-parameters.

TensorBoard keeps the first of these for each tag of a run, whatever a resumed run writes; only text is a series.
"""

import json
import time
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.plugins.custom_scalar import layout_pb2
from tensorboard.plugins.custom_scalar import metadata as custom_scalar
from tensorboard.plugins.hparams import api_pb2, plugin_data_pb2, summary_v2
from tensorboard.plugins.hparams import metadata as hparams
from tensorboard.plugins.text.summary_v2 import text_pb
from tensorboard.util.tensor_util import make_tensor_proto

from megaqk.config.loading import dump_config
from megaqk.config.root import Config

LAYOUT = {
    "loss": {
        "training and validation": ["loss", "valid_loss", "valid/.*/loss"],
        "validation perplexity": ["valid_perplexity", "valid/.*/perplexity"],
        "validation bits per byte": ["valid_bits_per_byte", "valid/.*/bits_per_byte"],
    },
    "learning rate and multiplier by group": {"learning rate": ["lr/.*"], "multiplier": ["multiplier/.*"]},
    "gradient norm": {"gradient norm": ["grad_norm"], "skipped steps": ["skipped_steps"]},
    "throughput": {
        "tokens per second": ["tokens_per_second"],
        "model FLOP/s utilisation": ["mfu"],
        "model FLOP/s": ["model_flops_per_second"],
    },
    "memory": {"peak bytes of the fullest rank": ["peak_memory_bytes"]},
}
"""Charts by category, each with patterns of the tags that it draws."""

METRICS = ("valid_loss", "valid_perplexity", "loss", "tokens_per_second")
"""What the table of runs has beside hyper-parameters, the last value of each."""

COLUMNS = {"qk_timing.enabled", "qk_timing.multiplier", "qk_timing.hold", "optimizer.lr", "training.seed"}
"""The hyper-parameters that the table shows at first: it takes five, those that are said to differ before others."""

_NOT_VARIED = {"run", "checkpoint", "logging", "probes", "evaluation", "faults", "deepspeed"}
"""Sections that say nothing of what is learned."""


def opening(config: Config) -> Iterator[Any]:
    """What a run says of itself at its start, as summaries for an event file."""
    yield _layout()
    yield text_pb("configuration", f"```yaml\n{dump_config(config)}```")
    values = hyper_parameters(config)
    yield _table(values)
    # No name for its group: the table then calls a run by its folder.
    yield summary_v2.hparams_pb(values, trial_id="")


def closing() -> Any:
    """What a run that has come to its end says in the table."""
    end = plugin_data_pb2.SessionEndInfo(status=api_pb2.STATUS_SUCCESS, end_time_secs=time.time())
    data = hparams.create_summary_metadata(plugin_data_pb2.HParamsPluginData(session_end_info=end))
    return _summary(hparams.SESSION_END_INFO_TAG, data, hparams.NULL_TENSOR)


def hyper_parameters(config: Config) -> dict[str, bool | int | float | str]:
    """Dotted keys and values; what TensorBoard has no type for, a list or null, is text."""
    flat: dict[str, bool | int | float | str] = {}

    def visit(key: str, value: Any) -> None:
        if isinstance(value, dict) and value:
            for name, inner in value.items():
                visit(f"{key}.{name}" if key else name, inner)
        else:
            flat[key] = value if isinstance(value, bool | int | float | str) else json.dumps(value)

    visit("", config.model_dump(mode="json", exclude=_NOT_VARIED))
    return flat


def _layout() -> Any:
    layout = layout_pb2.Layout()
    for category, charts in LAYOUT.items():
        added = layout.category.add(title=category)
        for title, tags in charts.items():
            # Patterns may match anywhere in a tag: `loss` alone would draw `valid_loss` too.
            added.chart.add(title=title, multiline={"tag": [f"^{tag}$" for tag in tags]})
    tensor = make_tensor_proto(layout.SerializeToString(), dtype=np.object_)
    return _summary(custom_scalar.CONFIG_SUMMARY_TAG, custom_scalar.create_summary_metadata(), tensor)


def _table(values: Mapping[str, bool | int | float | str]) -> Any:
    """Which columns the table has; without it TensorBoard makes one of every tag."""
    infos = []
    for name, value in values.items():
        kind = api_pb2.DATA_TYPE_STRING if isinstance(value, str) else api_pb2.DATA_TYPE_FLOAT64
        kind = api_pb2.DATA_TYPE_BOOL if isinstance(value, bool) else kind
        infos.append(api_pb2.HParamInfo(name=name, type=kind, differs=name in COLUMNS))
    experiment = api_pb2.Experiment(
        time_created_secs=time.time(),
        hparam_infos=infos,
        metric_infos=[api_pb2.MetricInfo(name=api_pb2.MetricName(tag=tag)) for tag in METRICS],
    )
    data = hparams.create_summary_metadata(plugin_data_pb2.HParamsPluginData(experiment=experiment))
    return _summary(hparams.EXPERIMENT_TAG, data, hparams.NULL_TENSOR)


def _summary(tag: str, metadata: Any, tensor: Any) -> Any:
    return Summary(value=[Summary.Value(tag=tag, metadata=metadata, tensor=tensor)])
