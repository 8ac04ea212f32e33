import pytest
import torch

from diffusers_erase.editing.solving import (
    remove,
    ridge_coefficients,
    ridge_coefficients_given,
    solve,
    solve_within,
)
from diffusers_erase.errors import ErasureError
from diffusers_erase.linalg.inverse import Inverse
from diffusers_erase.linalg.subspace import row_space


WIDTH = 12
I = torch.eye(WIDTH, dtype=torch.float64)


def states(count, seed):
    return torch.randn(count, WIDTH, generator=torch.Generator().manual_seed(seed)).double()


E, V, R = states(9, 0), states(9, 1), states(30, 2)
K = R.T @ R + 0.5 * I


def test_solve_is_the_published_formula_for_every_layer():
    W = states(7, 3)
    published = (W @ V.T @ E + W @ R.T @ R + 0.5 * W) @ torch.linalg.inv(E.T @ E + K)
    ours = W @ (I + solve(E, V, K).change)
    assert torch.allclose(ours, published, atol=1e-10)


def test_solve_has_zero_gradient():
    P = solve(E, V, K).change.requires_grad_()
    ((E + E @ P.T - V).square().sum() + torch.trace(P @ K @ P.T)).backward()
    assert P.grad.abs().max() < 1e-10


@pytest.mark.parametrize("count", [1, 4, 12, 40])
def test_solve_has_at_most_as_many_columns_as_rows_or_width(count):
    assert solve(states(count, 5), states(count, 6), K).rank == min(count, WIDTH)


def test_solve_maps_few_states_exactly():
    P = solve(E[:4], V[:4], 1e-12 * I)
    assert torch.allclose(P(E[:4]), V[:4], atol=1e-6)


def test_solve_with_equal_targets_is_the_identity():
    assert solve(E, E, K).change.norm() == 0


def test_solve_changes_penalised_directions_less():
    moved = [(solve(E, V, weight * R.T @ R + I)(R) - R).norm() for weight in (0.1, 1.0, 10.0)]
    assert moved[0] > moved[1] > moved[2]


def test_solve_leaves_protected_states_and_is_optimal_elsewhere():
    held = states(3, 4)
    T = solve(E, V, K, protect=row_space(held))
    assert (T(held) - held).norm() < 1e-10
    Q = row_space(held)
    cut = solve(E, V, K).change @ (I - Q @ Q.T)

    def error(P):
        return (E + E @ P.T - V).square().sum() + torch.trace(P @ K @ P.T)

    assert error(T.change) < error(cut)


def test_protection_is_the_limit_of_a_growing_penalty():
    held = states(2, 4)
    limit = solve(E, V, K + 1e8 * held.T @ held)
    assert torch.allclose(solve(E, V, K, protect=row_space(held)).change, limit.change, atol=1e-5)


def test_ridge_coefficients_do_not_depend_on_the_targets():
    A = ridge_coefficients(E, K)
    for target in (V, states(9, 8)):
        assert torch.allclose(solve(E, target, K).change, (target - E).T @ A, atol=1e-12)


@pytest.mark.parametrize("held", [0, 3])
def test_ridge_coefficients_given_an_inverse_equal_ridge_coefficients(held):
    protect = row_space(states(held, 4)) if held else None
    N = Inverse.of(K, protect)
    for rows in (E, V, states(40, 8)):
        assert torch.allclose(
            ridge_coefficients_given(rows, N), ridge_coefficients(rows, K, protect), atol=1e-9
        )
        half = N.half(rows)
        assert torch.allclose(half @ half.T, rows @ N(rows).T, atol=1e-9)


def test_inverse_acts_on_the_complement_of_protected_directions():
    Q = row_space(states(3, 4))
    F = torch.linalg.svd(I - Q @ Q.T)[0][:, : WIDTH - 3]
    expected = E @ F @ torch.linalg.inv(F.T @ K @ F) @ F.T
    assert torch.allclose(Inverse.of(K, Q)(E), expected, atol=1e-10)
    blind = K - 0.9 * Q @ (Q.T @ K @ Q) @ Q.T  # whatever M is in what is held
    assert torch.allclose(Inverse.of(F @ F.T @ blind @ F @ F.T, Q)(E), expected, atol=1e-10)


@pytest.mark.parametrize("held", [0, 3])
@pytest.mark.parametrize("count", [5, 9, 30])
def test_solve_within_is_the_truncated_solution(count, held):
    E, V, protect = states(count, 6), states(count, 7), row_space(states(3, 4)) if held else None
    whole, kept = solve(E, V, K, protect=protect).truncated(4, second_moment=E.T @ E + K)
    best, share = solve_within(E, V, K, 4, protect=protect)
    assert torch.allclose(best.change, whole.change, atol=1e-9)
    assert share == pytest.approx(kept, abs=1e-9)


def test_remove_hides_a_label_from_linear_classifiers():
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


def test_remove_leaves_protected_states_unchanged():
    held = states(2, 4)
    T = remove(states(1, 5), K, protect=row_space(held))
    assert (T(held) - held).norm() < 1e-10
    assert T.rank == 1


def test_solve_refuses_bad_systems():
    nan = E.clone()
    nan[0, 0] = float("nan")
    with pytest.raises(ErasureError, match="not finite"):
        solve(nan, V, K)
    with pytest.raises(ErasureError, match=r"ill-conditioned.*raise the ridge"):
        solve(E[:2], V[:2], 0 * I)
    with pytest.raises(ErasureError, match="in the span of the protected prompts"):
        remove(E[:1], K, protect=row_space(E[:2]))
