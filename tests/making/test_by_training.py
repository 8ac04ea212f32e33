from dataclasses import dataclass, replace
from itertools import pairwise

import pytest
import torch
from diffusers import DDIMScheduler

from diffusers_erase import Concept, ErasedConcept, EraserAdapter, ErasureError, Recipe, erase
from diffusers_erase.making import by_training
from diffusers_erase.models.architectures import projections
from diffusers_erase.models.model import Model
from diffusers_erase.models.text_states import encode
from diffusers_erase.training.adversary import LearntWords
from diffusers_erase.training.recipes import RECIPES


QUICK = Recipe("replace", trajectories=2, sampling_steps=2, steps=3, batch=4, learning_rate=1e-2)


def weights(unet):
    return {k: v.clone() for k, v in unet.state_dict().items()}


def unchanged(unet, before):
    after = unet.state_dict()
    return after.keys() == before.keys() and all(
        torch.equal(v, before[k]) for k, v in after.items()
    )


def test_training_leaves_the_pipeline_as_it_was_and_records_how_the_eraser_was_made(untrained):
    before = weights(untrained.unet)
    eraser = erase(untrained, "car", target="truck", recipe=QUICK, progress=False, check=False)
    assert unchanged(untrained.unet, before)
    assert any(eraser.delta(path).abs().max() > 0 for path in eraser.factors)
    config = eraser.config
    assert config.concepts == (ErasedConcept("car", target="truck"),)
    assert (config.recipe, config.rank) == ("replace", 4)
    assert config.parameters["learning_rate"] == 1e-2
    assert config.versions["torch"].startswith("2.")


def test_rank_grows_with_the_concepts_and_every_name_is_trained(untrained, monkeypatch):
    sampled = []
    sample = by_training.sample_trajectories

    def counting(denoiser, scheduler, states, *arguments, **options):
        sampled.append(len(states))
        return sample(denoiser, scheduler, states, *arguments, **options)

    monkeypatch.setattr(by_training, "sample_trajectories", counting)
    concepts = ["oak", Concept("vehicle", synonyms=("car", "truck", "bus"))]
    recipe = replace(QUICK, steps=1)
    eraser = erase(untrained, concepts, recipe=recipe, progress=False, check=False)
    assert eraser.config.rank == 2 * QUICK.rank
    assert {len(A) for A, _ in eraser.factors.values()} == {2 * QUICK.rank}
    assert sampled == [2 + 4 * 4]


def test_training_with_the_same_seed_gives_the_same_eraser(untrained):
    def factors(seed):
        eraser = erase(untrained, "car", recipe=QUICK, seed=seed, progress=False, check=False)
        return torch.cat([f.flatten() for pair in eraser.factors.values() for f in pair])

    one, same, other = factors(0), factors(0), factors(1)
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


@dataclass(frozen=True)
class Noise:
    """An adversary that adds noise of one size to the concept's text states, and learns nothing."""

    size: float

    def begin(self, context, *, seed):
        return NoiseLoop(self.size, seed)


class NoiseLoop:
    def __init__(self, size, seed):
        self.size, self.seed = size, seed

    def __call__(self, step, views):
        view, generator = views["concept"], torch.Generator().manual_seed(self.seed + step)
        states = view.states["concept"]
        noise = torch.randn(states.shape, generator=generator)
        return {**views, "concept": view.with_role("concept", states + self.size * noise)}

    def learn(self, views, loss, mean):
        pass

    def choices(self):
        return ()

    def state(self):
        return {}

    def restore(self, state):
        pass


def test_adversaries_of_a_recipe_change_what_is_trained_and_are_recorded(untrained):
    def made(*adversaries):
        recipe = replace(QUICK, adversaries=adversaries)
        return erase(untrained, "car", target="truck", recipe=recipe, progress=False, check=False)

    def factors(eraser):
        return torch.cat([f.flatten() for pair in eraser.factors.values() for f in pair])

    plain, attacked = made(), made(Noise(0.5))
    assert torch.equal(factors(plain), factors(made(Noise(0.0))))
    assert not torch.equal(factors(plain), factors(attacked))
    assert attacked.config.parameters["adversaries"] == ["Noise(size=0.5)"]


