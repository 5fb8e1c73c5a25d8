"""The matrix products of a linear layer on this machine's CPU: `megaqk.parallel.matmul` over torch's own, in fp32."""

import argparse
import time
from collections.abc import Callable

import torch
from torch.nn import functional as F

from megaqk.parallel.matmul import ONEDNN, input_gradient, linear, weight_gradient

SHAPES = [(1024, 384, 384), (1024, 384, 1536), (1024, 1536, 384), (1024, 384, 8192), (4096, 768, 768)]


def best_seconds(function: Callable[[], object], repeats: int) -> float:
    function()
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        function()
        times.append(time.perf_counter() - began)
    return min(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=20)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    print(f"oneDNN {'used' if ONEDNN else 'not available: both columns are the same kernel'}; GFLOP/s of torch, ours")
    print(f"{'tokens x in x out':22}{'forward':>24}{'input gradient':>24}{'weight gradient':>24}")
    for tokens, width, out in SHAPES:
        x, weight, grad = torch.randn(tokens, width), torch.randn(out, width), torch.randn(tokens, out)
        pairs: list[tuple[Callable[[], object], Callable[[], object]]] = [
            (lambda x=x, w=weight: F.linear(x, w), lambda x=x, w=weight: linear(x, w, None)),
            (lambda g=grad, w=weight: g @ w, lambda g=grad, w=weight: input_gradient(g, w)),
            (lambda g=grad, x=x: g.t() @ x, lambda g=grad, x=x: weight_gradient(g, x)),
        ]
        cells = []
        for theirs, ours in pairs:
            rates = [2e-9 * tokens * width * out / best_seconds(f, arguments.repeats) for f in (theirs, ours)]
            cells.append(f"{rates[0]:7.0f} {rates[1]:7.0f} {rates[1] / rates[0]:6.2f}x")
        print(f"{f'{tokens} x {width} x {out}':22}" + "".join(f"{cell:>24}" for cell in cells))


if __name__ == "__main__":
    main()
