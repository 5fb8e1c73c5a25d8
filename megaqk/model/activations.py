"""How many bytes of activations one micro-batch holds on one rank: what autograd saves, counted layer by layer.

Counted is the eager model; a compiled block saves no more.
"""

from dataclasses import dataclass

from megaqk.config.root import Config
from megaqk.model.vocab_size import Vocabulary
from megaqk.parallel.cross_entropy import CHUNK, CHUNK_ON_CPU

ELEMENT_BYTES = {"fp32": 4, "bf16": 2, "fp16": 2}
"""Of weights and activations, by `training.precision`."""


@dataclass(frozen=True, kw_only=True)
class Activations:
    """Bytes of one micro-batch on one tensor-parallel rank.

    Attributes:
        stream: The residual stream between two layers.
        block: What a block keeps from its forward to its backward pass.
        backward: What the backward pass of a block needs beside that: what is recomputed, and gradients in flight.
        final: What the final norm keeps.
        logits: The logits alone.
        loss: The most that logits and cross entropy hold at a time.
        head: The gradients of the logits and of the last hidden state.
    """

    stream: int
    block: int
    backward: int
    final: int
    logits: int
    loss: int
    head: int


def count_activations(config: Config, vocabulary: Vocabulary, *, cuda: bool) -> Activations:
    """Count the activations of a configured model.

    Args:
        config: The run.
        vocabulary: Size of its vocabulary.
        cuda: Whether the kernels are those of CUDA, of which some save less.
    """
    model, training, tensor = config.model, config.training, config.parallel.tensor
    size = ELEMENT_BYTES[training.precision]
    samples, length = training.micro_batch_size, training.sequence_length
    tokens = samples * length
    # Norms and residuals are whole on every tensor-parallel rank unless the sequence is split over them.
    own = tokens // tensor if config.parallel.sequence else tokens
    stream, whole = own * model.hidden_size * size, tokens * model.hidden_size * size
    query, kv = (tokens * heads * model.head_size // tensor * size for heads in (model.num_heads, model.kv_heads))
    ffn = tokens * model.ffn_width // tensor * size

    # Beside its input a fused norm keeps two numbers a row. On the CPU rms_norm is made of operators, which keep the
    # normalised tensor; of a narrower input that and, in place of the input, its copy, both in fp32.
    composed = model.norm == "rmsnorm" and not cuda
    beside = (4 if size == 4 else 6) if composed else 0
    norm = own * (model.hidden_size * beside + 8)
    head_norms = (query + kv) // size * beside + (query + kv) // size // model.head_size * 8

    # Attention keeps q, k, v, its output and the logarithm of each softmax's sum.
    turned = model.positions == "rotary" or model.qk_norm
    core = query + tokens * 4 * model.num_heads // tensor
    if turned:
        # q and k are new tensors then, whose layout attention gives its output too: joining the heads copies it.
        core += query + query + kv
    if model.qk_norm:
        core += head_norms
    if model.positions == "rotary":
        core += tokens * model.head_size * size  # cos and sin of half a head
    if model.attention_dropout and not cuda:
        # The CPU has no kernel for it: the weights before and after, and the mask, all in fp32.
        core += model.num_heads // tensor * samples * length**2 * 12
    elif model.attention_dropout:
        core += query  # sample by sample, then joined
    # Rotating needs cos and sin alone.
    rotated = model.positions == "rotary" and not model.qk_norm
    projections = kv if rotated else query + 2 * kv
    attention = stream + norm + stream + projections + core  # the norm's input, the norm, its output

    # Gated: gate, up, act(gate) and the product; else the input of the activation and of the last matrix. The square of
    # a ReLU is the gradient of its result alone, which is the same tensor for both.
    matrices = 4 if model.gated else 2
    feed_forward = stream + norm + stream + matrices * ffn
    masks = 2 * stream if model.dropout else 0
    everything = attention + feed_forward + masks

    # The gradient of the residual stream, and those of the activation's inputs while the product is still there.
    flowing = stream + (2 if model.gated else 1) * ffn
    # The column-parallel input gradient; under sequence parallelism also the gathered input, in two layouts unless
    # there is one sample, and the gradient in the layout that is scattered.
    if tensor > 1:
        gathered = (2 + (samples > 1)) * whole if config.parallel.sequence else 0
        flowing = max(flowing, stream + whole + gathered - (2 if model.gated else 1) * ffn)

    # Selective recomputation keeps what products and attention give, whether or not a gradient needs it.
    attended = query + tokens * 4 * model.num_heads // tensor if cuda or not model.attention_dropout else 0
    products = query + 2 * kv + attended + stream + (2 if model.gated else 1) * ffn + stream
    kept = {"none": everything, "selective": stream + products, "full": stream}[training.recompute]
    # The gradient of the logits takes their place, a chunk in fp32 (shifted, and a copy of what is narrower) at a time.
    entries = tokens * vocabulary.rows // tensor
    chunk = min(entries, CHUNK if cuda else CHUNK_ON_CPU) * (4 if size == 4 else 8)
    return Activations(
        stream=stream,
        block=kept,
        backward=flowing + (everything - kept if training.recompute != "none" else 0),
        final=stream + norm + stream,
        logits=entries * size,
        loss=entries * size + chunk,
        head=entries * size + whole,
    )
