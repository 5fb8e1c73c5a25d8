from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megaqk.config.loading import build_config, dump_config, load_config
from megaqk.config.root import Config
from megaqk.config.yaml_text import parse_yaml
from megaqk.errors import UserError


def load(tmp_path: Path, text: str, *overrides: str) -> Config:
    path = tmp_path / "config.yaml"
    path.write_text(text, encoding="utf-8")
    return load_config(path, overrides)


@pytest.mark.parametrize("text", ["", "model:\n", "# nothing\n", "{}"])
def test_an_empty_file_or_section_means_the_defaults(tmp_path: Path, text: str) -> None:
    assert load(tmp_path, text) == Config()


def test_yaml_1_2_numbers_reach_their_fields(tmp_path: Path) -> None:
    config = load(tmp_path, "optimizer: {lr: 1e-4, eps: 1e-8, betas: [0.9, 0.95]}", "optimizer.weight_decay=1e-2")
    assert (config.optimizer.lr, config.optimizer.eps, config.optimizer.weight_decay) == (1e-4, 1e-8, 1e-2)
    assert config.optimizer.betas == (0.9, 0.95)


def test_overrides_replace_values_in_order(tmp_path: Path) -> None:
    config = load(
        tmp_path,
        "data: {text: builtin}\nparallel: {tensor: 4}",
        "parallel.tensor=2",
        "training.steps=5",
        "training.steps=7",
        "data.split=[0.8,0.1,0.1]",
        "model={preset: llama}",
        "run.dir=runs/a=b",
    )
    assert config.parallel.tensor == 2
    assert config.training.steps == 7
    assert config.data.split == (0.8, 0.1, 0.1)
    assert config.model.norm == "rmsnorm"
    assert config.run.dir == "runs/a=b"


def test_an_override_with_another_form_of_layers_replaces_the_old_one(tmp_path: Path) -> None:
    config = load(tmp_path, "qk_timing: {layers: {range: [0, 4]}}", "qk_timing.layers.fraction=[0.5,1]")
    assert config.qk_timing.layers.fraction == (0.5, 1.0)
    assert config.qk_timing.layers.range is None


def test_an_override_reaches_into_a_list_of_rules(tmp_path: Path) -> None:
    text = "qk_timing: {rules: [{hold: 0.1}, {layers: {list: [1]}}]}"
    config = load(tmp_path, text, "qk_timing.rules.0.hold=0.2", "qk_timing.rules.1.layers.range=[2,3]")
    assert config.qk_timing.rules[0].hold == 0.2
    assert config.qk_timing.rules[1].layers.range == (2, 3)


def test_an_override_reaches_one_of_two_aliases_only(tmp_path: Path) -> None:
    config = load(tmp_path, "qk_timing: {rules: [&rule {hold: 0.1}, *rule]}", "qk_timing.rules.0.hold=0.2")
    assert [rule.hold for rule in config.qk_timing.rules] == [0.2, 0.1]


def test_a_preset_fills_in_what_is_not_given(tmp_path: Path) -> None:
    model = load(tmp_path, "model: {preset: llama, feed_forward: gelu}").model
    assert (model.norm, model.bias, model.positions, model.tied_embedding) == ("rmsnorm", False, "rotary", False)
    assert model.feed_forward == "gelu"