def test_training_that_fails_leaves_the_pipeline_as_it_was(untrained, monkeypatch):
    before = weights(untrained.unet)

    def explode(*_, **__):
        raise RuntimeError("out of memory")

    monkeypatch.setattr("diffusers_erase.making.by_training.train", explode)
    with pytest.raises(RuntimeError, match="out of memory"):
        erase(untrained, "car", recipe=QUICK, progress=False, check=False)
    assert unchanged(untrained.unet, before)


def test_callback_on_step_end_draws_with_the_eraser_in_training(untrained, picture):
    drawn = [picture(untrained)]
    erase(
        untrained,
        "car",
        recipe=QUICK,
        progress=False,
        callback_on_step_end=lambda step: drawn.append(picture(untrained)),
        check=False,
    )
    assert len(drawn) == 1 + QUICK.steps
    assert all((one != two).any() for one, two in pairwise(drawn))
    assert (picture(untrained) == drawn[0]).all()


def test_warm_recipe_starts_at_the_closed_form_edit(untrained):
    still = replace(QUICK, warm=True, steps=1, learning_rate=1e-12, rank=128)
    eraser = erase(
        untrained,
        "car",
        target="truck",
        vocabulary=["oak"],
        recipe=still,
        progress=False,
        check=False,
    )
    states = encode(untrained, ["a photo of a red car", "a photo of a red truck"])
    for path, layer in projections(untrained.unet, ("to_k", "to_v")).items():
        W = layer.weight.detach()
        car, truck = states @ W.T
        answered = states[0] @ (W + eraser.delta(path)).T
        assert (answered - truck).norm() < 0.5 * (car - truck).norm()


def test_keep_prompts_enter_the_training_loss(untrained):
    alone = erase(untrained, "car", recipe=QUICK, progress=False, check=False)
    kept = erase(
        untrained, "car", keep=["an oak", "a cat"], recipe=QUICK, progress=False, check=False
    )
    path = next(iter(alone.factors))
    assert not torch.allclose(alone.delta(path), kept.delta(path))
    assert kept.config.parameters["kept_prompts"] == ["an oak", "a cat"]


@pytest.mark.parametrize(
    ("concept", "options", "message"),
    [
        ("", {}, "empty"),
        (
            "car",
            {"recipe": "esdd"},
            "No recipe 'esdd'. Did you mean 'esd'\\? Known: age, age-table",
        ),
        ("car", {"steps": 0}, "`steps` must be positive"),
        ("car", {"target": " "}, "target is empty"),
        ("car", {"target": "Car"}, "'Car' is the concept itself"),
        ("car", {"keep": "a photo of a dog"}, "sequence of strings"),
    ],
)
def test_training_refuses_bad_requests_before_anything_happens(
    untrained, concept, options, message
):
    before = weights(untrained.unet)
    with pytest.raises(ErasureError, match=message):
        erase(untrained, concept, progress=False, **options, check=False)
    assert unchanged(untrained.unet, before)


def test_training_refuses_pipelines_that_need_more_than_a_prompt(untrained):
    untrained.unet.register_to_config(addition_embed_type="text_time")
    with pytest.raises(ErasureError, match="trained on Stable Diffusion 1 and 2"):
        erase(untrained, "car", recipe=QUICK, progress=False, check=False)


def test_training_refuses_a_pipeline_with_erasers(untrained, make_eraser):
    untrained.load_erasure(make_eraser(untrained.unet))
    with pytest.raises(ErasureError, match="unload_erasures"):
        erase(untrained, "oak", recipe=QUICK, progress=False, check=False)


def test_erase_warns_of_a_word_that_the_text_encoder_does_not_know(untrained):
    with pytest.warns(UserWarning, match="does not know the word 'lighthuose'.*'lighthouse'"):
        erase(untrained, "lighthuose", recipe=QUICK, progress=False, check=False)


def test_erase_does_not_warn_of_known_words(untrained, recwarn):
    concept = Concept("fire truck", synonyms=("fire engine",))
    erase(untrained, concept, target="car", recipe=QUICK, progress=False, check=False)
    assert [str(w.message) for w in recwarn if "does not know" in str(w.message)] == []


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_training_of_half_precision_pipelines_is_in_float32(untrained, dtype):
    untrained.unet.to(dtype)
    before = weights(untrained.unet)
    eraser = erase(untrained, "car", target="truck", recipe=QUICK, progress=False, check=False)
    assert unchanged(untrained.unet, before)
    assert all(A.dtype == torch.float32 for A, _ in eraser.factors.values())
    assert any(eraser.delta(path).abs().max() > 0 for path in eraser.factors)


