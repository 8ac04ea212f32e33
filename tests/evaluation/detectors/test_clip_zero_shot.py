import dataclasses
import json

import pytest
import torch
import transformers

from diffusers_erase.errors import ErasureError
from diffusers_erase.evaluation.detector import info_of, verdicts_of
from diffusers_erase.evaluation.detectors.clip_zero_shot import ClipZeroShot
from diffusers_erase.storage.tensor_cache import digest


LABELS = ("red circle", "blue square", "green star")


def test_clip_zero_shot_probabilities_sum_to_one_over_labels_and_none(pair, pictures):
    found = ClipZeroShot.from_pretrained(pair, LABELS).probabilities(pictures)
    assert found.shape == (5, 4)
    assert torch.allclose(found.sum(1), torch.ones(5, dtype=torch.float64))
    assert found.std(1).min() > 1e-4  # they differ between labels


def test_clip_zero_shot_probabilities_equal_the_softmax_of_the_models_own_logits(pair, pictures):
    detector = ClipZeroShot.from_pretrained(pair, LABELS, none=())
    prompts = [f"a photo of a {label}" for label in LABELS]
    ids = detector.tokenizer(
        prompts, padding="max_length", max_length=24, return_tensors="pt"
    ).input_ids
    pixels = detector.processor(images=pictures, return_tensors="pt").pixel_values
    with torch.no_grad():
        logits = detector.model(input_ids=ids, pixel_values=pixels).logits_per_image
    assert torch.allclose(detector.probabilities(pictures), logits.softmax(1).double(), atol=1e-5)


def test_clip_zero_shot_verdict_is_the_likeliest_label_with_the_others_ranked(clip, pictures):
    detector = ClipZeroShot.from_pretrained(clip, LABELS, none=())
    for verdict, row in zip(detector(pictures), detector.probabilities(pictures), strict=True):
        order = row.argsort(descending=True).tolist()
        assert verdict.label == LABELS[order[0]]
        assert verdict.score == pytest.approx(float(row.max()))
        assert verdict.ranked == tuple(LABELS[i] for i in order)
        assert verdict.labels == (verdict.label,)
        assert verdict.valid


def test_clip_zero_shot_verdicts_do_not_depend_on_the_order_of_labels(clip, pictures):
    forwards, backwards = (
        ClipZeroShot.from_pretrained(clip, labels)(pictures) for labels in (LABELS, LABELS[::-1])
    )
    for one, other in zip(forwards, backwards, strict=True):
        assert one.label == other.label
        assert one.ranked == other.ranked
        assert one.score == pytest.approx(other.score)


def test_clip_zero_shot_verdict_is_invalid_where_a_prompt_of_none_is_likeliest(clip, pictures):
    """The likeliest label becomes the prompt of `none`; everything else stays as it was."""
    before = ClipZeroShot.from_pretrained(clip, LABELS, none=())
    best = before(pictures[:1])[0].label
    rest = tuple(label for label in LABELS if label != best)
    after = dataclasses.replace(before, labels=rest, none=(f"a photo of a {best}",))
    verdict = after(pictures[:1])[0]
    assert before(pictures[:1])[0].valid
    assert not verdict.valid
    assert verdict.label == f"a photo of a {best}"
    assert verdict.labels == ()
    assert verdict.score == pytest.approx(before(pictures[:1])[0].score)


def test_clip_zero_shot_verdict_is_invalid_below_the_threshold(clip, pictures):
    scores = [v.score for v in ClipZeroShot.from_pretrained(clip, LABELS, none=())(pictures)]
    between = sum(sorted(scores)[1:3]) / 2
    detector = ClipZeroShot.from_pretrained(clip, LABELS, none=(), threshold=between)
    valid = [verdict.valid for verdict in detector(pictures)]
    assert valid == [score >= between for score in scores]
    assert set(valid) == {True, False}


def test_clip_zero_shot_verdicts_do_not_depend_on_the_batch(clip, pictures):
    one, all_ = (
        ClipZeroShot.from_pretrained(clip, LABELS, batch=batch)(pictures) for batch in (1, 32)
    )
    assert [v.ranked for v in one] == [v.ranked for v in all_]
    assert [v.score for v in one] == pytest.approx([v.score for v in all_], abs=1e-5)
    assert ClipZeroShot.from_pretrained(clip, LABELS)([]) == []


def test_clip_zero_shot_info_names_all_that_the_verdicts_depend_on(clip):
    detector = ClipZeroShot.from_pretrained(clip, LABELS, template="{}, drawn", threshold=0.25)
    info = json.loads(json.dumps(info_of(detector)))
    assert info["name"] == "clip"  # the folder's name without its path
    assert info["threshold"] == 0.25
    assert info["weights"] == digest(detector.model)
    assert info["preprocessing"].startswith("CLIPImageProcessorPil ")
    assert info["transformers"] == transformers.__version__
    assert info["classes"] == list(LABELS)
    assert info["none"] == ["none of these"]
    assert info["template"] == "{}, drawn"


def test_clip_zero_shot_info_changes_with_the_processors_settings(clip):
    detector = ClipZeroShot.from_pretrained(clip, LABELS)
    other = transformers.CLIPImageProcessorPil(
        size={"shortest_edge": 32}, crop_size={"height": 16, "width": 16}
    )
    assert dataclasses.replace(detector, processor=other).info != detector.info
    assert ClipZeroShot.from_pretrained(clip, LABELS).info == detector.info


@pytest.mark.parametrize(
    ("labels", "options", "message"),
    [
        ((), {}, "two labels or more"),
        (("star",), {"none": ()}, "two labels or more"),
        (("star", "Star"), {}, "given twice"),
        (("star", "none of these"), {}, "given twice"),
        (LABELS, {"template": "a photo"}, "has no {}"),
    ],
)
def test_clip_zero_shot_refuses_labels_between_which_nothing_is_chosen(
    clip, labels, options, message
):
    with pytest.raises(ErasureError, match=message):
        ClipZeroShot.from_pretrained(clip, labels, **options)


def test_clip_zero_shot_refuses_a_prompt_that_is_too_long(clip, pictures):
    detector = ClipZeroShot.from_pretrained(clip, ["red circle " * 20, "star"])
    with pytest.raises(ErasureError, match="tokens and the model reads 24; shorten the label"):
        detector(pictures)


def test_clip_zero_shot_refuses_a_folder_that_is_absent(tmp_path):
    with pytest.raises(ErasureError, match=r"Cannot load .* safetensors"):
        ClipZeroShot.from_pretrained(tmp_path / "absent", LABELS)


def test_clip_zero_shot_refuses_a_model_without_text_encoder(classifier):
    made = transformers.ViTForImageClassification.from_pretrained(classifier)
    with pytest.raises(ErasureError, match="needs a CLIP or SigLIP"):
        ClipZeroShot(made, None, None, LABELS)


def test_clip_zero_shot_refuses_a_model_in_training_mode(clip):
    detector = ClipZeroShot.from_pretrained(clip, LABELS)
    with pytest.raises(ErasureError, match="training mode"):
        ClipZeroShot(detector.model.train(), detector.processor, detector.tokenizer, LABELS)


def test_clip_zero_shot_takes_grey_and_transparent_pictures(clip, odd_pictures):
    assert len(verdicts_of(ClipZeroShot.from_pretrained(clip, LABELS), odd_pictures)) == 2