REFUSALS = [
    # Unknown keys.
    ("model: {num_layer: 4}", "model.num_layer = 4: unknown key; did you mean model.num_layers?"),
    ("mdel: {}", "mdel = {}: unknown key; did you mean model?"),
    ("model: {steps: 4}", "model.steps = 4: unknown key; did you mean schedule.steps or training.steps?"),
    (
        "checkpoint: {zzz: 4}",
        "checkpoint.zzz = 4: unknown key; allowed in checkpoint: every, keep, keep_every, keep_best",
    ),
    (
        "checkpoint: {every: 10, keep_best: 1}\nevaluation: {every: 4}",
        "checkpoint.keep_best = 1: must be 0 unless checkpoint.every = 10 is a multiple of evaluation.every = 4",
    ),
    (
        "checkpoint: {keep_best: 1}\nevaluation: {batches: 0}",
        "checkpoint.keep_best = 1: must be 0 with evaluation.batches = 0",
    ),
    (
        "data: {text: a, split: [0.9, 0.1, 0]}\nevaluation: {test: true}",
        "evaluation.test = true: must be false with data.split = [0.9, 0.1, 0.0], which leaves no test part; the third "
        "must be above 0",
    ),
    (
        "evaluation: {sets: [{name: a/b, text: c}]}",
        "evaluation.sets[0].name = a/b: must be of letters, digits, dots, underscores and hyphens",
    ),
    (
        "evaluation: {sets: [{name: a, text: b, corpus: c}]}",
        "evaluation.sets[0].text = b: exactly one of text and corpus must be given",
    ),
    (
        "evaluation: {sets: [{name: a, text: b}, {name: a, text: c}]}",
        "evaluation.sets[1].name = a: two are called so; must be another",
    ),
    (
        "qk_timing: {rules: [{hld: 1}]}",
        "qk_timing.rules[0].hld = 1: unknown key; did you mean qk_timing.rules[0].hold?",
    ),
    (
        "qk_timing: {layers: {frction: [0, 1]}}",
        "qk_timing.layers.frction = [0, 1]: unknown key; did you mean qk_timing.layers.fraction?",
    ),
    ("7: {}", "7: a key must be text"),
    # Wrong types.
    ("model: 3", "model = 3: must be a section of keys"),
    ("training: {steps: 1e3}", "training.steps = 1000.0: must be an integer"),
    ("training: {steps: '10'}", "training.steps = '10': must be an integer"),
    ("training: {steps: ten}", "training.steps = ten: must be an integer"),
    ("training: {steps: true}", "training.steps = true: must be an integer"),
    ("training: {steps: null}", "training.steps = null: must be an integer"),
    ("optimizer: {lr: '1e-4'}", "optimizer.lr = '1e-4': must be a number"),
    ("optimizer: {lr: .nan}", "optimizer.lr = .nan: must be a finite number"),
    ("optimizer: {betas: 0.9}", "optimizer.betas = 0.9: must be a list"),
    ("optimizer: {betas: [0.9]}", "optimizer.betas = [0.9]: must have 2 entries"),
    ("optimizer: {betas: []}", "optimizer.betas = []: must have 2 entries"),
    ("qk_timing: {layers: {range: [1]}}", "qk_timing.layers.range = [1]: must have 2 entries"),
    ("optimizer: {betas: [0.9, 0.9, 0.9]}", "optimizer.betas = [0.9, 0.9, 0.9]: must have at most 2 entries"),
    ("model: {bias: yes}", "model.bias = 'yes': must be true or false"),
    ("run: {dir: 3}", "run.dir = 3: must be text"),
    ("deepspeed: 3", "deepspeed = 3: must be a section of keys"),
    ("data: {text: a, phases: [{start_step: 1, weights: 3}]}", "data.phases[0].weights = 3: must be a mapping"),
    (
        "data: {text: a, phases: [{start_step: 1, weights: {7: 1}}]}",
        "data.phases[0].weights.7: a key must be text",
    ),
    # In YAML's words, null among them.
    ("model: {num_kv_heads: 1.5}", "model.num_kv_heads = 1.5: must be an integer, or null"),
    ("model: {num_kv_heads: 0}", "model.num_kv_heads = 0: must be at least 1, or null"),
    ("deepspeed: {overlap_comm: 1}", "deepspeed.overlap_comm = 1: must be true or false, or null"),
    ("data: {sources: a}", "data.sources = a: must be a list, or null"),
    ("deepspeed: {offload_optimizer: null}", "deepspeed.offload_optimizer = null: must be one of none, cpu"),
    # Values out of bounds.
    ("training: {steps: 0, seed: -1}", "training.steps = 0: must be at least 1 (and 1 more)"),
    ("optimizer: {lr: 0}", "optimizer.lr = 0: must be above 0.0"),
    ("optimizer: {betas: [0.9, 1.0]}", "optimizer.betas[1] = 1.0: must be below 1.0"),
    ("schedule: {min_lr_ratio: 2}", "schedule.min_lr_ratio = 2: must be at most 1.0"),
    ("model: {norm: batchnorm}", "model.norm = batchnorm: must be one of layernorm, rmsnorm"),
    ("model: {preset: mamba}", "model.preset = mamba: must be one of gpt, llama"),
    ("model: {preset: [gpt]}", "model.preset = [gpt]: must be one of gpt, llama"),
    ("parallel: {zero_stage: 4}", "parallel.zero_stage = 4: must be one of 0, 1, 2, 3"),
    ("run: {dir: ''}", "run.dir = '': must not be empty"),
    ("qk_timing: {projections: []}", "qk_timing.projections = []: must have at least 1 entry"),
    ("data: {text: a, split: [1, 1, 1]}", "data.split = [1.0, 1.0, 1.0]: must be three fractions that add up to 1"),
    # Impossible combinations.
    (
        "training: {compile: true}\nparallel: {zero_stage: 3}",
        "training.compile = true: must be false or null with parallel.zero_stage = 3",
    ),
    (
        "training: {compile: true}\nmodel: {dropout: 0.1}",
        "training.compile = true: must be false or null with model.dropout = 0.1",
    ),
    ("parallel: {tensor: 5}", "model.num_heads = 12: must be divisible by parallel.tensor = 5"),
    (
        "model: {num_kv_heads: 3}\nparallel: {tensor: 2}",
        "model.num_kv_heads = 3: must be divisible by parallel.tensor = 2",
    ),
    (
        "model: {vocab_size: 101}\nparallel: {tensor: 2}",
        "model.vocab_size = 101: must be divisible by parallel.tensor = 2",
    ),
    (
        "model: {preset: llama, ffn_multiple_of: 1, ffn_hidden_size: 100}\nparallel: {tensor: 2}",
        "model.ffn_hidden_size = 67: must be divisible by parallel.tensor = 2 (the width in use, parameter-matched)",
    ),
    (
        "model: {hidden_size: 100}",
        "model.hidden_size = 100: must be divisible by model.num_heads = 12 (or give model.head_dim)",
    ),
    ("model: {num_kv_heads: 5}", "model.num_kv_heads = 5: must divide model.num_heads = 12"),
    (
        "model: {preset: llama, head_dim: 5}",
        "model.head_dim = 5: must be even with model.positions = rotary",
    ),
    (
        "model: {num_layers: 3}\nparallel: {pipeline: 4}",
        "model.num_layers = 3: must be at least parallel.pipeline = 4 (or give parallel.layers_per_stage)",
    ),
    (
        "parallel: {pipeline: 2, zero_stage: 2}",
        "parallel.zero_stage = 2: must be 0 or 1 with parallel.pipeline = 2 (above 1)",
    ),
    (
        "parallel: {pipeline: 2, zero_stage: 3}",
        "parallel.zero_stage = 3: must be 0 or 1 with parallel.pipeline = 2 (above 1)",
    ),
    ("parallel: {sequence: true}", "parallel.sequence = true: must be false with parallel.tensor = 1"),
    (
        "parallel: {sequence: true, tensor: 2}\ntraining: {sequence_length: 101}",
        "training.sequence_length = 101: must be divisible by parallel.tensor = 2 with parallel.sequence = true",
    ),
    (
        "parallel: {pipeline: 2, layers_per_stage: [12]}",
        "parallel.layers_per_stage = [12]: must have parallel.pipeline = 2 entries",
    ),
    (
        "parallel: {pipeline: 2, layers_per_stage: [6, 5]}",
        "parallel.layers_per_stage = [6, 5]: must add up to model.num_layers = 12",
    ),
    (
        "parallel: {pipeline: 3, layers_per_stage: [6, 0, 6]}",
        "parallel.layers_per_stage = [6, 0, 6]: must be positive (0 on the first or last stage only)",
    ),
    (
        "training: {precision: bf16}\nparallel: {zero_stage: 0}",
        "parallel.zero_stage = 0: must be above 0 with training.precision = bf16",
    ),
    (
        "model: {attention_dropout: 0.1}\ndata: {text: builtin, separate_documents: true}",
        "model.attention_dropout = 0.1: must be 0 with data.separate_documents = true",
    ),
    (
        "training: {global_batch_size: 10, micro_batch_size: 4}",
        "training.global_batch_size = 10: must be divisible by training.micro_batch_size = 4",
    ),
    (
        "training: {deterministic: true, attention: cudnn}",
        "training.attention = cudnn: must be one of auto, flash, efficient, math with training.deterministic = true; "
        "cuDNN's backward pass adds up in any order",
    ),
    ("schedule: {warmup_steps: 2000}", "schedule.warmup_steps = 2000: must not exceed training.steps = 1000"),
    ("schedule: {warmup_steps: 9, steps: 8}", "schedule.warmup_steps = 9: must not exceed schedule.steps = 8"),
    ("schedule: {decay_steps: 9}", "schedule.decay_steps = 9: must be null with schedule.kind = cosine"),
    (
        "schedule: {kind: wsd, decay_steps: 600, warmup_steps: 500}",
        "schedule.decay_steps = 600: must leave room for schedule.warmup_steps = 500 in training.steps = 1000",
    ),
    ("probes: {max_logit_alert: 50}", "probes.max_logit_alert = 50.0: must be null with probes.every = 0"),
]


