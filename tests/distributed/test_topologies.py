"""Every topology follows the plain loop of one process: ten steps with clipping and the multiplier active.

The cases of one world size run after each other in the same processes, since starting these takes longer than a case.
"""

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.distributed import commands, driver, questions
from tests.distributed.driver import Trace
from tests.harness import run_distributed

LOSS_TOLERANCE = 1e-5  # relative, each step
NORM_TOLERANCE = 1e-5  # relative, each step
WEIGHT_TOLERANCE = 2e-5  # absolute, after ten steps

GQA = {"num_kv_heads": 12}
MODELS: dict[str, dict[str, Any]] = {
    "gpt": {"preset": "gpt"},
    "gpt-untied": {"preset": "gpt", "tied_embedding": False},
    "gpt-gqa": {"preset": "gpt", **GQA},
    "gpt-rmsnorm": {"preset": "gpt", "norm": "rmsnorm"},
    "gpt-no-bias": {"preset": "gpt", "bias": False},
    "gpt-relu-squared": {"preset": "gpt", "feed_forward": "relu_squared"},
    "gpt-swiglu": {"preset": "gpt", "feed_forward": "swiglu"},
    "gpt-geglu": {"preset": "gpt", "feed_forward": "geglu", "ffn_match_parameters": False},
    "gpt-rotary": {"preset": "gpt", "positions": "rotary"},
    "gpt-no-positions": {"preset": "gpt", "positions": "none"},
    "gpt-qk-norm": {"preset": "gpt", "qk_norm": True},
    "llama": {"preset": "llama", **GQA},
    "llama-mha": {"preset": "llama"},
    "llama-tied": {"preset": "llama", **GQA, "tied_embedding": True},
    "llama-layernorm": {"preset": "llama", **GQA, "norm": "layernorm"},
    "llama-bias": {"preset": "llama", **GQA, "bias": True},
    "llama-gelu": {"preset": "llama", **GQA, "feed_forward": "gelu"},
    "llama-learned": {"preset": "llama", **GQA, "positions": "learned"},
    "llama-qk-norm": {"preset": "llama", **GQA, "qk_norm": True},
}


@dataclass(frozen=True)
class Case:
    """A model on a topology."""

    model: str
    tensor: int = 1
    pipeline: int = 1
    data: int = 1
    zero: int = 1
    sequence: bool = False
    recompute: str = "none"
    layers: tuple[int, ...] | None = None
    tokens: int = driver.TOKENS

    def __str__(self) -> str:
        parts = [self.model, f"tp{self.tensor}", f"pp{self.pipeline}", f"dp{self.data}", f"z{self.zero}"]
        parts += ["sp"] * self.sequence + [self.recompute] * (self.recompute != "none")
        parts += ["layers" + "".join(map(str, self.layers))] if self.layers else []
        parts += [f"tokens{self.tokens}"] * (self.tokens != driver.TOKENS)
        return "-".join(parts)

    @property
    def world(self) -> int:
        return self.tensor * self.pipeline * self.data

    def run(self) -> dict[str, Any]:
        """Keyword arguments of `engine_run`."""
        case = driver.settings(
            MODELS[self.model],
            training={"recompute": self.recompute},
            tensor=self.tensor,
            pipeline=self.pipeline,
            data=self.data,
            zero_stage=self.zero,
            sequence=self.sequence,
            layers_per_stage=self.layers,
        )
        return {"case": case, "tokens": self.tokens}


COVERING = [
    Case("gpt", zero=0),
    Case("llama", zero=1, recompute="full"),
    Case("gpt-no-positions", zero=2),
    Case("llama-mha", zero=3, recompute="selective"),
    # Tensor parallelism, where an ingredient is most likely to be split wrongly.
    Case("gpt", tensor=2, zero=0),
    Case("gpt", tensor=2, sequence=True),
    Case("gpt-gqa", tensor=2, zero=2, sequence=True, recompute="full"),
    Case("gpt-rmsnorm", tensor=2, sequence=True),
    Case("gpt-swiglu", tensor=2, zero=3, sequence=True),
    Case("gpt-qk-norm", tensor=2, zero=0, sequence=True),
    Case("gpt-no-bias", tensor=2, sequence=True),
    Case("llama-qk-norm", tensor=2, zero=3),
    Case("llama-bias", tensor=2, zero=0, sequence=True, recompute="selective"),
    Case("llama-learned", tensor=2, sequence=True),
    Case("llama-layernorm", tensor=2, zero=2),
    # The second rank holds padding rows of the vocabulary only.
    Case("gpt", tensor=2, tokens=60),
    Case("llama", tensor=2, sequence=True, tokens=60),
    # Pipeline parallelism: tied and untied, unequal stages, stages without a block.
    Case("gpt", pipeline=2, zero=0),
    Case("gpt-untied", pipeline=2, layers=(3, 1)),
    Case("gpt-geglu", pipeline=2, recompute="full"),
    Case("gpt-relu-squared", pipeline=2, layers=(0, 4)),
    Case("gpt-rotary", pipeline=2, layers=(4, 0)),
    Case("llama-tied", pipeline=2, zero=0, recompute="selective"),
    Case("llama-gelu", pipeline=2),
    Case("gpt", pipeline=3, layers=(0, 4, 0)),
    # Data parallelism.
    Case("gpt", data=2, zero=0),
    Case("llama", data=2, zero=1),
    Case("gpt", data=2, zero=2),
    Case("llama-tied", data=2, zero=3, recompute="full"),
    # Two axes at once, and four ranks of one.
    Case("gpt", tensor=2, pipeline=2, sequence=True),
    Case("llama", tensor=2, pipeline=2, zero=0, sequence=True, recompute="full"),
    Case("gpt-qk-norm", tensor=2, pipeline=2, layers=(1, 3)),
    Case("gpt", tensor=2, data=2, zero=2, sequence=True),
    Case("llama", tensor=2, data=2, zero=3, sequence=True),
    Case("llama-qk-norm", tensor=2, data=2, zero=1),
    Case("gpt", pipeline=2, data=2, zero=1),
    Case("llama", pipeline=2, data=2, zero=0),
    Case("llama", tensor=4, sequence=True),
    Case("gpt", pipeline=4, layers=(0, 1, 3, 0)),
    Case("gpt", data=4, zero=3),
]

