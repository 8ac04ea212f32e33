import json
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import transformers
from PIL import Image

from diffusers_erase.errors import ErasureError
from diffusers_erase.evaluation import classifiers
from diffusers_erase.evaluation.classifiers import (
    ClipZeroShot,
    ImageClassifier,
    NudeNet,
    class_number,
)
from diffusers_erase.evaluation.detectors import looked, told_of
from diffusers_erase.evaluation.features import clip_score, picture_features, text_features
from diffusers_erase.playground.building import networks
from diffusers_erase.storage.tensor_cache import digest


LABELS = ("red circle", "blue square", "green star")
SMALL = {
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
}
SIZE = {"height": 32, "width": 32}


def pictures(n=5):
    dice = np.random.default_rng(0)
    return [Image.fromarray(dice.integers(0, 255, (40, 48, 3), np.uint8)) for _ in range(n)]


def write_pair(folder, *, kind):
    """An untrained CLIP or SigLIP, and what turns pictures and texts into its inputs."""
    tokenizer = networks.write_tokenizer(folder / "words")
    ends = {f"{end}_token_id": getattr(tokenizer, f"{end}_token_id") for end in ("bos", "eos")}
    text = {**SMALL, **ends, "pad_token_id": tokenizer.pad_token_id}
    text |= {"vocab_size": len(tokenizer), "max_position_embeddings": 24}
    vision = {**SMALL, "image_size": 32, "patch_size": 16}
    torch.manual_seed(0)
    if kind == "clip":
        config = transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=16)
        made = transformers.CLIPModel(config)
        processor = transformers.CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size=SIZE)
    else:
        config = transformers.SiglipConfig(
            text_config={**text, "projection_size": 32}, vision_config=vision
        )
        made = transformers.SiglipModel(config)
        torch.nn.init.normal_(made.logit_bias)
        processor = transformers.SiglipImageProcessorPil(size=SIZE)
    torch.nn.init.constant_(made.logit_scale, 3.0)
    for part in (made, processor, tokenizer):
        part.save_pretrained(folder / kind)
    return folder / kind


@pytest.fixture(scope="module", params=["clip", "siglip"])
def pair(request, tmp_path_factory):
    return write_pair(tmp_path_factory.mktemp("pair"), kind=request.param)


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return write_pair(tmp_path_factory.mktemp("clip"), kind="clip")


def write_classifier(folder, labels, **config):
    torch.manual_seed(0)
    config = transformers.ViTConfig(
        **SMALL, image_size=32, patch_size=16, id2label=dict(enumerate(labels)), **config
    )
    made = transformers.ViTForImageClassification(config)
    torch.nn.init.normal_(made.classifier.weight)
    made.save_pretrained(folder)
    transformers.ViTImageProcessorPil(size=SIZE).save_pretrained(folder)
    return folder


CLASSES = [
    "tench, Tinca tinca",
    "sax, saxophone",
    "crane",
    "crane",
    "maillot",
    "maillot, tank suit",
    "golf ball",
]


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    return write_classifier(tmp_path_factory.mktemp("vit"), CLASSES)


def test_probabilities_over_labels_and_none_sum_to_one(pair):
    found = ClipZeroShot.from_pretrained(pair, LABELS).probabilities(pictures())
    assert found.shape == (5, 4)
    assert torch.allclose(found.sum(1), torch.ones(5, dtype=torch.float64))
    assert found.std(1).min() > 1e-4  # or it would see nothing


def test_probabilities_are_those_of_the_model_itself(pair):
    """Whose forward pass gives logits for each picture and text."""
    detector = ClipZeroShot.from_pretrained(pair, LABELS, none=())
    prompts = [f"a photo of a {label}" for label in LABELS]
    ids = detector.tokenizer(
        prompts, padding="max_length", max_length=24, return_tensors="pt"
    ).input_ids
    pixels = detector.processor(images=pictures(), return_tensors="pt").pixel_values
    with torch.no_grad():
        logits = detector.model(input_ids=ids, pixel_values=pixels).logits_per_image
    assert torch.allclose(detector.probabilities(pictures()), logits.softmax(1).double(), atol=1e-5)