@pytest.mark.parametrize(("text", "line"), REFUSALS)
def test_a_refusal_is_one_line_with_key_value_and_what_is_allowed(tmp_path: Path, text: str, line: str) -> None:
    with pytest.raises(UserError) as caught:
        load(tmp_path, text)
    assert str(caught.value) == line


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("steps", "steps: must be section.key=value, for example training.steps=100"),
        ("training..steps=3", "training..steps=3: must be section.key=value, for example training.steps=100"),
        (
            "training.steps=[",
            "training.steps = [: the value is no YAML: expected the node content, but found '<stream end>' "
            "(line 1, column 2)",
        ),
        ("model.x=" + "[" * 5000, f"model.x = {'[' * 77}...: the value is no YAML: nested too deeply"),
        ("training.seed.x=3", "training.seed = 3: has no keys to override"),
        ("traning.steps=3", "traning = {steps: 3}: unknown key; did you mean training?"),
        ("qk_timing.rules.1.hold=0", "qk_timing.rules.1: 1 must be an index below 1, the length of the list"),
        ("qk_timing.rules.x=0", "qk_timing.rules.x: x must be an index below 1, the length of the list"),
    ],
)
def test_a_bad_override_is_refused(tmp_path: Path, override: str, line: str) -> None:
    with pytest.raises(UserError) as caught:
        load(tmp_path, "training: {seed: 3}\nqk_timing: {rules: [{}]}", override)
    assert str(caught.value) == line


