import pytest
import torch

from diffusers_erase import Concept, EraserAdapter, ErasureError, Recipe, erase


QUICK = Recipe("replace", sampling_steps=2, steps=3, batch=4, learning_rate=1e-2)


def weights(unet):
    return {k: v.clone() for k, v in unet.state_dict().items()}


def unchanged(unet, before):
    after = unet.state_dict()
    return after.keys() == before.keys() and all(
        torch.equal(v, before[k]) for k, v in after.items()
    )


def test_the_pipeline_is_left_as_it_was_and_the_eraser_knows_its_story(untrained):
    before = weights(untrained.unet)
    eraser = erase(untrained, "car", target="truck", recipe=QUICK, progress=False)
    assert unchanged(untrained.unet, before)
    assert any(eraser.delta(path).abs().max() > 0 for path in eraser.factors)
    config = eraser.config
    assert (config.concept, config.target, config.recipe, config.rank) == (
        "car",
        "truck",
        "replace",
        4,
    )
    assert config.parameters["learning_rate"] == 1e-2
    assert config.versions["torch"].startswith("2.")


def test_the_same_seed_gives_the_same_eraser(untrained):
    def factors(seed):
        eraser = erase(untrained, "car", recipe=QUICK, seed=seed, progress=False)
        return torch.cat([f.flatten() for pair in eraser.factors.values() for f in pair])

    one, same, other = factors(0), factors(0), factors(1)
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


def test_a_run_that_fails_leaves_the_pipeline_as_it_was(untrained, monkeypatch):
    before = weights(untrained.unet)

    def explode(*_, **__):
        raise RuntimeError("out of memory")

    monkeypatch.setattr("diffusers_erase.making.train", explode)
    with pytest.raises(RuntimeError, match="out of memory"):
        erase(untrained, "car", recipe=QUICK, progress=False)
    assert unchanged(untrained.unet, before)


def test_kept_prompts_enter_the_loss(untrained):
    alone = erase(untrained, "car", recipe=QUICK, progress=False)
    kept = erase(untrained, "car", keep=["an oak", "a cat"], recipe=QUICK, progress=False)
    path = next(iter(alone.factors))
    assert not torch.allclose(alone.delta(path), kept.delta(path))
    assert kept.config.parameters["kept_prompts"] == ["an oak", "a cat"]


@pytest.mark.parametrize(
    ("concept", "options", "message"),
    [
        ("", {}, "empty"),
        ("car", {"recipe": "esdd"}, "No recipe named 'esdd'. Known: esd, replace"),
        ("car", {"steps": 0}, "`steps` must be positive"),
        ("car", {"target": " "}, "target is empty"),
        ("car", {"target": "Car"}, "'Car' is the concept itself"),
        ("car", {"keep": "a photo of a dog"}, "sequence of prompts"),
    ],
)
def test_bad_requests_are_refused_before_anything_happens(untrained, concept, options, message):
    before = weights(untrained.unet)
    with pytest.raises(ErasureError, match=message):
        erase(untrained, concept, progress=False, **options)
    assert unchanged(untrained.unet, before)


def test_pipelines_that_need_more_than_a_prompt_are_refused(untrained):
    untrained.unet.register_to_config(addition_embed_type="text_time")
    with pytest.raises(ErasureError, match="made on Stable Diffusion 1 and 2"):
        erase(untrained, "car", recipe=QUICK, progress=False)


def test_erasers_are_not_made_on_top_of_erasers(untrained, make_eraser):
    untrained.load_erasure(make_eraser(untrained.unet))
    with pytest.raises(ErasureError, match="unload_erasures"):
        erase(untrained, "oak", recipe=QUICK, progress=False)


def test_a_word_the_text_encoder_does_not_know_is_warned_about(untrained):
    with pytest.warns(UserWarning, match="does not know the word 'lighthuose'.*'lighthouse'"):
        erase(untrained, "lighthuose", recipe=QUICK, progress=False)


def test_known_words_are_not_warned_about(untrained, recwarn):
    concept = Concept("fire truck", synonyms=("fire engine",))
    erase(untrained, concept, target="car", recipe=QUICK, progress=False)
    assert [str(w.message) for w in recwarn if "does not know" in str(w.message)] == []


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_pipelines_train_in_float32(untrained, dtype):
    untrained.unet.to(dtype)
    before = weights(untrained.unet)
    eraser = erase(untrained, "car", target="truck", recipe=QUICK, progress=False)
    assert unchanged(untrained.unet, before)
    assert all(A.dtype == torch.float32 for A, _ in eraser.factors.values())
    assert any(eraser.delta(path).abs().max() > 0 for path in eraser.factors)


def test_the_whole_story_comes_back_from_disk(untrained, tmp_path):
    eraser = erase(untrained, "car", recipe=QUICK, progress=False)
    back = EraserAdapter.from_pretrained(eraser.save_pretrained(tmp_path / "car"))
    assert back.config.to_dict() == eraser.config.to_dict()
