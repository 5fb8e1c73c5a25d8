"""Rolling mean and deviation of loss and gradient norm, and what stands out of them, without waiting for a device."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor


class Spike(NamedTuple):
    """A value that stands out.

    Attributes:
        name: Of what.
        value: It.
        mean: Of the steps before it.
        deviation: Standard deviation of these.
    """

    name: str
    value: float
    mean: float
    deviation: float


class SpikeWatch:
    """Holds the values of each step against those before.

    The first `window` steps count alike; from then on the past fades with 1 - 1 / window a step. What is above
    mean + `deviations` x deviation is a spike, and enters mean and deviation as if it were just that: one wild step
    moves them little, and a level that lasts becomes the mean.

    Mean and deviation stay on the device. The verdict on a step is copied to the host while the next one is computed.

    Args:
        names: What is watched.
        window: Steps.
        deviations: Of a spike.
        device: Where the values are.
        state: What `state` has returned, or nothing.
    """

    def __init__(
        self, names: tuple[str, ...], window: int, deviations: float, device: torch.device, state: Mapping[str, Any]
    ) -> None:
        self._names, self._window, self._deviations = names, window, deviations
        self._steps = int(state.get("steps", 0))
        zeros = [0.0] * len(names)
        self._mean, self._variance = (
            torch.tensor(state.get(key, zeros), dtype=torch.float64, device=device) for key in ("mean", "variance")
        )
        cuda = device.type == "cuda"
        # Only into pinned memory does a copy run beside what follows it.
        self._verdict = torch.empty(3, len(names), dtype=torch.float64, pin_memory=cuda)
        self._copied = torch.cuda.Event() if cuda else None  # type: ignore[no-untyped-call]

    def enter(self, values: Tensor) -> bool:
        """Take in the values of a step, finite, in the order of the names, on the device.

        Returns:
            Whether there is a verdict on them, for `spikes`.
        """
        judged = self._steps >= self._window
        if judged:
            deviation = self._variance.sqrt()
            self._verdict.copy_(torch.stack([values, self._mean, deviation]), non_blocking=True)
            if self._copied is not None:
                self._copied.record()
            values = torch.minimum(values, self._mean + self._deviations * deviation)
        self._steps += 1
        share = 1 / min(self._steps, self._window)
        change = values - self._mean
        self._mean = self._mean + share * change
        self._variance = (1 - share) * (self._variance + share * change.square())
        return judged

    def spikes(self) -> list[Spike]:
        """Those of the values entered last; waits for the device to have come so far."""
        if self._copied is not None:
            self._copied.synchronize()
        found = [Spike(name, *row) for name, row in zip(self._names, self._verdict.T.tolist(), strict=True)]
        return [spike for spike in found if spike.value > spike.mean + self._deviations * spike.deviation]

    def state(self) -> dict[str, Any]:
        """What a resumed run needs to judge alike; waits for the device."""
        return {"steps": self._steps, "mean": self._mean.tolist(), "variance": self._variance.tolist()}