SHAPES = [
    (tensor, pipeline, data)
    for tensor in range(1, 5)
    for pipeline in range(1, 5)
    for data in range(1, 5)
    if tensor * pipeline * data <= 4
]


def product() -> Iterator[Case]:
    """Every topology, stage of ZeRO and residual layout, for both presets, tied and untied, recomputed or not."""
    for tensor, pipeline, data in SHAPES:
        for zero in range(4 if pipeline == 1 else 2):
            for sequence in (False, True) if tensor > 1 else (False,):
                for model in ("gpt", "gpt-untied", "llama", "llama-tied"):
                    for recompute in ("none", "full"):
                        yield Case(model, tensor, pipeline, data, zero, sequence, recompute)


def ingredients() -> Iterator[Case]:
    """Every single-ingredient variant on each pair of axes."""
    for model in MODELS:
        for tensor, pipeline, data, zero in ((2, 2, 1, 1), (2, 1, 2, 3), (2, 1, 2, 2), (1, 2, 2, 0)):
            for sequence in (False, True) if tensor > 1 else (False,):
                yield Case(model, tensor, pipeline, data, zero, sequence, "selective")


CHOSEN = set(COVERING)
FULL = [case for case in dict.fromkeys([*product(), *ingredients()]) if case not in CHOSEN]
CASES_PER_WORLD = 12


@pytest.fixture(scope="module")
def worlds(request: pytest.FixtureRequest) -> "dict[Case, tuple[Case, ...]]":
    """For each selected case those that share its processes."""
    cases = [
        item.callspec.params["case"]
        for item in request.session.items
        if item.path == request.path and hasattr(item, "callspec")
    ]
    shared = {}
    for world in sorted({case.world for case in cases}):
        members = [case for case in dict.fromkeys(cases) if case.world == world]
        for first in range(0, len(members), CASES_PER_WORLD):
            chunk = tuple(members[first : first + CASES_PER_WORLD])
            shared.update(dict.fromkeys(chunk, chunk))
    return shared


@functools.cache
def plain(model: str, tokens: int) -> Trace:
    return driver.plain_run(MODELS[model], tokens=tokens)


@functools.cache
def traces_or_failure(cases: tuple[Case, ...]) -> "dict[Case, Trace] | Exception":
    """A failure is kept too: what hangs once is not waited for again."""
    runs = [case.run() for case in cases]
    try:
        results = run_distributed(driver.engine_runs, cases[0].world, runs, init=False, timeout=60 + 20 * len(runs))
    except Exception as error:
        return error
    return dict(zip(cases, results[0], strict=True))


def check(case: Case, worlds: "dict[Case, tuple[Case, ...]]", record_property: Any) -> None:
    traces = traces_or_failure(worlds[case])
    if isinstance(traces, Exception):
        raise traces
    ours, reference = traces[case], plain(case.model, case.tokens)
    assert min(reference.norms) > driver.CLIP, "clipping must be active for the comparison to cover it"
    assert ours.weights.keys() == reference.weights.keys()
    errors = {
        "loss": max(abs(a - b) / b for a, b in zip(ours.losses, reference.losses, strict=True)),
        "norm": max(abs(a - b) / b for a, b in zip(ours.norms, reference.norms, strict=True)),
        "weights": max(float((ours.weights[n] - w).abs().max()) for n, w in reference.weights.items()),
    }
    for name, value in errors.items():
        record_property(name, value)
    assert errors["loss"] <= LOSS_TOLERANCE
    assert errors["norm"] <= NORM_TOLERANCE
    assert errors["weights"] <= WEIGHT_TOLERANCE


@pytest.mark.parametrize("case", COVERING, ids=str)
def test_covering_subset(case: Case, worlds: "dict[Case, tuple[Case, ...]]", record_property: Any) -> None:
    check(case, worlds, record_property)


@pytest.mark.full
@pytest.mark.timeout(900)
@pytest.mark.parametrize("case", FULL, ids=str)
def test_full_product(case: Case, worlds: "dict[Case, tuple[Case, ...]]", record_property: Any) -> None:
    check(case, worlds, record_property)


def test_the_subset_touches_every_ingredient() -> None:
    assert {case.model for case in COVERING} == set(MODELS)


def test_only_the_first_and_the_last_stage_read_batches() -> None:
    case = driver.settings({"preset": "gpt"}, pipeline=3, tensor=1)
    read = run_distributed(questions.batches_read, 3, case, init=False, timeout=120)
    micro_batches = driver.BATCH // case["training"]["micro_batch_size"]
    assert read == [(micro_batches, micro_batches), (0, 0), (micro_batches, micro_batches)]


def test_reading_ahead_leaves_out_the_stages_between(write_config: Callable[..., Path], tmp_path: Path) -> None:
    config = write_config(tmp_path, parallel={"pipeline": 3}, evaluation={"batches": 0}, training={"steps": 4})
    argv = ["pretrain", str(config), "qk_timing.hold=1", "qk_timing.release_end=2"]
    counted = run_distributed(commands.run_and_count_batches, 3, argv, init=False, timeout=120)
    micro_batches = 4 * 8 // 2
    assert counted == [(0, micro_batches), (0, 0), (0, micro_batches)]
