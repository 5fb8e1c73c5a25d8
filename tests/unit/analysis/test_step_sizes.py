"""The step-size factor against sums written out."""

import math

import pytest

from megaqk.analysis.step_sizes import step_size_factors
from megaqk.config.root import Config


def test_sums_of_rate_times_multiplier() -> None:
    rules = [
        {"layers": {"range": [2, 4]}, "projections": ["query"], "multiplier": 0.2, "unit": "steps", "hold": 4},
        {"layers": {"list": [3]}, "projections": ["key"], "multiplier": 0.5, "unit": "tokens", "hold": 20},
    ]
    config = Config.model_validate(
        {
            "model": {"num_layers": 4, "hidden_size": 24, "num_heads": 4},
            "optimizer": {"lr": 0.1},
            "schedule": {"kind": "constant", "warmup_steps": 2},
            "qk_timing": {"enabled": True, "rules": [{**rule, "release": "step"} for rule in rules]},
            "training": {"steps": 10, "global_batch_size": 4, "micro_batch_size": 1, "sequence_length": 2},
        }
    )
    # Steps 1 to 5 at 0.1, warmed up; slowed before step 4, and before 20 tokens, which are 2.5 steps.
    plain = pytest.approx(0.5)
    factors = step_size_factors(config, 1, 6)
    assert factors["query"] == [plain, plain, pytest.approx(0.1 * (3 * 0.2 + 2)), pytest.approx(0.1 * (3 * 0.2 + 2))]
    assert factors["key"] == [plain, plain, plain, pytest.approx(0.1 * (2 * 0.5 + 3))]
    assert step_size_factors(config, 0, 1)["key"][0] == pytest.approx(0.05)
    # The run was at another rate meanwhile: what its configuration says now is no answer for that group.
    upper = "rule0.upper_query"
    factors = step_size_factors(config, 1, 6, {3: {f"lr/{upper}": 0.02, "lr/decay": 0.3}, 5: {f"lr/{upper}": 0.1}})
    assert math.isnan(factors["query"][0])
    assert factors["query"][2] == pytest.approx(0.1 * (3 * 0.2 + 2))
