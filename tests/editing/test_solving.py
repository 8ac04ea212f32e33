import pytest
import torch

from diffusers_erase.attachment import row_space
from diffusers_erase.editing.solving import factors_of, text_edit


WIDTH = 12


def states(count, seed):
    return torch.randn(count, WIDTH, generator=torch.Generator().manual_seed(seed)).double()


E, V, R = states(9, 0), states(9, 1), states(30, 2)


def test_few_states_are_answered_exactly():
    P = text_edit(E[:4], V[:4], R[:0], ridge=1e-12)
    assert torch.allclose(E[:4] + E[:4] @ P.T, V[:4], atol=1e-6)


def test_the_edit_is_where_the_objective_is_flat():
    spare, ridge = 2.5, 0.3
    P = text_edit(E, V, R, spare=spare, ridge=ridge).requires_grad_()
    moved = (E + E @ P.T - V).square().sum() / len(E)
    spared = spare * (R @ P.T).square().sum() / len(R)
    size = (E.square().sum() / len(E) + spare * R.square().sum() / len(R)) / WIDTH
    (moved + spared + ridge * size * P.square().sum()).backward()
    assert P.grad.abs().max() < 1e-10


def test_what_is_spared_moves_less_the_more_it_weighs():
    moved = [(R @ text_edit(E, V, R, spare=spare).T).norm() for spare in (0.1, 1.0, 10.0)]
    assert moved[0] > moved[1] > moved[2]


def test_what_is_held_does_not_move_and_the_rest_makes_the_best_of_it():
    hold = states(3, 4)
    P = text_edit(E, V, R, hold=row_space(hold))
    assert (hold @ P.T).norm() < 1e-10
    cut = text_edit(E, V, R)
    cut = cut - cut @ row_space(hold) @ row_space(hold).T

    def error(P):
        return (E + E @ P.T - V).square().sum() / len(E) + 3 * (R @ P.T).square().sum() / len(R)

    assert error(P) < error(cut)


@pytest.mark.parametrize("rank", [2, 5])
def test_factors_of_enough_rank_are_the_edit_itself(rank):
    P = text_edit(E[:2], V[:2], R)
    layers = {"a": torch.nn.Linear(WIDTH, 7, bias=False), "b": torch.nn.Linear(WIDTH, 4)}
    for path, (A, B) in factors_of(P, layers, rank).items():
        assert A.shape == (rank, WIDTH)
        assert torch.allclose(B @ A, layers[path].weight @ P.float(), atol=1e-5)


def test_factors_of_less_rank_keep_the_largest_part():
    P = text_edit(E, V, R)
    layer = torch.nn.Linear(WIDTH, WIDTH, bias=False)
    torch.nn.init.eye_(layer.weight)
    A, B = factors_of(P, {"a": layer}, 3)["a"]
    left_out = torch.linalg.svdvals(P)[3:].square().sum().sqrt()
    assert (P - (B @ A).double()).norm() == pytest.approx(left_out.item(), rel=1e-5)
