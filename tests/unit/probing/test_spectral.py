import torch

from megaqk.probing.spectral import qk_singular_values


def test_largest_singular_value_of_the_whole_product() -> None:
    torch.manual_seed(0)
    heads, kv_heads, width, hidden = 6, 2, 4, 24
    query, key = torch.randn(heads * width, hidden), torch.randn(kv_heads * width, hidden)
    expected = []
    for head in range(heads):
        group = head // (heads // kv_heads)
        own = slice(head * width, (head + 1) * width)
        shared = slice(group * width, (group + 1) * width)
        expected.append(torch.linalg.svdvals(query[own].double().T @ key[shared].double())[0])
    torch.testing.assert_close(qk_singular_values(query, key, width), torch.stack(expected), rtol=1e-9, atol=0)


def test_equal_singular_values_no_singular_values_and_small_ones() -> None:
    same = torch.eye(8, 16)
    torch.testing.assert_close(qk_singular_values(same, 3 * same, 8), torch.tensor([3.0]).double())
    assert qk_singular_values(torch.zeros(8, 16), same, 8).item() < 1e-100
    torch.testing.assert_close(
        qk_singular_values(1e-20 * same, same, 8), torch.tensor([1e-20]).double(), rtol=1e-7, atol=0
    )
    # The directions in which queries and keys are long do not meet.
    query, key = torch.diag(torch.tensor([1e3, 1e-3])), torch.diag(torch.tensor([1e-6, 1.0]))
    torch.testing.assert_close(qk_singular_values(query, key, 2), torch.tensor([1e-3]).double(), rtol=1e-7, atol=0)
