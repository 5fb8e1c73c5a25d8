"""What the event files say beside the curves, read with TensorBoard's own reader."""

import re
from contextlib import closing
from pathlib import Path
from typing import Any

from tensorboard.backend.event_processing import plugin_event_accumulator
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar import layout_pb2
from tensorboard.plugins.hparams import api_pb2, metadata

from megaqk.config.loading import build_config, dump_config
from megaqk.config.root import Config
from megaqk.training.dashboards import COLUMNS, METRICS, hyper_parameters
from megaqk.training.metrics import MetricsWriter

RECORD = {
    "step": 1,
    "tokens": 8,
    "loss": 2.0,
    "grad_norm": 1.0,
    "lr/upper_qk": 1e-3,
    "multiplier/upper_qk": 0.1,
    "tokens_per_second": 1.0,
    "model_flops_per_second": 1.0,
    "mfu": 0.5,
    "peak_memory_bytes": 1,
    "valid_loss": 3.0,
    "valid_perplexity": 20.1,
    "valid_bits_per_byte": 1.5,
    "valid/books/loss": 3.0,
    "valid/books/perplexity": 20.1,
    "valid/books/bits_per_byte": 1.5,
}


def config(lr: float = 1e-3, **sections: Any) -> Config:
    return build_config({"optimizer": {"lr": lr}, "qk_timing": {"enabled": True}, **sections})


def read(run_dir: Path) -> EventAccumulator:
    reader = EventAccumulator(str(run_dir / "tensorboard"))
    reader.Reload()
    return reader


def content(reader: EventAccumulator, tag: str) -> bytes:
    data: bytes = reader.SummaryMetadata(tag).plugin_data.content
    return data


def texts(run_dir: Path) -> list[tuple[int, str]]:
    """What the server shows: it has another reader, which takes a later start's word for points of any kind."""
    reader = plugin_event_accumulator.EventAccumulator(str(run_dir / "tensorboard"))
    reader.Reload()
    return [(event.step, event.tensor_proto.string_val[0].decode()) for event in reader.Tensors("configuration")]


def test_the_layout_draws_every_metric_but_the_count_of_tokens_once(tmp_path: Path) -> None:
    with closing(MetricsWriter(tmp_path, config=config())) as writer:
        writer.write(RECORD)
    reader = read(tmp_path)
    [event] = reader.Tensors("custom_scalars__config__")
    layout = layout_pb2.Layout.FromString(event.tensor_proto.string_val[0])
    titles = [category.title for category in layout.category]
    assert titles == ["loss", "learning rate and multiplier by group", "gradient norm", "throughput", "memory"]
    charts = [chart for category in layout.category for chart in category.chart]
    drawn = {tag: [c.title for c in charts if any(re.search(p, tag) for p in c.multiline.tag)] for tag in RECORD}
    assert drawn.pop("step") == drawn.pop("tokens") == []
    assert drawn["lr/upper_qk"] == ["learning rate"]
    assert drawn["loss"] == drawn["valid_loss"] == drawn["valid/books/loss"] == ["training and validation"]
    assert {len(names) for names in drawn.values()} == {1}


def test_the_configuration_is_text_that_a_resumed_run_adds_to(tmp_path: Path) -> None:
    for resume_step, lr in ((0, 1e-3), (10, 2e-3), (20, 3e-3), (10, 4e-3)):
        with closing(MetricsWriter(tmp_path, resume_step=resume_step, config=config(lr))) as writer:
            for step in range(resume_step + 1, resume_step + 15):
                writer.write(RECORD | {"step": step})
    # The start from step 10 has voided what the two before it wrote after that step.
    assert texts(tmp_path) == [
        (1, f"```yaml\n{dump_config(config(1e-3))}```"),
        (11, f"```yaml\n{dump_config(config(4e-3))}```"),
    ]
    steps = [event.step for event in read(tmp_path).Scalars("loss")]
    assert steps == list(range(1, 25))


def test_the_table_has_the_hyper_parameters_and_the_validation_loss(tmp_path: Path) -> None:
    mine = config(training={"seed": 7})
    writer = MetricsWriter(tmp_path, config=mine)
    writer.write(RECORD)
    experiment = metadata.parse_experiment_plugin_data(content(read(tmp_path), metadata.EXPERIMENT_TAG))
    start = metadata.parse_session_start_info_plugin_data(content(read(tmp_path), metadata.SESSION_START_INFO_TAG))
    assert [metric.name.tag for metric in experiment.metric_infos] == list(METRICS)
    assert METRICS[0] == "valid_loss"
    values = hyper_parameters(mine)
    assert {info.name for info in experiment.hparam_infos} == values.keys()
    # A group without a name is called as its run.
    assert start.group_name == ""
    assert start.hparams["training.seed"].number_value == 7
    assert start.hparams["qk_timing.enabled"].bool_value is True
    assert start.hparams["optimizer.betas"].string_value == "[0.9, 0.95]"
    assert start.hparams["schedule.decay_steps"].string_value == "null"
    assert values.keys() >= COLUMNS
    assert {info.name for info in experiment.hparam_infos if info.differs} == COLUMNS
    kinds = {info.name: info.type for info in experiment.hparam_infos}
    assert kinds["training.seed"] == api_pb2.DATA_TYPE_FLOAT64
    assert kinds["qk_timing.enabled"] == api_pb2.DATA_TYPE_BOOL
    assert kinds["optimizer.betas"] == api_pb2.DATA_TYPE_STRING
    assert metadata.SESSION_END_INFO_TAG not in read(tmp_path).Tags()["tensors"]
    writer.finish()
    end = metadata.parse_session_end_info_plugin_data(content(read(tmp_path), metadata.SESSION_END_INFO_TAG))
    assert end.status == api_pb2.STATUS_SUCCESS
    assert end.end_time_secs >= start.start_time_secs
    writer.close()


def test_every_key_that_shapes_a_run_is_a_hyper_parameter() -> None:
    values = hyper_parameters(config())
    sections = {key.partition(".")[0] for key in values}
    assert sections == {"model", "parallel", "optimizer", "schedule", "qk_timing", "qk_clip", "data", "training"}
    assert values["qk_timing.layers.fraction"] == "[0.5, 1.0]"
    rules = {"rules": [{"multiplier": 0.2, "layers": {"range": [0, 4]}}]}
    ruled = hyper_parameters(build_config({"qk_timing": {"enabled": True, **rules}}))
    assert '"multiplier": 0.2' in str(ruled["qk_timing.rules"])
