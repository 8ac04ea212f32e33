from types import SimpleNamespace

import pytest
import torch
from PIL import Image

from diffusers_erase.errors import ErasureError
from diffusers_erase.evaluation.features import picture_features, text_features


class BareEncoder:
    """Returns features as a tensor, as transformers did before version 5."""

    device, dtype = torch.device("cpu"), torch.float32
    config = SimpleNamespace(text_config=SimpleNamespace(max_position_embeddings=4))

    def get_image_features(self, pixel_values):
        return pixel_values.mean((2, 3))

    def get_text_features(self, input_ids):
        return input_ids.float()


class WrappedEncoder(BareEncoder):
    def get_image_features(self, pixel_values):
        return SimpleNamespace(pooler_output=super().get_image_features(pixel_values))


class Pixels(dict):
    def to(self, device, dtype):
        return self


def processor(images, return_tensors):
    values = [torch.tensor(image.getpixel((0, 0))).float() for image in images]
    return Pixels(pixel_values=torch.stack(values)[:, :, None, None])


def tokenizer(texts, padding, max_length):
    ids = [[len(word) for word in text.split()] for text in texts]
    return SimpleNamespace(input_ids=[each + [0] * (max_length - len(each)) for each in ids])


@pytest.mark.parametrize("batch", [1, 2, 3])
@pytest.mark.parametrize("model", [BareEncoder(), WrappedEncoder()])
def test_picture_features_are_unit_vectors_in_any_batch(model, batch):
    shown = [Image.new("RGB", (4, 4), colour) for colour in ((3, 4, 0), (0, 0, 9), (5, 0, 12))]
    expected = torch.tensor([[0.6, 0.8, 0], [0, 0, 1], [5 / 13, 0, 12 / 13]], dtype=torch.float64)
    assert torch.allclose(picture_features(model, processor, shown, batch=batch), expected)


def test_text_features_are_unit_vectors_of_padded_texts():
    found = text_features(BareEncoder(), tokenizer, ["aaa bbbb", "c"])
    assert found.tolist() == [[0.6, 0.8, 0, 0], [1, 0, 0, 0]]


def test_text_features_refuse_texts_longer_than_the_model_reads():
    with pytest.raises(ErasureError, match="has 5 tokens and the model reads 4"):
        text_features(BareEncoder(), tokenizer, ["a b", "a b c d e"])


def test_features_refuse_nothing_to_embed():
    with pytest.raises(ErasureError, match="No pictures"):
        picture_features(BareEncoder(), processor, [])
    with pytest.raises(ErasureError, match="No texts"):
        text_features(BareEncoder(), tokenizer, [])


def test_features_refuse_an_embedding_of_zero():
    with pytest.raises(ErasureError, match="has no direction"):
        picture_features(BareEncoder(), processor, [Image.new("RGB", (4, 4), "black")])
