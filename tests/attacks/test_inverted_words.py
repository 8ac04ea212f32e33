import pytest
import torch
from PIL import Image

from diffusers_erase import ErasureError
from diffusers_erase.attacks.inversion import Word, invert, meaning
from diffusers_erase.models.text_states import encode


TEMPLATES = ["a photo of a {}", "a red {} at night"]


@pytest.fixture
def pictures():
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (3, 64, 64, 3), generator=generator, dtype=torch.uint8)
    return [Image.fromarray(each.numpy()) for each in pixels]


def test_a_word_that_means_what_another_does_is_read_as_that_one(untrained):
    tokens = untrained.tokenizer("car", add_special_tokens=False).input_ids
    vector = untrained.text_encoder.get_input_embeddings().weight[tokens[0]].detach()
    said = Word(vector, (), 0).states(untrained, TEMPLATES)
    plain = encode(untrained, ["a photo of a car", "a red car at night"])
    assert len(tokens) == 1
    assert torch.equal(said, plain)


def test_the_loss_falls_and_the_model_stays_as_it_is(untrained, pictures):
    parts = (untrained.unet, untrained.text_encoder, untrained.vae)
    before = [{k: v.clone() for k, v in part.state_dict().items()} for part in parts]
    words = len(untrained.tokenizer)
    options = {"steps": 30, "batch": 4, "learning_rate": 0.5}
    found = invert(untrained, pictures, TEMPLATES, **options)
    assert sum(found.losses[-8:]) < sum(found.losses[:8])
    assert found.evaluations == 3 * 30 * 4
    assert len(untrained.tokenizer) == words
    for part, known in zip(parts, before, strict=True):
        assert all(torch.equal(value, known[name]) for name, value in part.state_dict().items())
        assert all(p.grad is None for p in part.parameters())
    again = invert(untrained, pictures, TEMPLATES, **options)
    assert torch.equal(found.vector, again.vector)


def test_the_text_encoder_looks_up_its_own_again_also_after_an_error(untrained):
    encoder = untrained.text_encoder
    before = encode(untrained, ["a car"])
    with pytest.raises(RuntimeError), meaning(encoder, 5, torch.zeros(1)):
        raise RuntimeError
    assert not encoder.get_input_embeddings()._forward_hooks
    assert torch.equal(encode(untrained, ["a car"]), before)


@pytest.mark.parametrize(
    ("pictures_given", "templates", "message"),
    [
        (False, TEMPLATES, "learns from pictures and prompts"),
        (True, [], "learns from pictures and prompts"),
        (True, ["a photo of a car"], "needs one '{}'"),
    ],
)
def test_what_cannot_be_learnt_from_is_refused(
    untrained, pictures, pictures_given, templates, message
):
    with pytest.raises(ErasureError, match=message):
        invert(untrained, pictures if pictures_given else [], templates)
