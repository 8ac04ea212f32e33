import json

import pytest
import torch
import transformers

from diffusers_erase.errors import ErasureError
from diffusers_erase.evaluation.detector import info_of, verdicts_of
from diffusers_erase.evaluation.detectors.image_classifier import ImageClassifier, class_number
from diffusers_erase.storage.tensor_cache import digest


def test_image_classifier_ranks_its_five_likeliest_classes(classifier, pictures):
    detector = ImageClassifier.from_pretrained(classifier)
    pixels = detector.processor(images=pictures, return_tensors="pt").pixel_values
    with torch.no_grad():
        expected = detector.model(pixels).logits.softmax(1).topk(5)
    for verdict, scores, order in zip(detector(pictures), *expected, strict=True):
        assert verdict.ranked == tuple(detector.classes[i] for i in order.tolist())
        assert verdict.score == pytest.approx(float(scores[0]), abs=1e-6)
        assert verdict.valid
        assert verdict.labels == verdict.ranked[:1]


def test_image_classifier_verdicts_do_not_depend_on_the_batch(classifier, pictures):
    one, all_ = (
        ImageClassifier.from_pretrained(classifier, batch=batch)(pictures) for batch in (1, 32)
    )
    assert [v.ranked for v in one] == [v.ranked for v in all_]
    assert [v.score for v in one] == pytest.approx([v.score for v in all_], abs=1e-5)
    assert ImageClassifier.from_pretrained(classifier)([]) == []


def test_image_classifier_verdict_is_invalid_below_the_threshold(classifier, pictures):
    scores = [v.score for v in ImageClassifier.from_pretrained(classifier)(pictures)]
    between = sum(sorted(scores)[1:3]) / 2
    found = ImageClassifier.from_pretrained(classifier, threshold=between)(pictures)
    assert [verdict.valid for verdict in found] == [score >= between for score in scores]


def test_image_classifier_info_names_all_that_the_verdicts_depend_on(classifier):
    detector = ImageClassifier.from_pretrained(classifier, threshold=0.25)
    info = json.loads(json.dumps(info_of(detector)))
    assert info["name"] == classifier.name  # the folder's name without its path
    assert info["threshold"] == 0.25
    assert info["weights"] == digest(detector.model)
    assert info["preprocessing"].startswith("ViTImageProcessorPil ")
    assert info["transformers"] == transformers.__version__
    assert info["classes"] == list(detector.classes)


def test_image_classifier_takes_grey_and_transparent_pictures(classifier, odd_pictures):
    assert len(verdicts_of(ImageClassifier.from_pretrained(classifier), odd_pictures)) == 2


def test_image_classifier_names_classes_by_their_first_synonym_that_is_unique(classifier):
    assert ImageClassifier.from_pretrained(classifier).classes == (
        "tench",
        "sax",
        "crane (2)",
        "crane (3)",
        "maillot",
        "maillot, tank suit",
        "golf ball",
    )


def test_image_classifier_renames_classes_by_synonym_or_number(classifier):
    by_name = ImageClassifier.from_pretrained(classifier, names=["saxophone", "Tinca tinca"])
    assert by_name.classes[:2] == ("Tinca tinca", "saxophone")
    by_number = ImageClassifier.from_pretrained(classifier, names={2: "crane bird"})
    assert by_number.classes[2:4] == ("crane bird", "crane (3)")


def test_class_number_finds_a_whole_synonym_of_one_class():
    classes = {0: "tench, Tinca tinca", 1: "sax, saxophone", 2: "crane", 3: "crane", 4: "golf ball"}
    assert class_number(classes, "Saxophone") == 1
    assert class_number(classes, "tench, tinca tinca") == 0
    with pytest.raises(ErasureError, match=r"'ball'.*Did you mean golf ball"):
        class_number(classes, "ball")
    with pytest.raises(ErasureError, match="class 2 and class 3"):
        class_number(classes, "crane")


def test_image_classifier_refuses_names_of_no_class_or_of_two(classifier):
    with pytest.raises(ErasureError, match="No class 7"):
        ImageClassifier.from_pretrained(classifier, names={7: "heron"})
    with pytest.raises(ErasureError, match="Two classes are named 'golf ball'"):
        ImageClassifier.from_pretrained(classifier, names={0: "golf ball"})


def test_image_classifier_refuses_several_classes_per_picture(write_classifier, tmp_path):
    folder = write_classifier(tmp_path, problem_type="multi_label_classification")
    with pytest.raises(ErasureError, match="several classes"):
        ImageClassifier.from_pretrained(folder)


def test_image_classifier_refuses_an_unknown_hub_id():
    with pytest.raises(ErasureError, match=r"Cannot load .* safetensors"):
        ImageClassifier.from_pretrained("nobody/nothing")


def test_image_classifier_does_not_read_pickled_weights(tmp_path, classifier):
    made = transformers.ViTForImageClassification.from_pretrained(classifier)
    made.config.save_pretrained(tmp_path)
    torch.save(made.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(ErasureError, match="safetensors"):
        ImageClassifier.from_pretrained(tmp_path)


def test_image_classifier_refuses_a_model_in_training_mode(classifier):
    made = ImageClassifier.from_pretrained(classifier)
    with pytest.raises(ErasureError, match="training mode"):
        ImageClassifier(made.model.train(), made.processor)
