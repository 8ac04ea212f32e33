import copy

import pytest
import torch
from safetensors.torch import save_file

from diffusers_erase.eraser.text_map import TextMap
from diffusers_erase.errors import ErasureError
from diffusers_erase.models.architectures import TEXT_PARTS, projections


WIDTH = 12


def rows(count, seed, width=WIDTH):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, width, generator=generator, dtype=torch.float64)


def some_map(rank, seed=0):
    return TextMap(rows(rank, seed).T / 4, rows(rank, seed + 50).T / 4)


def positive(seed):
    return rows(30, seed).T @ rows(30, seed) / 30


def test_text_map_equals_its_lora_and_its_weight_edit(untrained):
    unet, width = untrained.unet, untrained.unet.config.cross_attention_dim
    T = TextMap(rows(5, 0, width).T / 8, rows(5, 1, width).T / 8)
    z, t, c = torch.randn(2, 4, 16, 16), torch.tensor([500, 100]), torch.randn(2, 24, width)
    layers = projections(unet, TEXT_PARTS)
    with torch.no_grad():
        before = unet(z, t, c).sample
        mapped = unet(z, t, T(c)).sample
        edited = copy.deepcopy(unet)
        for layer in projections(edited, TEXT_PARTS).values():
            layer.weight.copy_(layer.weight @ (torch.eye(width) + T.change.float()))
        as_edit = edited(z, t, c).sample
        lora = copy.deepcopy(unet)
        factors = T.factors({path: layer.weight for path, layer in layers.items()})
        for path, (A, B) in factors.items():
            lora.get_submodule(path).weight += B @ A
        as_lora = lora(z, t, c).sample
    assert (mapped - before).norm() > 1e-3 * before.norm()
    for other in (as_edit, as_lora):
        assert (other - mapped).norm() < 3e-6 * before.norm()


def test_text_map_of_a_change_has_no_more_columns_than_needed():
    T = some_map(3)
    again = TextMap.of(T.change)
    assert again.rank == 3
    assert torch.allclose(again.change, T.change, atol=1e-12)
    assert TextMap.of(torch.zeros(WIDTH, WIDTH)).rank == 0


def test_text_maps_compose_in_the_order_of_application():
    first, second, e = some_map(2, 1), some_map(3, 2), rows(4, 3)
    both = second.after(first)
    assert both.rank == 5
    assert torch.allclose(both(e), second(first(e)), atol=1e-12)


def test_text_map_of_an_edited_layer_is_the_earlier_map_after_the_later():
    earlier, later, W, e = some_map(2, 1), some_map(3, 2), rows(7, 4), rows(4, 3)
    I = torch.eye(WIDTH, dtype=torch.float64)
    weight = W @ (I + earlier.change) @ (I + later.change)
    assert torch.allclose(e @ weight.T, earlier.after(later)(e) @ W.T, atol=1e-12)


def test_truncated_takes_the_smallest_rank_that_keeps_enough():
    T, S = some_map(6), positive(5)
    shares = [T.truncated(rank, second_moment=S)[1] for rank in range(1, 7)]
    for rank, share in enumerate(shares, 1):
        found, kept = T.truncated(6, second_moment=S, enough=share - 1e-9)
        assert (found.rank, kept) == (rank, pytest.approx(share))
    assert T.truncated(2, second_moment=S, enough=shares[3])[0].rank == 2


def test_truncated_is_the_best_map_of_its_rank_in_the_given_metric():
    T, S, G = some_map(6), positive(5), positive(6)

    def lost(P):
        gap = T.change - P
        return torch.trace(G @ gap @ S @ gap.T).item()

    best, kept = T.truncated(2, second_moment=S, read=G)
    plain, _ = T.truncated(2)
    assert best.rank == plain.rank == 2
    assert lost(best.change) < lost(plain.change)
    assert kept == pytest.approx(1 - lost(best.change) / lost(0 * T.change), abs=1e-9)
    nudged = best.change.clone().requires_grad_()
    torch.trace(G @ (T.change - nudged) @ S @ (T.change - nudged).T).backward()
    assert (best.U.T @ nudged.grad).abs().max() < 1e-9  # flat within the space it kept
    assert (nudged.grad @ best.V).abs().max() < 1e-9


def test_truncated_leaves_unchanged_what_the_whole_map_leaves_unchanged():
    U, V, held = rows(6, 0).T, rows(6, 1).T, rows(2, 2)
    Q = torch.linalg.qr(held.T)[0]
    T = TextMap(U, V - Q @ (Q.T @ V))
    cut, _ = T.truncated(2, second_moment=positive(5), read=positive(6))
    assert (cut(held) - held).norm() < 1e-12


def test_truncated_to_its_own_rank_changes_nothing():
    T = some_map(3)
    whole, kept = T.truncated(8, second_moment=positive(1))
    assert torch.allclose(whole.change, T.change, atol=1e-10)
    assert kept == pytest.approx(1)
    assert TextMap.of(torch.zeros(WIDTH, WIDTH)).truncated(2)[1] == 1


def test_truncated_keeps_the_largest_weighted_singular_values():
    for T in (some_map(5), some_map(WIDTH + 4)):
        S, G = positive(5), positive(6)
        right, left = torch.linalg.cholesky(S), torch.linalg.cholesky(G).T
        u, s, v = torch.linalg.svd(left @ T.change @ right)
        expected = torch.linalg.inv(left) @ u[:, :3] * s[:3] @ v[:3] @ torch.linalg.inv(right)
        best, kept = T.truncated(3, second_moment=S, read=G)
        assert torch.allclose(best.change, expected, atol=1e-9)
        assert kept == pytest.approx(float(s[:3].square().sum() / s.square().sum()))


def test_text_map_keeps_the_precision_of_states():
    e = rows(3, 0)
    assert some_map(2)(e.half()).dtype is torch.float16


def test_text_map_refuses_bad_factors():
    with pytest.raises(ErasureError, match="do not fit"):
        TextMap(torch.zeros(4, 2), torch.zeros(4, 3))
    with pytest.raises(ErasureError, match="not finite"):
        TextMap(torch.full((4, 2), float("nan")), torch.zeros(4, 2))
    with pytest.raises(ErasureError, match="another text encoder"):
        some_map(2).factors({"up.attn2.to_k": torch.zeros(3, WIDTH + 1)})


def test_text_map_factors_are_contiguous():
    U = torch.randn(4, 8, dtype=torch.float64).T
    map = TextMap(U, U)
    assert map.U.is_contiguous()
    assert map.V.is_contiguous()
    assert map.U.equal(U)


@pytest.mark.parametrize("shape", [(), (4,), (4, 0), (4, 2, 2), (2, 4)])
def test_read_refuses_tensors_that_are_no_matrices_of_width_x_rank(shape, tmp_path):
    save_file({"U": torch.ones(shape), "V": torch.ones(shape)}, tmp_path / "map.safetensors")
    with pytest.raises(ErasureError, match="a text map is two matrices"):
        TextMap.read(tmp_path / "map.safetensors")