def test_a_verdict_is_the_likeliest_label_and_ranks_the_others(clip):
    detector = ClipZeroShot.from_pretrained(clip, LABELS, none=())
    for verdict, row in zip(detector(pictures()), detector.probabilities(pictures()), strict=True):
        order = row.argsort(descending=True).tolist()
        assert verdict.label == LABELS[order[0]]
        assert verdict.score == pytest.approx(float(row.max()))
        assert verdict.ranked == tuple(LABELS[i] for i in order)
        assert verdict.labels == (verdict.label,)
        assert verdict.valid


def test_the_order_of_labels_is_irrelevant(clip):
    found = [
        ClipZeroShot.from_pretrained(clip, labels)(pictures()) for labels in (LABELS, LABELS[::-1])
    ]
    for one, other in zip(*found, strict=True):
        assert one.label == other.label
        assert one.ranked == other.ranked
        assert one.score == pytest.approx(other.score)


def test_none_of_these_is_not_valid(clip):
    """Told by swapping what each picture is seen as into `none`; the rest is as before."""
    before = ClipZeroShot.from_pretrained(clip, LABELS, none=())
    best = before(pictures(1))[0].label
    rest = tuple(label for label in LABELS if label != best)
    after = ClipZeroShot(
        before.model,
        before.processor,
        before.tokenizer,
        rest,
        none=(f"a photo of a {best}",),
    )
    verdict = after(pictures(1))[0]
    assert before(pictures(1))[0].valid
    assert not verdict.valid
    assert verdict.label == f"a photo of a {best}"
    assert verdict.labels == ()
    assert verdict.score == pytest.approx(before(pictures(1))[0].score)


def test_what_is_unlikely_is_not_valid(clip):
    scores = [v.score for v in ClipZeroShot.from_pretrained(clip, LABELS, none=())(pictures())]
    between = sum(sorted(scores)[1:3]) / 2
    detector = ClipZeroShot.from_pretrained(clip, LABELS, none=(), threshold=between)
    assert [verdict.valid for verdict in detector(pictures())] == [s >= between for s in scores]


def test_batches_change_nothing(clip, classifier):
    for made in (
        lambda batch: ClipZeroShot.from_pretrained(clip, LABELS, batch=batch),
        lambda batch: ImageClassifier.from_pretrained(classifier, batch=batch),
    ):
        one, all_ = made(1)(pictures()), made(32)(pictures())
        assert [v.ranked for v in one] == [v.ranked for v in all_]
        assert [v.score for v in one] == pytest.approx([v.score for v in all_], abs=1e-5)
        assert made(2)([]) == []


def test_both_are_detectors_that_tell_of_themselves(clip, classifier):
    for detector in (
        ClipZeroShot.from_pretrained(clip, LABELS, threshold=0.25),
        ImageClassifier.from_pretrained(classifier, threshold=0.25),
    ):
        assert len(looked(detector, pictures(3))) == 3
        told = json.loads(json.dumps(told_of(detector)))
        assert told["name"] in ("clip", classifier.name)  # the folder's name and not its path
        assert told["threshold"] == 0.25
        assert told["weights"] == digest(detector.model)
        assert told["preprocessing"].endswith("Pil")
        assert told["transformers"] == transformers.__version__


def test_clip_tells_its_prompts(clip):
    told = ClipZeroShot.from_pretrained(clip, LABELS, template="{}, a drawing").info
    assert told["classes"] == list(LABELS)
    assert told["none"] == ["none of these"]
    assert told["template"] == "{}, a drawing"


def test_clip_scores_lie_between_0_and_100(clip):
    detector = ClipZeroShot.from_pretrained(clip, LABELS)
    seen = picture_features(detector.model, detector.processor, pictures(3))
    read = text_features(detector.model, detector.tokenizer, LABELS)
    assert seen.shape == read.shape == (3, 16)
    assert seen.dtype == torch.float64
    expected = 100 * torch.nn.functional.cosine_similarity(seen, read).clamp(min=0)
    assert torch.allclose(clip_score(seen, read), expected)


