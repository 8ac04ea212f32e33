import pytest
import torch

from diffusers_erase.linalg.gram import lower_gram, mirrored, packed, unpacked


@pytest.mark.parametrize("width", [5, 512, 1100])
def test_mirrored_lower_gram_is_the_gram(width):
    rows = torch.randn(30, width, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(mirrored(lower_gram(rows)), (rows.T @ rows).double(), atol=1e-4)


def test_lower_gram_is_added_to_another():
    one, other = torch.randn(2, 9, 300, generator=torch.Generator().manual_seed(0))
    both = mirrored(lower_gram(other, lower_gram(one)))
    assert torch.allclose(both, (one.T @ one + other.T @ other).double(), atol=1e-4)


@pytest.mark.parametrize("width", [1, 5, 600])
def test_a_packed_matrix_is_its_lower_triangle_row_by_row(width):
    G = torch.randn(width, width, generator=torch.Generator().manual_seed(0))
    G = (G + G.T).double()
    i, j = torch.tril_indices(width, width)
    assert packed(G).equal(G[i, j].float())
    assert unpacked(packed(G)).equal(G)
