"""An optimizer beside AdamW, as a research project would add one."""

from typing import Any

import torch

from megaqk.model.parameters import ParameterInfo

SCALE, FRICTION = 50.0, 0.9


class HeavyBall(torch.optim.Optimizer):
    """v = friction x v + gradient; weight -= scale x lr x v."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        del closure
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    state = self.state[parameter]
                    if not state:
                        state["velocity"] = torch.zeros_like(parameter)
                    state["velocity"].mul_(group["friction"]).add_(parameter.grad)
                    parameter.sub_(state["velocity"], alpha=SCALE * group["lr"])


class HeavyBallOwner:
    """Owns the matrices of one role from a layer on."""

    name = "heavy_ball"
    state = ("velocity",)

    def __init__(self, first_layer: int = 0) -> None:
        self._first_layer = first_layer

    def owns(self, parameter: ParameterInfo) -> bool:
        role = parameter.role
        return role.projection == "ffn_out" and role.decay and (role.layer or 0) >= self._first_layer

    def build(self, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        return HeavyBall(groups, {"lr": 0.0, "friction": FRICTION})
