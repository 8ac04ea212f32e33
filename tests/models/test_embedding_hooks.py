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
    describe_ids,
    embeddings_at,
    ordinary_ids,
    states_of_ids,
    token_ids,
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
    """All tensors of the encoder's output, pooled states too."""
    return [x for x in encoder(ids).to_tuple() if isinstance(x, torch.Tensor)]


def test_embeddings_at_with_the_embeddings_of_tokens_equals_these_tokens(encoder, ids):
    E = encoder.get_input_embeddings().weight
    one_hot = torch.nn.functional.one_hot(ids[:, 1:3], VOCABULARY).to(E)
    placeholder = ids.clone()
    placeholder[:, 1:3] = 9
    plain, before = outputs(encoder, ids), outputs(encoder, placeholder)
    with embeddings_at(encoder, [1, 2], one_hot @ E):
        hooked = outputs(encoder, placeholder)
    assert len(plain) == len(hooked) > 0
    assert all(map(torch.equal, hooked, plain))
    assert not torch.equal(before[-1], plain[-1])


def test_embeddings_at_has_gradients_to_its_rows_and_to_no_weight(encoder, ids):
    E = encoder.get_input_embeddings().weight
    rows = torch.full((2, 2, VOCABULARY), 1 / VOCABULARY, requires_grad=True)
    with embeddings_at(encoder, [1, 2], rows @ E.detach()):
        loss = encoder(ids)[0].square().sum()
    (gradient,) = torch.autograd.grad(loss, [rows])
    assert gradient.abs().sum(-1).min() > 0
    assert all(p.grad is None for p in encoder.parameters())


def test_embeddings_at_ends_with_its_block_also_after_an_error(encoder, ids):
    before = encoder(ids)[0]
    with pytest.raises(RuntimeError), embeddings_at(encoder, [1], torch.zeros(1, 16)):
        raise RuntimeError
    assert not encoder.get_input_embeddings()._forward_hooks
    assert torch.equal(encoder(ids)[0], before)


def test_states_of_ids_are_those_of_the_pipelines_prompts(untrained):
    prompts = ["a photo of a car", "", "a " * 60]
    with torch.no_grad():
        states = states_of_ids(untrained, token_ids(untrained, prompts))
    assert torch.equal(states, encode(untrained, prompts))


def test_with_prefix_equals_the_ids_of_the_prompt_with_these_words(untrained):
    car = untrained.tokenizer("car", add_special_tokens=False).input_ids
    for prompt in ("a photo of a tree", "a " * 21 + "b", "a " * 60):
        written = token_ids(untrained, [f"car car {prompt}"])
        prefixed = with_prefix(token_ids(untrained, [prompt]), torch.tensor([car * 2]))
        assert torch.equal(written, prefixed)


def test_with_prefix_refuses_a_prefix_that_does_not_fit(untrained):
    ids = token_ids(untrained, ["a car"])
    for k in (0, ids.shape[1]):
        with pytest.raises(ErasureError, match="the text encoder reads 24"):
            with_prefix(ids, torch.zeros(1, k, dtype=torch.long))


def test_describe_ids_says_prompt_only_if_the_text_has_the_same_ids(untrained):
    tokenizer, ids = untrained.tokenizer, token_ids(untrained, ["a car"])
    whole = tokenizer("red", add_special_tokens=False).input_ids
    letters = tokenizer.convert_tokens_to_ids(["r", "e", "d</w>"])
    prompt = describe_ids(untrained, with_prefix(ids, torch.tensor([whole]))[0])
    hidden = describe_ids(untrained, with_prefix(ids, torch.tensor([letters]))[0])
    assert prompt.startswith("prompt ")
    assert hidden.startswith("ids only ")
    assert "red" not in prompt + hidden


def test_ordinary_ids_are_all_but_the_special_ones(untrained):
    ids = ordinary_ids(untrained.tokenizer).tolist()
    assert len(ids) == len(untrained.tokenizer) - len(untrained.tokenizer.all_special_ids)
    assert not set(ids) & set(untrained.tokenizer.all_special_ids)
