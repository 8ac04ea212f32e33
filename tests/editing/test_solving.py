import pytest
import torch

from diffusers_erase.editing.solving import reader, remove, solve
from diffusers_erase.errors import ErasureError
from diffusers_erase.subspace import row_space


WIDTH = 12
I = torch.eye(WIDTH, dtype=torch.float64)


def states(count, seed):
    return torch.randn(count, WIDTH, generator=torch.Generator().manual_seed(seed)).double()


E, V, R = states(9, 0), states(9, 1), states(30, 2)
K = R.T @ R + 0.5 * I


def test_it_is_the_published_formula_for_every_layer():
    W = states(7, 3)
    published = (W @ V.T @ E + W @ R.T @ R + 0.5 * W) @ torch.linalg.inv(E.T @ E + K)
    ours = W @ (I + solve(E, V, K).change)
    assert torch.allclose(ours, published, atol=1e-10)


def test_it_is_where_the_objective_is_flat():
    P = solve(E, V, K).change.requires_grad_()
    ((E + E @ P.T - V).square().sum() + torch.trace(P @ K @ P.T)).backward()
    assert P.grad.abs().max() < 1e-10


@pytest.mark.parametrize("count", [1, 4, 12, 40])
def test_its_rank_is_the_number_of_rows_and_no_more_than_the_width(count):
    assert solve(states(count, 5), states(count, 6), K).rank == min(count, WIDTH)


def test_few_states_are_answered_exactly():
    P = solve(E[:4], V[:4], 1e-12 * I)
    assert torch.allclose(P(E[:4]), V[:4], atol=1e-6)


def test_states_that_are_to_be_read_as_themselves_change_nothing():
    assert solve(E, E, K).change.norm() == 0


def test_what_is_dear_moves_less():
    moved = [(solve(E, V, weight * R.T @ R + I)(R) - R).norm() for weight in (0.1, 1.0, 10.0)]
    assert moved[0] > moved[1] > moved[2]


def test_what_is_held_does_not_move_and_the_rest_makes_the_best_of_it():
    held = states(3, 4)
    T = solve(E, V, K, hold=row_space(held))
    assert (T(held) - held).norm() < 1e-10
    Q = row_space(held)
    cut = solve(E, V, K).change @ (I - Q @ Q.T)

    def error(P):
        return (E + E @ P.T - V).square().sum() + torch.trace(P @ K @ P.T)

    assert error(T.change) < error(cut)


def test_holding_is_the_limit_of_ever_dearer_directions():
    held = states(2, 4)
    limit = solve(E, V, K + 1e8 * held.T @ held)
    assert torch.allclose(solve(E, V, K, hold=row_space(held)).change, limit.change, atol=1e-5)


def test_one_recognition_serves_all_targets():
    A = reader(E, K)
    for target in (V, states(9, 8)):
        assert torch.allclose(solve(E, target, K).change, (target - E).T @ A, atol=1e-12)


def test_what_is_removed_cannot_be_told_by_any_linear_reader():
    X = states(400, 0) @ (states(WIDTH, 9) / 3)
    label = (torch.arange(400) % 2).double()
    X = X + label[:, None] * states(1, 7)
    between = ((X - X.mean(0)) * (label - 0.5)[:, None]).mean(0)[None]
    covariance = (X - X.mean(0)).T @ (X - X.mean(0)) / len(X)
    after = remove(between, covariance)(X)
    told = ((after - after.mean(0)) * (label - 0.5)[:, None]).mean(0)
    assert told.norm() < 1e-10 * between.norm()
    oblique = torch.trace((after - X).T @ (after - X)).item()
    unit = between / between.norm()
    straight = X - (X @ unit.T) @ unit
    assert oblique <= torch.trace((straight - X).T @ (straight - X)).item()


def test_removal_spares_what_is_held():
    held = states(2, 4)
    T = remove(states(1, 5), K, hold=row_space(held))
    assert (T(held) - held).norm() < 1e-10
    assert T.rank == 1


def test_bad_systems_are_refused():
    nan = E.clone()
    nan[0, 0] = float("nan")
    with pytest.raises(ErasureError, match="not finite"):
        solve(nan, V, K)
    with pytest.raises(ErasureError, match=r"ill-conditioned.*raise the ridge"):
        solve(E[:2], V[:2], 0 * I)
    with pytest.raises(ErasureError, match="among the prompts that are to be held"):
        remove(E[:1], K, hold=row_space(E[:2]))