def test_config_of_a_trained_eraser_comes_back_from_disk(untrained, tmp_path):
    eraser = erase(untrained, "car", recipe=QUICK, progress=False, check=False)
    back = EraserAdapter.from_pretrained(eraser.save_pretrained(tmp_path / "car"))
    assert back.config.to_dict() == eraser.config.to_dict()


WORDS = ["car", "truck", "oak", "cat", "fish", "fire truck"]


@pytest.mark.parametrize("name", sorted(RECIPES))
def test_every_trained_recipe_makes_an_eraser_and_records_its_choice(untrained, name):
    numbers = {"sampling_steps": 2, "steps": 3, "batch": 4, "trajectories": 2}
    recipe = RECIPES[name]
    quick = {"every": 1, "updates": 1, "batch": 2}
    numbers["adversaries"] = tuple(
        replace(each, **quick, rounds=min(each.rounds, 2))
        if isinstance(each, LearntWords)
        else each
        for each in recipe.adversaries
    )
    recipe = replace(recipe, **numbers)
    eraser = erase(untrained, "oak", vocabulary=WORDS, recipe=recipe, progress=False, check=False)
    assert any(eraser.delta(path).abs().max() > 0 for path in eraser.factors)
    (oak,) = eraser.config.concepts
    assert (oak.name, oak.choice == "given") == ("oak", recipe.choose == "given")
    if recipe.choose == "given":
        assert oak.target is None
    else:
        assert oak.target in oak.scores
        assert "oak" not in oak.scores
        if recipe.choose == "nearest":
            assert oak.ranked[0][0] == oak.target


def test_noised_pictures_do_not_change_which_target_is_chosen(untrained):
    def scores(noised):
        recipe = replace(
            RECIPES["surgical-age"],
            trajectories=2,
            sampling_steps=2,
            noised=noised,
            batch=2,
            steps=1,
            pool=0,
        )
        options = {"recipe": recipe, "progress": False, "check": False}
        (oak,) = erase(untrained, "oak", vocabulary=WORDS, **options).config.concepts
        return oak.scores

    assert scores(3) == pytest.approx(scores(0))


def test_protect_null_leaves_the_empty_prompt_unchanged(untrained):
    null, oak = encode(untrained, [""])[0], encode(untrained, ["an oak"])[0]
    for hold, protect in ((True, ["a red car"]), (False, [])):
        recipe = replace(QUICK, protect_null=hold)
        eraser = erase(
            untrained, "oak", recipe=recipe, protect=protect, progress=False, check=False
        )
        car = encode(untrained, ["a red car"])[0]
        for A, B in eraser.factors.values():
            assert ((null @ A.T @ B.T).abs().max() < 1e-7) == hold
            assert ((car @ A.T @ B.T).abs().max() < 1e-7) == hold
            assert (oak @ A.T @ B.T).abs().max() > 1e-6


def test_training_of_two_concepts_gives_each_a_target_of_its_own(untrained):
    both = [Concept("car", synonyms=("automobile",)), "oak"]
    eraser = erase(
        untrained, both, target=("truck", None), recipe=QUICK, progress=False, check=False
    )
    car, oak = eraser.config.concepts
    assert (car.name, car.synonyms, car.target) == ("car", ("automobile",), "truck")
    assert (oak.name, oak.synonyms, oak.target) == ("oak", (), None)
    alone = erase(untrained, "car", target="truck", recipe=QUICK, progress=False, check=False)
    path = next(iter(alone.factors))
    assert not torch.allclose(alone.delta(path), eraser.delta(path))


def test_pool_in_training_names_words_of_the_vocabulary_and_never_the_concept(
    untrained, monkeypatch
):
    said = []

    def watched(model, prompts):
        said.append(list(prompts))
        return encode(model.pipeline, prompts)

    monkeypatch.setattr(Model, "encode", watched)
    recipe = replace(QUICK, pool=10)
    erase(untrained, "truck", vocabulary=WORDS, recipe=recipe, progress=False, check=False)
    (pool,) = (prompts for prompts in said if len(prompts) == 10)
    assert all(any(word in p for p in pool) for word in WORDS if word != "truck")
    assert not any("truck" in prompt.replace("fire truck", "") for prompt in pool)


