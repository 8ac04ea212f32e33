import pytest
import torch

from diffusers_erase.linalg.gram import lower_gram, mirrored


@pytest.mark.parametrize("width", [5, 512, 1100])
def test_mirrored_lower_gram_is_the_gram(width):
    rows = torch.randn(30, width, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(mirrored(lower_gram(rows)), (rows.T @ rows).double(), atol=1e-4)
