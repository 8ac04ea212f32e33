from dataclasses import replace

import pytest
import torch

from diffusers_erase import EraserAdapter, ErasureError
from diffusers_erase.eraser.config import ErasedConcept, EraserConfig
from diffusers_erase.eraser.lora import Lora
from diffusers_erase.eraser.stacking import compact, fused, protected, scaled, summed
from diffusers_erase.eraser.text_map import TextMap
from diffusers_erase.linalg.subspace import row_space


WIDTH, OUT = 24, 10
PATHS = tuple(f"down.transformer_blocks.0.attn2.{part}" for part in ("to_k", "to_v", "to_q"))


def states(seed, count):
    """States that share a mean, as those of a text encoder do."""
    generator = torch.Generator().manual_seed(seed)
    common = torch.randn(1, WIDTH, generator=torch.Generator().manual_seed(0)).double()
    return common + torch.randn(count, WIDTH, generator=generator).double()


def trained(name, rank=2, seed=1, hold=None):
    generator = torch.Generator().manual_seed(seed)
    factors = {}
    for path in PATHS:
        A = torch.randn(rank, WIDTH, generator=generator)
        A = A if hold is None else A - (A @ hold.float()) @ hold.float().T
        factors[path] = A, torch.randn(OUT, rank, generator=generator)
    concepts = (ErasedConcept(name, synonyms=(f"old {name}",)),)
    return EraserAdapter((Lora(factors),), EraserConfig(concepts, rank=rank))


def solved(name, seed=1):
    generator = torch.Generator().manual_seed(seed)
    U, V = (torch.randn(WIDTH, 2, generator=generator).double() for _ in range(2))
    return EraserAdapter((TextMap(U, V),), EraserConfig((ErasedConcept(name),)))


NARROW = EraserAdapter(
    (Lora({PATHS[0]: (torch.ones(1, 8), torch.ones(OUT, 1))}),),
    EraserConfig((ErasedConcept("x"),)),
)


def gram(x):
    return x.T @ x / len(x)


def test_summed_changes_every_layer_by_the_sum_of_the_changes():
    one, two = trained("car", 2, seed=1), trained("cat", 3, seed=2)
    both = summed([one, two])
    for path in PATHS:
        assert torch.allclose(both.delta(path), one.delta(path) + two.delta(path), atol=1e-5)
    assert both.config.rank == 5
    assert both.config.concepts == (*one.config.concepts, *two.config.concepts)
    assert both.config.title == "car and cat"


def test_summed_text_maps_stay_portable():
    one, two = solved("car", 1), solved("cat", 2)
    both = summed([one, two])
    assert not both.factors
    assert torch.allclose(both.text_map.change, one.text_map.change + two.text_map.change)


def test_a_stack_is_saved_and_read_like_any_eraser(tmp_path):
    both = summed([trained("car", 2), trained("cat", 3)])
    again = EraserAdapter.from_pretrained(both.save_pretrained(tmp_path / "stack"))
    assert again.config == both.config
    assert all(torch.equal(again.delta(path), both.delta(path)) for path in PATHS)


@pytest.mark.parametrize("rest", ["sum", "nothing"])
def test_fused_is_the_minimum_of_its_objective(rest):
    erasers = [trained("car", seed=1), trained("cat", seed=2)]
    own = [states(3, 4), states(4, 4)]
    spared, hold = states(5, 30), row_space(states(6, 3))
    spare, ridge = 0.5, 1e-3
    together = fused(
        erasers,
        [gram(x) for x in own],
        gram(spared),
        rest=rest,
        protect=hold,
        keep=spare,
        ridge=ridge,
    )
    path = PATHS[0]
    moments = sum(gram(x) for x in own) + spare * gram(spared)
    size = ridge * moments.diagonal().mean()
    D = together.delta(path).double().requires_grad_()
    D_0 = sum(e.delta(path).double() for e in erasers) * (rest == "sum")
    loss = size * (D - D_0).square().sum()
    loss = loss + spare * ((D - D_0) @ spared.T).square().sum() / len(spared)
    for eraser, x in zip(erasers, own, strict=True):
        loss = loss + ((D - eraser.delta(path).double()) @ x.T).square().sum() / len(x)
    (gradient,) = torch.autograd.grad(loss, D)
    within = gradient - (gradient @ hold) @ hold.T
    assert within.norm() < 1e-4 * gradient.norm().clamp(min=1)
    assert ((D - D_0) @ hold).norm() < 1e-5