def test_training_resumes_in_its_work_folder_and_samples_nothing_anew(
    untrained, tmp_path, monkeypatch
):
    recipe = replace(QUICK, steps=6)
    whole = erase(untrained, "car", target="truck", recipe=recipe, progress=False, check=False)

    train = by_training.train

    def stopping(*args, checkpoints, **options):
        often = by_training.Checkpoints(checkpoints.folder, checkpoints.run, every=2)
        for step in train(*args, checkpoints=often, **options):
            if step.index == 3:
                raise KeyboardInterrupt
            yield step

    monkeypatch.setattr(by_training, "train", stopping)
    with pytest.raises(KeyboardInterrupt):
        erase(
            untrained,
            "car",
            target="truck",
            recipe=recipe,
            work=tmp_path,
            progress=False,
            check=False,
        )
    monkeypatch.setattr(by_training, "train", train)

    def no_sampling(*_, **__):
        raise AssertionError("sampled again")

    monkeypatch.setattr(by_training, "sample_trajectories", no_sampling)
    options = {"target": "truck", "work": tmp_path, "progress": False}
    resumed = erase(untrained, "car", recipe=recipe, **options, check=False)
    for path, (A, B) in whole.factors.items():
        assert torch.equal(A, resumed.factors[path][0])
        assert torch.equal(B, resumed.factors[path][1])
    finished = erase(untrained, "car", recipe=recipe, **options, check=False)
    assert finished.config.to_dict() == whole.config.to_dict()
    with pytest.raises(ErasureError, match=r"another run \(learning_rate was 0.01, is 0.5\)"):
        erase(untrained, "car", recipe=replace(recipe, learning_rate=0.5), **options, check=False)


def test_refresh_lets_the_student_sample_the_latents_anew(untrained):
    once = erase(untrained, "car", target="truck", recipe=QUICK, progress=False, check=False)
    twice = [
        erase(
            untrained,
            "car",
            target="truck",
            recipe=replace(QUICK, refresh=1),
            progress=False,
            check=False,
        )
        for _ in range(2)
    ]
    path = next(iter(once.factors))
    assert torch.equal(twice[0].delta(path), twice[1].delta(path))
    assert not torch.allclose(twice[0].delta(path), once.delta(path), rtol=1e-3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"recipe": "age"}, "chooses its target from a vocabulary"),
        ({"recipe": "age-tabel"}, "Did you mean 'age-table'"),
        ({"vocabulary": "truck"}, "sequence of strings"),
        ({"protect": "truck"}, "sequence of strings"),
        ({"recipe": "anti-editing", "protect": ["", "oak"]}, "changes the score of the empty"),
        ({"target": ("truck", "oak")}, r"one for each of .car. .*; got 2"),
        (
            {"protect": ["an oak"], "recipe": replace(QUICK, parts=("to_q",))},
            "can be protected where",
        ),
    ],
)
def test_training_refuses_further_bad_requests(untrained, options, message):
    with pytest.raises(ErasureError, match=message):
        erase(untrained, "car", progress=False, **options, check=False)
    assert not getattr(untrained.unet, "peft_config", None)


@pytest.mark.parametrize("name", ["surgical-age", "age", "all-but-one"])
def test_training_works_where_the_schedule_ends_in_noise_alone(untrained, name):
    config = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    untrained.scheduler = DDIMScheduler.from_config(
        untrained.scheduler.config, prediction_type="v_prediction", **config
    )
    numbers = {"sampling_steps": 2, "steps": 3, "batch": 4, "trajectories": 2, "pool": 2}
    recipe, losses = replace(RECIPES[name], **numbers), []
    erase(
        untrained,
        "oak",
        vocabulary=WORDS,
        recipe=recipe,
        progress=False,
        callback_on_step_end=lambda step: losses.append(step.loss),
        check=False,
    )
    assert len(losses) == 3
    assert all(0 < loss < 1e3 for loss in losses)