def test_texts_beyond_the_models_length_are_refused_or_cut(clip):
    detector = ClipZeroShot.from_pretrained(clip, LABELS)
    long = "red circle " * 20
    with pytest.raises(ErasureError, match=r"has 42 tokens and the model reads 24"):
        text_features(detector.model, detector.tokenizer, [long])
    cut = text_features(detector.model, detector.tokenizer, [long], truncate=True)
    whole = text_features(detector.model, detector.tokenizer, ["red circle " * 11])
    assert torch.allclose(cut, whole)


def test_a_choice_that_is_none_is_refused(clip):
    for labels, how, message in (
        ((), {}, "is none"),
        (("star",), {"none": ()}, "is none"),
        (("star", "Star"), {}, "there twice"),
        (("star", "none of these"), {}, "there twice"),
        (LABELS, {"template": "a photo"}, "has no {}"),
    ):
        with pytest.raises(ErasureError, match=message):
            ClipZeroShot.from_pretrained(clip, labels, **how)


def test_what_cannot_be_loaded_is_told(tmp_path, classifier):
    for load in (
        lambda: ClipZeroShot.from_pretrained(tmp_path / "absent", LABELS),
        lambda: ImageClassifier.from_pretrained("nobody/nothing"),
    ):
        with pytest.raises(ErasureError, match=r"Cannot load .* safetensors"):
            load()


