import pytest
import torch
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    T5Config,
    T5EncoderModel,
)

from diffusers_erase import ErasureError
from diffusers_erase.models.embedding_hooks import (
    artefact_of,
    free_ids,
    ids_of,
    looked_up,
    states_of_ids,
    with_prefix,
)
from diffusers_erase.models.text_states import encode


VOCABULARY, LENGTH = 50, 10


def clip(kind):
    return kind(
        CLIPTextConfig(
            vocab_size=VOCABULARY,
            hidden_size=16,
            projection_dim=16,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=LENGTH,
            bos_token_id=48,
            eos_token_id=49,
        )
    )


def t5():
    return T5EncoderModel(
        T5Config(vocab_size=VOCABULARY, d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2)
    )


ENCODERS = {
    "clip": lambda: clip(CLIPTextModel),
    "clip with projection": lambda: clip(CLIPTextModelWithProjection),
    "t5": t5,
}


@pytest.fixture(params=ENCODERS)
def encoder(request):
    torch.manual_seed(0)
    return ENCODERS[request.param]().eval()


@pytest.fixture
def ids():
    return torch.tensor([[48, 1, 2, 3, 4, 49, 0, 0, 0, 0], [48, 5, 6, 7, 49, 0, 0, 0, 0, 0]])


def outputs(encoder, ids):
    """All that the encoder says: pooled states too."""
    return [x for x in encoder(ids).to_tuple() if isinstance(x, torch.Tensor)]


def test_rows_of_the_vocabulary_are_read_as_the_tokens_they_are_of(encoder, ids):
    E = encoder.get_input_embeddings().weight
    one_hot = torch.nn.functional.one_hot(ids[:, 1:3], VOCABULARY).to(E)
    stand_in = ids.clone()
    stand_in[:, 1:3] = 9
    plain, before = outputs(encoder, ids), outputs(encoder, stand_in)
    with looked_up(encoder, [1, 2], one_hot @ E):
        hooked = outputs(encoder, stand_in)
    assert len(plain) == len(hooked) > 0
    assert all(map(torch.equal, hooked, plain))
    assert not torch.equal(before[-1], plain[-1])


def test_gradients_reach_the_rows_and_no_weight(encoder, ids):
    E = encoder.get_input_embeddings().weight
    rows = torch.full((2, 2, VOCABULARY), 1 / VOCABULARY, requires_grad=True)
    with looked_up(encoder, [1, 2], rows @ E.detach()):
        loss = encoder(ids)[0].square().sum()
    (gradient,) = torch.autograd.grad(loss, [rows])
    assert gradient.abs().sum(-1).min() > 0
    assert all(p.grad is None for p in encoder.parameters())


def test_the_encoder_finds_its_own_again_also_after_an_error(encoder, ids):
    before = encoder(ids)[0]
    with pytest.raises(RuntimeError), looked_up(encoder, [1], torch.zeros(1, 16)):
        raise RuntimeError
    assert not encoder.get_input_embeddings()._forward_hooks
    assert torch.equal(encoder(ids)[0], before)


def test_ids_are_read_as_the_pipeline_reads_their_prompts(untrained):
    prompts = ["a photo of a car", "", "a " * 60]
    with torch.no_grad():
        states = states_of_ids(untrained, ids_of(untrained, prompts))
    assert torch.equal(states, encode(untrained, prompts))


def test_a_prefix_is_what_it_would_be_if_it_were_said(untrained):
    car = untrained.tokenizer("car", add_special_tokens=False).input_ids
    for prompt in ("a photo of a tree", "a " * 21 + "b", "a " * 60):
        said = ids_of(untrained, [f"car car {prompt}"])
        prefixed = with_prefix(ids_of(untrained, [prompt]), torch.tensor([car * 2]))
        assert torch.equal(said, prefixed)


def test_a_prefix_without_room_is_refused(untrained):
    ids = ids_of(untrained, ["a car"])
    for k in (0, ids.shape[1]):
        with pytest.raises(ErasureError, match="the text encoder reads 24"):
            with_prefix(ids, torch.zeros(1, k, dtype=torch.long))


def test_only_what_is_read_as_it_was_found_is_a_prompt(untrained):
    tokenizer, ids = untrained.tokenizer, ids_of(untrained, ["a car"])
    whole = tokenizer("red", add_special_tokens=False).input_ids
    letters = tokenizer.convert_tokens_to_ids(["r", "e", "d</w>"])
    found = artefact_of(untrained, with_prefix(ids, torch.tensor([whole]))[0])
    hidden = artefact_of(untrained, with_prefix(ids, torch.tensor([letters]))[0])
    assert found.startswith("prompt ")
    assert hidden.startswith("ids only ")
    assert "red" not in found + hidden


def test_special_tokens_are_not_searched_through(untrained):
    ids = free_ids(untrained.tokenizer).tolist()
    assert len(ids) == len(untrained.tokenizer) - len(untrained.tokenizer.all_special_ids)
    assert not set(ids) & set(untrained.tokenizer.all_special_ids)
