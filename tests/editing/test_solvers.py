import pytest
import torch

from diffusers_erase.editing.solvers import (
    NullSpace,
    Problem,
    Regenerate,
    Remove,
    Replace,
    drift,
    solved_within,
    weights_gram,
)
from diffusers_erase.eraser.text_map import TextMap
from diffusers_erase.errors import ErasureError
from diffusers_erase.linalg.inverse import EditedLayers
from diffusers_erase.linalg.subspace import row_space


WIDTH = 16
NOTHING = TextMap.of(torch.zeros(WIDTH, WIDTH))


def states(count, seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, WIDTH, generator=generator, dtype=torch.float64)


E, V, R = states(3, 0), states(3, 1), states(40, 2)
WEIGHTS = {f"{k}.to_k": states(9, 10 + k) for k in range(4)}
G = weights_gram(WEIGHTS)


def regenerated(T, bound):
    return EditedLayers.mapped(G, T.U, T.V).regained(E, bound)


def residual(T, bound):
    return EditedLayers.mapped(G, T.U, T.V).relative_error(E, regenerated(T, bound))


def problem(**changes):
    options = {"keep_weight": 1.0, "ridge": 1e-3, "G": G} | changes
    spared = options.pop("spared", R.T @ R / len(R))
    return Problem.of(E, V, spared, **options)


@pytest.mark.parametrize("solver", [Replace(), Regenerate(), NullSpace(threshold=0.5), Remove()])
def test_solved_within_is_the_best_map_of_a_rank(solver):
    whole = solver(problem())
    expected, kept = whole.truncated(2, second_moment=problem().second_moment)
    best, share, rank = solved_within(solver, problem(), 2)
    assert torch.allclose(best.change, expected.change, atol=1e-9)
    assert (share, rank) == (pytest.approx(kept), whole.rank)


def test_problem_does_not_depend_on_the_number_of_prompts():
    twice = Problem.of(
        torch.cat((E, E)), torch.cat((V, V)), R.T @ R / len(R), keep_weight=1, ridge=1e-3
    )
    assert torch.allclose(Replace()(problem()).change, Replace()(twice).change, atol=1e-12)


def test_regained_states_have_zero_gradient():
    T = Replace()(problem())
    again = regenerated(T, 0.1).requires_grad_()
    I, ridge = torch.eye(WIDTH, dtype=torch.float64), 0.1 * G.diagonal().mean()
    loss = ridge * again.square().sum()
    for W in WEIGHTS.values():
        loss = loss + (again @ (W @ (I + T.change)).T - E @ W.T).square().sum()
    loss.backward()
    assert again.grad.abs().max() < 1e-9


def test_unedited_layers_regain_everything():
    assert residual(NOTHING, 1e-9) < 1e-9
    assert torch.allclose(regenerated(NOTHING, 1e-12), E, atol=1e-6)


def test_regained_states_undo_a_ridge_edit():
    T = Replace()(problem())
    assert residual(T, 1e-12) < 1e-9


def test_regained_states_of_one_edit_are_the_published_ones():
    c, v = E[:1], V[:1]
    zero = torch.zeros(WIDTH, WIDTH, dtype=torch.float64)
    alone = Replace()(Problem(c, v, zero, ridge=0.5))
    rho = (0.5 + c @ v.T) / (c @ c.T)
    again = EditedLayers.mapped(G, alone.U, alone.V).regained(c, 1e-13)
    assert torch.allclose(again, (1 + 1 / rho) * c - v / rho, atol=1e-5)


def test_regenerate_makes_the_concept_harder_to_regain():
    plain, again = Replace()(problem()), Regenerate(budget=2.0)(problem())
    assert residual(again, 0.1) > residual(plain, 0.1) + 0.01


def test_regenerate_stops_at_its_budget():
    K = problem().K
    plain = drift(Replace()(problem()), K)
    kept = Regenerate(budget=plain)(problem())
    assert drift(kept, K) == pytest.approx(plain)
    with pytest.raises(ErasureError, match="needs the weights"):
        Regenerate()(problem(G=None))


def test_null_space_leaves_kept_states_unchanged():
    few = R[:5]
    T = NullSpace()(problem(spared=few.T @ few / 5))
    assert (T(few) - few).norm() < 1e-10
    assert T.rank == len(E)
    assert (T(E) - V).norm() < (E - V).norm()


def test_null_space_is_the_limit_of_a_growing_penalty():
    few = R[:5]
    spared = few.T @ few / 5
    limit = Replace()(problem(spared=spared, keep_weight=1e4, ridge=1e-10))
    exact = NullSpace()(problem(spared=spared, ridge=1e-6))
    assert torch.allclose(limit(E), exact(E), atol=1e-2)


def test_null_space_refuses_kept_states_that_span_the_width():
    with pytest.raises(ErasureError, match="span all 16 dimensions"):
        NullSpace()(problem())


def test_remove_leaves_nothing_for_a_linear_classifier():
    T = Remove()(problem(ridge=1e-9, keep_weight=0.0))
    assert (T(E).mean(0) - T(V).mean(0)).norm() < 1e-9 * (E.mean(0) - V.mean(0)).norm()
    assert T.rank == 1


@pytest.mark.parametrize("solver", [Replace(), Regenerate(budget=2.0), NullSpace(), Remove()])
def test_every_solver_leaves_protected_states_unchanged(solver):
    held = states(2, 7)
    few = R[:5]
    T = solver(problem(spared=few.T @ few / 5, protect=row_space(held)))
    assert (T(held) - held).norm() < 1e-9