def test_pickled_weights_are_not_read(tmp_path, classifier):
    made = transformers.ViTForImageClassification.from_pretrained(classifier)
    made.config.save_pretrained(tmp_path)
    torch.save(made.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(ErasureError, match="safetensors"):
        ImageClassifier.from_pretrained(tmp_path)


def test_zero_shot_needs_texts(clip, classifier):
    made = transformers.ViTForImageClassification.from_pretrained(classifier)
    with pytest.raises(ErasureError, match="needs a CLIP or SigLIP"):
        ClipZeroShot(made, None, None, LABELS)


def test_models_in_training_mode_are_refused(clip, classifier):
    detector = ClipZeroShot.from_pretrained(clip, LABELS)
    with pytest.raises(ErasureError, match="training mode"):
        ClipZeroShot(detector.model.train(), detector.processor, detector.tokenizer, LABELS)
    made = ImageClassifier.from_pretrained(classifier)
    with pytest.raises(ErasureError, match="training mode"):
        ImageClassifier(made.model.train(), made.processor)


def test_a_classifier_ranks_its_five_likeliest_classes(classifier):
    detector = ImageClassifier.from_pretrained(classifier)
    pixels = detector.processor(images=pictures(), return_tensors="pt").pixel_values
    with torch.no_grad():
        expected = detector.model(pixels).logits.softmax(1).topk(5)
    for verdict, scores, order in zip(detector(pictures()), *expected, strict=True):
        assert verdict.ranked == tuple(detector.classes[i] for i in order.tolist())
        assert verdict.score == pytest.approx(float(scores[0]), abs=1e-6)
        assert verdict.valid
        assert verdict.labels == verdict.ranked[:1]


def test_grey_and_transparent_pictures_are_seen_in_colour(clip, classifier):
    odd = [Image.new("L", (40, 40), 90), Image.new("RGBA", (30, 40), (1, 2, 3, 4))]
    for detector in (
        ClipZeroShot.from_pretrained(clip, LABELS),
        ImageClassifier.from_pretrained(classifier),
    ):
        assert len(looked(detector, odd)) == 2


def test_classes_are_called_by_what_tells_them_apart(classifier):
    assert ImageClassifier.from_pretrained(classifier).classes == (
        "tench",
        "sax",
        "crane (2)",
        "crane (3)",
        "maillot",
        "maillot, tank suit",
        "golf ball",
    )


def test_classes_can_be_called_otherwise(classifier):
    by_name = ImageClassifier.from_pretrained(classifier, names=["saxophone", "Tinca tinca"])
    assert by_name.classes[:2] == ("Tinca tinca", "saxophone")
    by_number = ImageClassifier.from_pretrained(classifier, names={2: "crane bird"})
    assert by_number.classes[2:4] == ("crane bird", "crane (3)")


def test_a_synonym_is_found_whole_and_in_one_class_only():
    classes = dict(enumerate(CLASSES))
    assert class_number(classes, "Saxophone") == 1
    assert class_number(classes, "tench, tinca tinca") == 0
    with pytest.raises(ErasureError, match=r"'ball'.*Did you mean golf ball"):
        class_number(classes, "ball")
    with pytest.raises(ErasureError, match="class 2 and class 3"):
        class_number(classes, "crane")


def test_names_that_fit_no_class_or_two_are_refused(classifier):
    with pytest.raises(ErasureError, match="no class 7"):
        ImageClassifier.from_pretrained(classifier, names={7: "heron"})
    with pytest.raises(ErasureError, match="be two classes"):
        ImageClassifier.from_pretrained(classifier, names={0: "golf ball"})


def test_classifiers_of_several_classes_at_once_are_refused(tmp_path):
    folder = write_classifier(tmp_path, CLASSES, problem_type="multi_label_classification")
    with pytest.raises(ErasureError, match="several classes"):
        ImageClassifier.from_pretrained(folder)


class Parts:
    """A NudeDetector that says what it is told to, picture by picture."""

    def __init__(self, *said):
        self.said, self.seen = list(said), []

    def detect(self, array):
        self.seen.append(array)
        return [{"class": name, "score": score, "box": [0] * 4} for name, score in self.said.pop(0)]


def test_nudenet_counts_pictures_and_not_parts():
    parts = Parts(
        [("BUTTOCKS_EXPOSED", 0.6), ("BUTTOCKS_EXPOSED", 0.7), ("FEMALE_BREAST_EXPOSED", 0.8)],
        [("FEET_EXPOSED", 0.9), ("FACE_FEMALE", 0.9)],
        [("BUTTOCKS_EXPOSED", 0.4)],
        [],
    )
    found = looked(NudeNet(parts), pictures(4))
    assert [v.label for v in found] == ["nudity", "no nudity", "no nudity", "no nudity"]
    assert found[0].labels == ("nudity", "FEMALE_BREAST_EXPOSED", "BUTTOCKS_EXPOSED")
    assert [v.score for v in found] == pytest.approx([0.8, 1, 0.6, 1])
    assert all(v.valid for v in found)


def test_nudenets_classes_and_threshold_are_the_users_and_told():
    detector = NudeNet(Parts([("FEET_EXPOSED", 0.3)]), 0.25, ("FEET_EXPOSED",))
    assert detector(pictures(1))[0].labels == ("nudity", "FEET_EXPOSED")
    told = told_of(detector)
    assert told["classes"] == ["FEET_EXPOSED"]
    assert told["threshold"] == 0.25


def test_nudenet_is_given_colours_in_their_order():
    parts = Parts([])
    NudeNet(parts)([Image.new("RGB", (4, 4), (200, 10, 20))])
    assert parts.seen[0][0, 0].tolist() == [200, 10, 20]


def test_nudenet_refuses_classes_that_are_none():
    with pytest.raises(ErasureError, match="no class 'breast'"):
        NudeNet(Parts(), classes=("breast",))
    with pytest.raises(ErasureError, match="count no class"):
        NudeNet(Parts(), classes=())
    with pytest.raises(ErasureError, match="a class of no NudeNet 3"):
        NudeNet(Parts([("EXPOSED_BREAST_F", 0.9)]))(pictures(1))


def test_nudenet_names_its_extra_where_the_package_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "nudenet", None)
    with pytest.raises(ErasureError, match=r"diffusers-erase\[nsfw\]"):
        NudeNet.installed()


def test_the_installed_nudenet_tells_its_version_and_weights(monkeypatch, tmp_path):
    (tmp_path / "320n.onnx").write_bytes(b"weights")
    package = SimpleNamespace(NudeDetector=Parts, __file__=str(tmp_path / "__init__.py"))
    monkeypatch.setitem(sys.modules, "nudenet", package)
    monkeypatch.setattr(classifiers, "version", lambda name: "3.4.2")
    told = NudeNet.installed(threshold=0.3).info
    assert told["version"] == "3.4.2"
    assert told["threshold"] == 0.3
    assert len(told["weights"]) == 32
    (tmp_path / "320n.onnx").write_bytes(b"other weights")
    assert NudeNet.installed().info["weights"] != told["weights"]
