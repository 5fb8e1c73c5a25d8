"""The decoder as DeepSpeed's pipeline module: one pipeline stage of it on each process."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from deepspeed.pipe import LayerSpec as DeepSpeedLayerSpec
from deepspeed.pipe import PipelineModule, TiedLayerSpec
from deepspeed.runtime.pipe import module as deepspeed_module
from torch import nn

from megaqk.model.context import ModelContext
from megaqk.model.decoder import LayerSpec, decoder_loss, layer_specs, stage_bounds
from megaqk.parallel.world import World


@contextmanager
def _grid_of(world: World) -> Iterator[None]:
    """Have DeepSpeed take the groups that are there: it would make every one of them a second time."""
    original = deepspeed_module.PipelineParallelGrid
    deepspeed_module.PipelineParallelGrid = lambda **_: world.grid
    try:
        yield
    finally:
        deepspeed_module.PipelineParallelGrid = original


def _to_deepspeed(spec: LayerSpec) -> DeepSpeedLayerSpec:
    if spec.tied:
        return TiedLayerSpec(spec.name, spec.module, *spec.arguments, forward_fn=spec.forward)
    return DeepSpeedLayerSpec(spec.module, *spec.arguments)


class StagedDecoder(PipelineModule):  # type: ignore[misc]
    """One pipeline stage of the decoder.

    Args:
        context: What the layers are built from.
        world: The processes.
    """

    def __init__(self, context: ModelContext, world: World) -> None:
        specs = layer_specs(context)
        # Read by _partition_layers while the base class is being constructed; nn.Module is not ready for more.
        self.__dict__["_bounds"] = stage_bounds(world.layers_per_stage)
        with _grid_of(world):
            super().__init__(
                [_to_deepspeed(spec) for spec in specs], topology=world.grid.topology(), loss_fn=decoder_loss(context)
            )
        self.specs = specs

    def _partition_layers(self, method: str = "uniform") -> None:
        # DeepSpeed balances by parameter counts or by class names; the blocks of each stage are the user's to say.
        del method
        self.parts = self.__dict__["_bounds"]
        stage = self._topo.get_coord(self.global_rank).pipe
        self._set_bounds(start=self.parts[stage], stop=self.parts[stage + 1])

    @torch.no_grad()
    def _synchronize_tied_weights(self) -> None:
        """Without no_grad, torch takes the broadcast into a parameter for an operation to differentiate."""
        super()._synchronize_tied_weights()

    def global_parameters(self) -> dict[str, nn.Parameter]:
        """This pipeline stage's parameters by global name, in the order of the layers; a tied module once."""
        named: dict[str, nn.Parameter] = {}
        for index in range(self._local_start, self._local_stop):
            spec = self.specs[index]
            module: Any = self.tied_modules[spec.name] if spec.tied else getattr(self, str(index))
            named.update({f"{spec.name}.{key}": value for key, value in module.named_parameters()})
        return named
