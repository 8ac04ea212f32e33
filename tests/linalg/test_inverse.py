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
