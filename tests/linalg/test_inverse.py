import torch

from diffusers_erase.linalg.inverse import EditedLayers


WIDTH = 6


def rows(count, seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, WIDTH, generator=generator, dtype=torch.float64)


W, CHANGED, E, OTHER = rows(9, 0), rows(9, 1), rows(3, 2), rows(3, 3)
READING = EditedLayers(W.T @ W, CHANGED.T @ CHANGED, CHANGED.T @ W)


def test_relative_error_is_that_of_the_layers_outputs():
    direct = (OTHER @ CHANGED.T - E @ W.T).square().sum() / (E @ W.T).square().sum()
    assert abs(READING.relative_error(E, OTHER) - direct.item()) < 1e-12


def test_regained_states_are_a_ridge_solution():
    again = READING.regained(E, 0.2).requires_grad_()
    ridge = 0.2 * (W.T @ W).diagonal().mean()
    loss = (again @ CHANGED.T - E @ W.T).square().sum() + ridge * again.square().sum()
    loss.backward()
    assert again.grad.abs().max() < 1e-10


def test_a_smaller_bound_regains_more():
    far, near = (READING.relative_error(E, READING.regained(E, bound)) for bound in (1e-6, 1.0))
    assert far < near


def test_layers_changed_by_factors_have_the_gram_matrices_of_their_weights():
    first, second = rows(7, 4), rows(8, 5)
    A, B = (rows(2, 6), rows(3, 7)), (rows(7, 8)[:, :2], rows(8, 9)[:, :3])
    edited = torch.cat((first + B[0] @ A[0], second + B[1] @ A[1]))
    before = torch.cat((first, second))
    read = torch.cat((B[0].T @ first, B[1].T @ second))
    added = torch.cat([b.T @ b @ a for a, b in zip(A, B, strict=True)])
    found = EditedLayers.changed(before.T @ before, torch.cat(A), read, added)
    assert torch.allclose(found.after, edited.T @ edited, atol=1e-10)
    assert torch.allclose(found.across, edited.T @ before, atol=1e-10)
