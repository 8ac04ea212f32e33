"""Interference between erasers, measured on text states before any picture is drawn."""

import math
from dataclasses import replace

import pytest
import torch
from accelerate import cpu_offload

from diffusers_erase import EraserAdapter, ErasureError, erase
from diffusers_erase.concepts import Concept
from diffusers_erase.eraser.config import ErasedConcept
from diffusers_erase.eraser.lora import Lora
from diffusers_erase.eraser.stacking import interference
from diffusers_erase.models.architectures import text_weights
from diffusers_erase.models.text_states import encode
from tests import zoo


def test_interference_is_what_the_other_does_to_the_concepts_states(untrained, make_eraser):
    one, other = make_eraser(untrained.unet, seed=1), make_eraser(untrained.unet, seed=2)
    other = replace(other, config=replace(other.config, concepts=(ErasedConcept("cat"),)))
    with pytest.warns(UserWarning, match="changes the concept of"):
        untrained.load_erasure([one, other], strength=[0.5, 2.0])
    found = untrained.list_erasures()
    for name, own, foreign, ratio in (("car", one, other, 4.0), ("cat", other, one, 0.25)):
        prompts = [p.text for p in Concept(name).example_prompts(4)]
        E = encode(untrained, prompts).flatten(0, 1)
        moved = [
            sum(float((E @ eraser.delta(path).T).square().sum()) for path in eraser.factors)
            for eraser in (foreign, own)
        ]
        expected = ratio * (moved[0] / moved[1]) ** 0.5
        (only,) = found[name].interference.values()
        assert only == pytest.approx(expected, rel=1e-4)


@pytest.mark.filterwarnings("ignore:The eraser")
def test_interferences_ask_for_every_concept_of_an_eraser_with_its_own_kind(untrained, make_eraser):
    both = make_eraser(untrained.unet, seed=1)
    concepts = (ErasedConcept("car"), ErasedConcept("oak", "attribute", ("oaken",)))
    both = replace(both, config=replace(both.config, concepts=concepts))
    other = make_eraser(untrained.unet, seed=2, concept="cat")
    untrained.load_erasure([both, other])
    asked = (Concept("car"), Concept("oak", "attribute", ("oaken",)))
    prompts = [prompt.text for concept in asked for prompt in concept.example_prompts(4)]
    E = encode(untrained, prompts).flatten(0, 1)
    moved = [
        sum(float((E @ one.delta(path).T).square().sum()) for path in one.factors)
        for one in (other, both)
    ]
    found = untrained.list_erasures()["car and oak"]
    assert found.interference == pytest.approx({"cat": (moved[0] / moved[1]) ** 0.5}, rel=1e-4)
    assert found.concepts == concepts


@pytest.mark.filterwarnings("ignore:The eraser")
def test_interference_compares_every_target_with_the_erased_concepts(untrained, make_eraser):
    both = make_eraser(untrained.unet, seed=1)
    concepts = (ErasedConcept("car"), ErasedConcept("oak", target="Paris, Texas"))
    both = replace(both, config=replace(both.config, concepts=concepts))
    untrained.load_erasure(both)
    paris = make_eraser(untrained.unet, seed=2, concept="Paris, Texas")
    with pytest.warns(UserWarning, match="is 'Paris, Texas', which 'Paris, Texas'"):
        untrained.load_erasure(paris)


def test_interference_is_equal_for_text_maps_and_their_loras(untrained):
    words = ["oak", "cat", "van"]
    several = [
        erase(untrained, n, vocabulary=words, recipe="uce", check=False) for n in ("car", "dog")
    ]
    states = {"car": torch.randn(9, 128), "dog": torch.randn(7, 128)}
    weights = text_weights(untrained.unet)
    grams = {e.config.title: e.text_map.gram(weights.values()) for e in several}
    found = [
        interference(
            {e.config.title: (kind(e), 1.0) for e in several}, states, grams if maps else {}
        )
        for maps, kind in (
            (True, lambda e: e.portable),
            (False, lambda e: EraserAdapter((Lora(e.factors),), e.config)),
        )
    ]
    for name in states:
        assert found[0][name] == pytest.approx(found[1][name], rel=1e-4)


def test_interference_is_empty_for_one_eraser_and_beside_one_of_strength_zero(
    untrained, make_eraser
):
    untrained.load_erasure(make_eraser(untrained.unet))
    assert untrained.list_erasures()["car"].interference == {}
    untrained.load_erasure(make_eraser(untrained.unet, seed=1, concept="cat"), strength=0.0)
    assert untrained.list_erasures()["car"].interference == {}
    assert untrained.list_erasures()["cat"].interference == {}


@pytest.mark.filterwarnings("ignore:The eraser")
def test_load_erasure_warns_of_a_target_that_another_eraser_erases(untrained, make_eraser):
    untrained.load_erasure(make_eraser(untrained.unet))  # its target is `truck`
    truck = make_eraser(untrained.unet, seed=3, concept="lorry")
    erased = ErasedConcept("lorry", synonyms=("truck",))
    truck = replace(truck, config=replace(truck.config, concepts=(erased,)))
    with pytest.warns(UserWarning, match="target of 'car' is 'truck', which 'lorry' erases"):
        untrained.load_erasure(truck)


