"""The benchmark of one GPU, as far as it goes without one."""

import gpu
import gpu_case
import pytest

from megaqk.config.loading import load_config


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("nvjet_hsh_256x128_64x4_2x1_v_bz_coopA_NTN", "gemm"),
        ("void cutlass::Kernel2<cutlass_80_tensorop_bf16_s16816gemm_bf16_256x128_32x3_nn_align8>", "gemm"),
        ("sm90_xmma_gemm_bf16bf16_bf16f32_f32_tn_n_tilesize128x128x64_warpgroupsize1x1x1", "gemm"),
        ("void pytorch_flash::flash_bwd_dq_dk_dv_loop_seqk_parallel_kernel<pytorch_flash::Flash_bwd>", "attention"),
        ("cudnn_generated_fort_native_sdpa_sm90_flash_fprop_wgmma_f16_knob_6_128x128x64", "attention"),
        ("fmha_cutlassF_bf16_aligned_64x64_rf_sm80", "attention"),
        ("triton_tem_fused_flex_attention_0", "attention"),
        ("void (anonymous namespace)::cunn_SoftMaxForward<8, float, float, float>", "cross entropy"),
        ("void at::native::nll_loss_forward_no_reduce_cuda_kernel<float>", "cross entropy"),
        ("void at::native::multi_tensor_apply_kernel<FusedAdamMathFunctor<float, 4>>", "optimizer"),
        ("Memcpy HtoD (Pinned -> Device)", "copies"),
        ("void at::native::vectorized_elementwise_kernel<bfloat16tofloat32_copy_kernel_cuda>", "copies"),
        ("ncclDevKernel_AllReduce_Sum_f32_RING_LL(ncclDevKernelArgsStorage<4096ul>)", "collectives"),
        (
            "void at::native::vectorized_elementwise_kernel<4, at::native::CUDAFunctor_add<c10::BFloat16>>",
            "elementwise",
        ),
        ("void at::native::(anonymous namespace)::vectorized_layer_norm_kernel<float, float>", "elementwise"),
        ("triton_poi_fused_mul_silu_0", "elementwise"),
        ("aten::mm", "gemm"),
        ("aten::mul", "elementwise"),
    ],
)
def test_kernels_are_sorted_by_kind(name: str, kind: str) -> None:
    assert gpu_case.kind_of(name) == kind


def test_what_no_kernel_fills_is_gaps() -> None:
    parts = gpu_case.split([("nvjet", 6.0), ("aten::mul", 1.0), ("gemm", 2.0)], steps=2, seconds=5.0)
    assert parts["gemm"] == 4.0
    assert parts["elementwise"] == parts["gaps"] == 0.5
    assert sum(parts.values()) == 5.0


def test_the_whole_depth_follows_from_two() -> None:
    def result(layers: int) -> dict[str, float]:
        return {
            "seconds": 1.0 + 0.5 * layers,
            "tokens": 100,
            "flops_per_token": 7.0 + 3.0 * layers,
            "parameters": 5.0 + 2.0 * layers,
            "peak_memory_bytes": 11.0 + layers,
        }

    assert gpu.whole_depth(*map(result, gpu.DEPTHS)) == result(gpu.WHOLE_DEPTH)


@pytest.mark.parametrize("name", gpu.CASES)
def test_every_case_is_a_configuration_that_is_allowed(name: str) -> None:
    case = gpu.CASES[name]
    file = gpu.CONFIGS / f"{case.model}.yaml"
    changed = load_config(file, case.overrides)
    assert not case.against or case.against in gpu.CASES
    assert changed.training.precision == "bf16"
    if case.against:
        base = gpu.CASES[case.against]
        assert changed != load_config(file, base.overrides) or case.tokens != base.tokens


def test_a_case_is_measured() -> None:
    result = gpu.measure(gpu.command(gpu.CASES["llama-270m"], dry=True), 240)
    assert isinstance(result, dict), result
    assert result["tokens"] == 16 * 16
    assert sum(result["split"].values()) >= result["seconds"]
    assert result["split"]["gemm"] > 0
    assert gpu.row("llama", result, (1e12, 1e12), result).endswith("| 1.00x |")


def test_a_case_that_fails_or_lasts_says_so() -> None:
    words = [*gpu.command(gpu.CASES["llama-270m"], dry=True), "--set", "model.num_heads=5"]
    assert "num_heads" in gpu.measure(words, 240)
    assert gpu.measure(words, 0.1) == "not done in 0 s"