def test_protected_states_are_not_changed_and_the_rest_is_as_before():
    one, Q = trained("car"), row_space(states(6, 3))
    result = protected(one, Q)
    for path in PATHS[:2]:
        assert (result.delta(path).double() @ Q).norm() < 1e-5
        free = torch.eye(WIDTH).double() - Q @ Q.T
        assert torch.allclose(
            result.delta(path), (one.delta(path).double() @ free).float(), atol=1e-5
        )
    assert torch.equal(result.delta(PATHS[2]), one.delta(PATHS[2]))


def test_compact_has_no_more_columns_than_the_change_has_rank():
    one = trained("car", 2, seed=1)
    twice, kept = compact(summed([one, scaled(one, 0.5)]))
    assert (twice.config.rank, kept) == (2, pytest.approx(1))
    for path in PATHS:
        assert torch.allclose(twice.delta(path), 1.5 * one.delta(path), atol=1e-4)
    mapped, _ = compact(summed([solved("car"), solved("car")]))
    assert mapped.config.rank == mapped.text_map.rank == 2
    assert torch.allclose(mapped.text_map.change, 2 * solved("car").text_map.change, atol=1e-4)


def test_compact_to_a_lower_rank_reports_the_energy_it_keeps():
    both = summed([trained("car", 2, seed=1), trained("cat", 3, seed=2)])
    thin, kept = compact(both, 2)
    energies = [torch.linalg.svdvals(both.delta(path)).square() for path in PATHS]
    expected = sum(e[:2].sum() for e in energies) / sum(e.sum() for e in energies)
    assert kept == pytest.approx(float(expected), rel=1e-4)
    for path, e in zip(PATHS, energies, strict=True):
        apart = (thin.delta(path) - both.delta(path)).square().sum()
        assert float(apart) == pytest.approx(float(e[2:].sum()), rel=1e-3)


def test_fused_erasers_change_their_own_concepts_as_they_did_alone():
    hold = row_space(states(6, 3))
    erasers = [trained(str(seed), seed=seed, hold=hold) for seed in range(1, 5)]
    own = [states(10 + seed, 3) for seed in range(1, 5)]
    moments = [gram(x) for x in own]
    plain = summed(erasers)
    result = fused(erasers, moments, gram(states(5, 50)), protect=hold, keep=1e-6, ridge=1e-9)

    def astray(stack):
        path = PATHS[0]
        return [
            ((stack.delta(path) - e.delta(path)).double() @ x.T).norm() / e.delta(path).norm()
            for e, x in zip(erasers, own, strict=True)
        ]

    assert max(astray(result)) < 1e-2 * min(astray(plain))


def test_fused_sums_layers_that_do_not_read_the_text():
    erasers = [trained("car", seed=1), trained("cat", seed=2)]
    result = fused(erasers, [gram(states(3, 4)), gram(states(4, 4))], gram(states(5, 9)))
    assert torch.equal(result.delta(PATHS[2]), summed(erasers).delta(PATHS[2]))
    assert result.config.recipe == "gram fusion"


def test_fused_text_maps_are_the_fusion_of_their_layers():
    W = torch.randn(OUT, WIDTH, generator=torch.Generator().manual_seed(9)).double()
    maps = [solved("car", 1), solved("cat", 2)]
    layers = [replace(m, payloads=(Lora(m.text_map.factors({PATHS[0]: W})),)) for m in maps]
    numbers = [gram(states(3, 4)), gram(states(4, 4))], gram(states(5, 9))
    mapped, layered = fused(maps, *numbers), fused(layers, *numbers)
    assert torch.allclose(mapped.delta(PATHS[0], W), layered.delta(PATHS[0]), atol=1e-4)


@pytest.mark.parametrize(
    ("several", "message"),
    [
        ([], "no eraser to stack"),
        ([solved("car"), trained("cat")], "'car' is portable and that of 'cat' was trained"),
        (
            [trained("car"), NARROW],
            "different models: to one of them 'down.*to_k' is 10 x 24 and to another one 10 x 8",
        ),
    ],
)
def test_summed_refuses_erasers_that_do_not_fit_together(several, message):
    with pytest.raises(ErasureError, match=message):
        summed(several)


def test_fused_needs_one_second_moment_for_each_eraser():
    with pytest.raises(ErasureError, match="2 erasers need as many second moments; got 1"):
        fused([trained("car"), trained("cat")], [gram(states(1, 3))], gram(states(2, 3)))