def test_a_bad_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none.yaml: cannot be read as a configuration: No such file or directory$"):
        load_config(tmp_path / "none.yaml")
    with pytest.raises(UserError, match=r"config.yaml: key a appears twice \(line 2, column 1\)$"):
        load(tmp_path, "a: 1\na: 2")
    with pytest.raises(UserError, match=r"config.yaml: \[1\]: must be a mapping of sections"):
        load(tmp_path, "[1]")
    with pytest.raises(UserError, match=r"config.yaml: stands for more than 100000 values \(line 6, column 5\)$"):
        load(
            tmp_path,
            "x0: &x0 [1]\n" + "".join(f"x{i}: &x{i} [{', '.join([f'*x{i - 1}'] * 9)}]\n" for i in range(1, 99)),
        )
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match=r"binary.yaml: cannot be read as a configuration: not UTF-8 text$"):
        load_config(tmp_path / "binary.yaml")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "model: {preset: llama, num_kv_heads: 4}",
        "qk_timing: {enabled: true, layers: {list: [3, 1]}, depth_profile: geometric}",
        "qk_timing: {enabled: true, rules: [{}, {layers: {range: [0, 2]}, projections: [value], release: step}]}",
        "deepspeed: {reduce_bucket_size: 1000, overlap_comm: false}",
        "run: {dir: '1e-4'}\ntraining: {precision: bf16}",
    ],
)
def test_a_dump_reads_back_to_an_equal_configuration(tmp_path: Path, text: str) -> None:
    config = load(tmp_path, text)
    dumped = dump_config(config)
    assert load(tmp_path, dumped) == config
    assert dump_config(load(tmp_path, dumped)) == dumped


@settings(deadline=None)
@given(
    lr=st.floats(min_value=1e-12, max_value=1e3),
    hold=st.floats(min_value=0, max_value=0.5),
    a=st.floats(min_value=0, max_value=1),
    name=st.text(min_size=1),
)
def test_any_values_survive_a_dump(lr: float, hold: float, a: float, name: str) -> None:
    config = build_config({"optimizer": {"lr": lr}, "qk_timing": {"hold": hold, "multiplier": a}, "run": {"dir": name}})
    assert build_config(parse_yaml(dump_config(config))) == config
