import pytest
import torch

from diffusers_erase.errors import ErasureError
from diffusers_erase.linalg.subspace import row_space
from diffusers_erase.models.architectures import SELF_PARTS, linear, projections
from diffusers_erase.models.lora import attached
from diffusers_erase.models.text_states import encode
from diffusers_erase.training.recipes import Recipe


def test_attaching_changes_nothing_and_leaves_nothing(untrained):
    before = {k: v.clone() for k, v in untrained.unet.state_dict().items()}
    next(untrained.unet.parameters()).requires_grad_(False)
    flags = [p.requires_grad for p in untrained.unet.parameters()]
    with attached(untrained.unet, parts=("to_k", "to_v"), rank=3, seed=0) as lora:
        assert set(lora.factors()) == set(projections(untrained.unet, ("to_k", "to_v")))
        assert sum(p.numel() for p in lora.parameters) == sum(
            3 * (layer.in_features + layer.out_features)
            for layer in projections(untrained.unet, ("to_k", "to_v")).values()
        )
        for p in lora.parameters:
            torch.nn.init.normal_(p)
    after = untrained.unet.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(v, before[k]) for k, v in after.items())
    assert [p.requires_grad for p in untrained.unet.parameters()] == flags


def test_attaching_where_there_is_nothing_to_attach_to_leaves_the_denoiser_usable(untrained):
    with (
        pytest.raises(ErasureError, match="no cross-attention with to_kk"),
        attached(untrained.unet, parts=("to_kk",), rank=1, seed=0),
    ):
        pass
    with attached(untrained.unet, parts=("to_k",), rank=1, seed=0) as lora:
        assert len(lora.factors()) == 7


def test_self_attention_is_trained_beside_cross_attention(untrained):
    parts = ("to_v", *SELF_PARTS)
    with attached(untrained.unet, parts=parts, rank=1, seed=0) as lora:
        names = [path.rsplit(".attn", 1)[1] for path in lora.factors()]
    each = ["1.to_q", "1.to_k", "1.to_v", "1.to_out.0", "2.to_v"]
    assert sorted(names) == sorted(7 * each)
    for unknown in ("attn1.to_kk", "attn3.to_q"):
        with pytest.raises(ErasureError, match=f"`parts` are some of .*; got .*{unknown}"):
            Recipe("new", parts=(unknown,))
    with pytest.raises(ErasureError, match="only to_k and to_v are trained"):
        Recipe("new", parts=("to_v", "attn1.to_k"), protect_null=True)


def test_erasers_are_made_from_the_bare_base(untrained, make_eraser, tmp_path):
    untrained.load_lora_weights(
        make_eraser(untrained.unet).save_pretrained(tmp_path / "car"), adapter_name="style"
    )
    with (
        pytest.raises(ErasureError, match=r"has adapters .style."),
        attached(untrained.unet, parts=("to_k",), rank=1, seed=0),
    ):
        pass


def test_trained_factors_are_what_the_student_used(untrained, make_eraser):
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(1, 4, 16, 16, generator=generator)
    t, c = torch.tensor([300]), torch.randn(1, 24, 128, generator=generator)
    with attached(untrained.unet, parts=("to_k", "to_v"), rank=2, seed=0) as lora, torch.no_grad():
        for p in lora.parameters:
            torch.nn.init.normal_(p, std=0.3, generator=generator)
        student, factors = untrained.unet(z, t, c).sample, lora.factors()
    base = untrained.unet(z, t, c).sample
    with torch.no_grad():
        for path, (A, B) in factors.items():
            linear(untrained.unet, path).weight.add_(B @ A)
        assert not torch.allclose(base, student, atol=1e-3)
        assert torch.allclose(untrained.unet(z, t, c).sample, student, atol=1e-4)


def scores(unet, states):
    generator = torch.Generator().manual_seed(5)
    z = torch.randn(len(states), 4, 16, 16, generator=generator)
    with torch.no_grad():
        return unet(z, torch.tensor([900, 40])[: len(states)], states).sample