def test_interference_is_empty_without_a_text_encoder(untrained, make_eraser):
    from diffusers_erase import list_erasures, load_erasure

    load_erasure(untrained.unet, make_eraser(untrained.unet))
    load_erasure(untrained.unet, make_eraser(untrained.unet, seed=1, concept="cat"))
    assert [x.interference for x in list_erasures(untrained.unet).values()] == [{}, {}]


@pytest.mark.filterwarnings("ignore:The eraser")
def test_interference_of_another_concept_under_the_same_name_is_measured_anew(
    untrained, make_eraser
):
    several = [make_eraser(untrained.unet, seed=k, concept=c) for k, c in enumerate("xyz")]
    several = [
        replace(e, config=replace(e.config, concepts=(ErasedConcept(c),)))
        for e, c in zip(several, "xyz", strict=True)
    ]
    untrained.load_erasure(several[0], "one")
    untrained.load_erasure(several[1], "other")
    untrained.unload_erasure("one")
    untrained.load_erasure(several[2], "one")
    again = untrained.list_erasures()["one"].interference
    untrained.unload_erasures()
    del untrained.unet._erasures
    untrained.load_erasure([several[1], several[2]], ["other", "one"])
    assert untrained.list_erasures()["one"].interference == pytest.approx(again)


@pytest.mark.filterwarnings("ignore:The eraser")
def test_verify_erasures_of_offloaded_weights_is_unknown(untrained, make_eraser):
    untrained.load_erasure([make_eraser(untrained.unet, seed=k) for k in (1, 2)], ["a", "b"])
    known = untrained.list_erasures()
    cpu_offload(untrained.unet, execution_device=torch.device("cpu"))
    assert untrained.list_erasures() == known
    assert all(math.isnan(share) for share in untrained.verify_erasures().values())


@pytest.mark.filterwarnings("ignore:The eraser 'car' changes|The eraser 'dog' changes")
def test_load_erasure_works_although_the_text_encoder_fails(untrained, monkeypatch):
    words = ["oak", "cat", "van"]
    several = [
        erase(untrained, n, vocabulary=words, recipe="uce", check=False) for n in ("car", "dog")
    ]
    untrained.load_erasure(several[0])

    def fail(*_, **__):
        raise MemoryError("no room")

    monkeypatch.setattr(untrained, "encode_prompt", fail)
    with (
        pytest.warns(UserWarning, match="'dog' is loaded without a check.*MemoryError: no room"),
        pytest.warns(UserWarning, match="Interference .* not measured: MemoryError: no room"),
    ):
        untrained.load_erasure(several[1])
    with pytest.warns(UserWarning, match="Interference .* not measured"):
        assert [x.interference for x in untrained.list_erasures().values()] == [{}, {}]
    assert untrained.verify_erasures() == pytest.approx({"car": 1, "dog": 1}, abs=1e-4)


@pytest.mark.filterwarnings("ignore:The eraser 'car' changes|The eraser 'dog' changes")
@pytest.mark.parametrize("make", zoo.WITHOUT_ENCODE_PROMPT)
def test_load_erasure_works_without_a_usual_encode_prompt(untrained, make):
    pipe, usual = make(untrained)
    several = [
        erase(usual, n, vocabulary=["oak", "cat"], recipe="uce", check=False)
        for n in ("car", "dog")
    ]
    pipe.load_erasure([eraser.portable for eraser in several])
    assert [x.interference for x in pipe.list_erasures().values()] == [{}, {}]
    found = {path: W.clone() for path, W in text_weights(pipe.unet).items()}
    pipe.unload_erasures()
    for path, W in text_weights(pipe.unet).items():
        expected = W + sum(eraser.delta(path, W) for eraser in several)
        assert torch.allclose(found[path], expected, atol=1e-5)
        assert not torch.allclose(found[path], W, atol=1e-4)


@pytest.mark.filterwarnings("ignore:The eraser 'car' changes|The eraser 'dog' changes")
def test_interference_is_measured_where_encode_prompt_counts_videos(untrained):
    pipe, usual = zoo.animated_sdxl(untrained)
    several = [
        erase(usual, n, vocabulary=["oak", "cat"], recipe="uce", check=False)
        for n in ("car", "dog")
    ]
    usual.load_erasure(several)
    expected = usual.list_erasures()
    pipe.load_erasure(several)
    for name, found in pipe.list_erasures().items():
        assert found.interference == pytest.approx(dict(expected[name].interference), rel=1e-3)
        assert len(found.interference) == 1


def test_latent_upscaler_refuses_erasers_of_the_usual_states_and_loads_its_own(
    untrained,
):
    pipe, usual = zoo.latent_upscaler(untrained)
    with pytest.raises(ErasureError, match="reads 'car' otherwise"):
        pipe.load_erasure(erase(usual, "car", vocabulary=["oak", "cat"], recipe="uce", check=False))
    pipe.load_erasure(erase(pipe, "car", vocabulary=["oak", "cat"], recipe="uce", check=False))
    assert pipe.verify_erasures() == pytest.approx({"car": 1}, abs=1e-4)


def test_list_erasures_names_the_folder_an_eraser_came_from(untrained, make_eraser, tmp_path):
    folder = make_eraser(untrained.unet).save_pretrained(tmp_path / "car")
    untrained.load_erasure(folder)
    (found,) = untrained.list_erasures().values()
    assert (found.source, found.commit) == (str(folder), None)