def drift(unet, factors, states):
    """Relative change of the scores when these are added to the weights, with their signs."""
    base = scores(unet, states)
    layers = {path: linear(unet, path) for eraser, _ in factors for path in eraser}
    kept = {path: layer.weight.data.clone() for path, layer in layers.items()}
    for eraser, strength in factors:
        for path, (A, B) in eraser.items():
            layers[path].weight.data += strength * (B @ A)
    changed = scores(unet, states)
    for path, layer in layers.items():
        layer.weight.data = kept[path]
    return ((changed - base).norm() / base.norm()).item()


def trained(unet, seed, hold):
    """An eraser after some steps of an optimiser that would go anywhere."""
    with attached(unet, parts=("to_k", "to_v"), rank=4, seed=seed, protect=hold) as lora:
        optimiser = torch.optim.Adam(lora.parameters, 0.05)
        for _ in range(4):
            states = torch.randn(2, 24, 128, generator=torch.Generator().manual_seed(seed))
            z, t = torch.ones(2, 4, 16, 16), torch.tensor([500, 100])
            optimiser.zero_grad()
            (unet(z, t, states).sample - 3).pow(2).mean().backward()
            optimiser.step()
        return lora.factors()


def test_held_prompts_do_not_move_at_any_strength_and_in_any_stack(untrained):
    null, car = encode(untrained, [""]), encode(untrained, ["a red car"])
    free = trained(untrained.unet, 1, None)
    assert drift(untrained.unet, [(free, 1.0)], null) > 1e-3  # not already true before
    one, two = (trained(untrained.unet, seed, null) for seed in (1, 2))
    for stack in ([(one, 1.0)], [(one, 3.0), (two, -2.0)]):
        assert drift(untrained.unet, stack, null) <= 3e-6
        assert drift(untrained.unet, stack, car) > 1e-3


def test_more_prompts_can_be_held_than_the_empty_one(untrained):
    oak = encode(untrained, ["an oak", ""])
    factors = trained(untrained.unet, 1, oak)
    assert drift(untrained.unet, [(factors, 1.0)], oak) <= 3e-6
    assert drift(untrained.unet, [(factors, 1.0)], encode(untrained, ["a pine"])) > 1e-3


@pytest.mark.parametrize("held", [False, True])
def test_training_goes_on_from_given_factors(untrained, make_eraser, held):
    null = encode(untrained, [""])
    options = {"parts": ("to_k", "to_v"), "rank": 2, "seed": 0, "protect": null if held else None}
    given = make_eraser(untrained.unet).factors
    with attached(untrained.unet, **options) as lora:
        lora.begin(given)
        begun = lora.factors()
    Q = row_space(null).float()
    for path, (A, B) in given.items():
        assert torch.equal(begun[path][1], B)
        assert torch.allclose(begun[path][0], A - A @ Q @ Q.T if held else A, atol=1e-6)


def test_the_row_space_is_as_large_as_the_states_need():
    generator = torch.Generator().manual_seed(0)
    three = torch.randn(3, 16, generator=generator)
    Q = row_space(torch.cat([three, 2 * three, three[:1] - three[1:2]]))
    assert Q.shape == (16, 3)
    assert torch.allclose(Q.T @ Q, torch.eye(3, dtype=Q.dtype))
    assert torch.allclose(three.double() @ Q @ Q.T, three.double())
    with pytest.raises(ErasureError, match="span all 16 dimensions"):
        row_space(torch.randn(40, 16, generator=generator))


def test_only_parts_that_read_the_text_can_be_held(untrained):
    with (
        pytest.raises(ErasureError, match=r"only to_k and to_v are trained.*to_q"),
        attached(untrained.unet, parts=("to_q", "to_k"), rank=1, seed=0, protect=torch.eye(2, 128)),
    ):
        pass
    assert not getattr(untrained.unet, "peft_config", None)
