"""Words learnt against the eraser in training."""

from dataclasses import replace
from itertools import islice
from types import SimpleNamespace

import pytest
import torch

from diffusers_erase import ErasureError, erase
from diffusers_erase.attacks.inversion import LearntWord
from diffusers_erase.concepts import Concept, Prompt
from diffusers_erase.models.architectures import text_weights
from diffusers_erase.models.denoiser import Denoiser, NoiseSchedule
from diffusers_erase.models.embedding_hooks import placeholder_words
from diffusers_erase.models.lora import attached
from diffusers_erase.models.text_states import encode
from diffusers_erase.models.trajectories import sample_trajectories
from diffusers_erase.training import adversary, trainer
from diffusers_erase.training.adversary import LearntWords
from diffusers_erase.training.checkpoints import Checkpoints
from diffusers_erase.training.nearby import NearbyStates
from diffusers_erase.training.objectives import Keep, Steer
from diffusers_erase.training.recipes import Recipe
from diffusers_erase.training.regenerated import RegeneratedStates
from diffusers_erase.training.targets import TargetContext
from diffusers_erase.training.trainer import Pace, train


@pytest.fixture
def context(untrained):
    """A car and an oak, on a denoiser with a student that is the base."""
    prompts = (Prompt("a red {}", "car"), Prompt("{a} at night", "car"), Prompt("{a}", "oak"))
    texts = [prompt.text for prompt in prompts]
    with attached(untrained.unet, parts=("to_k", "to_v"), rank=2, seed=0) as lora:
        schedule = NoiseSchedule.of(untrained.scheduler)
        denoiser = Denoiser(untrained.unet, schedule, lora.adapter_disabled)
        states = encode(untrained, texts), encode(untrained, [""])
        kept = sample_trajectories(denoiser, untrained.scheduler, *states, steps=3)
        kept = kept.remember(denoiser, "target", encode(untrained, ["a cat"] * 3))
        found = TargetContext(
            denoiser,
            lambda texts: encode(untrained, texts),
            (Concept("car"), Concept("oak")),
            prompts,
            torch.tensor([0, 0, 1]),
            kept,
            pipeline=untrained,
        )
        yield SimpleNamespace(context=found, lora=lora, pipe=untrained)


def test_a_search_lowers_its_loss_and_a_round_of_defence_raises_it(context):
    """The eraser learns the target for the word found, which then draws the concept less."""
    settings = LearntWords(every=100, updates=12, batch=6)
    found = settings.begin(context.context, seed=0)
    view = context.context.trajectories.at(context.context.denoiser, torch.arange(9))
    found(0, {"concept": view})
    first, *_, last = found.losses
    assert last < 0.7 * first

    def missed():
        states = found(0, {"concept": view})["concept"]
        with torch.no_grad():
            score = states.student("adversary")
        return (score - view.teacher("concept")).square().mean().item()

    before = missed()
    runs = {"concept": context.context.trajectories}
    loop = train(
        context.context.denoiser,
        context.lora.parameters,
        runs,
        Steer(role="adversary"),
        pace=Pace(steps=12, batch=6, learning_rate=1e-2),
        inner=(found,),
    )
    *_, _ = loop
    assert missed() > 1.5 * before


def test_each_concept_has_its_own_word_in_its_own_prompts(context):
    found = LearntWords(updates=1).begin(context.context, seed=0)
    view = context.context.trajectories.at(context.context.denoiser, torch.arange(9))
    states = found(0, {"concept": view})["concept"].states["adversary"]
    assert found.words.shape[:2] == (1, 2)
    templates = ["a red {}", "a {} at night", "a {}"]
    placeholder = placeholder_words(context.pipe.tokenizer, templates)
    assert placeholder[0] not in {"a", "red", "at", "night"}
    for row, prompt in enumerate(context.context.trajectories.prompt.tolist()):
        word = LearntWord(found.words[0, prompt // 2], (), 0)
        wanted = word.states(context.pipe, [templates[prompt]])
        assert torch.allclose(states[row], wanted[0], atol=1e-5)


def test_words_are_searched_every_so_many_steps_and_the_newest_are_remembered(context):
    found = LearntWords(every=2, updates=1, memory=2).begin(context.context, seed=0)
    view = context.context.trajectories.at(context.context.denoiser, torch.arange(3))
    sizes, newest = [], []
    for step in range(7):
        for _ in range(2):  # two minibatches of one step
            found(step, {"concept": view})
        sizes.append(len(found.words))
        newest.append(found.words[-1])
    assert sizes == [1, 1, 2, 2, 2, 2, 2]
    assert torch.equal(newest[0], newest[1])
    assert not torch.equal(newest[1], newest[2])
    assert torch.equal(found.words[0], newest[4])


def test_mixed_words_lie_between_two_that_are_remembered(context, monkeypatch):
    """A word for each latent, of the latent's own concept."""
    view = context.context.trajectories.at(context.context.denoiser, torch.arange(9))
    owners = context.context.concept_of[context.context.trajectories.prompt]
    taken = []

    def states(pipe, texts, words, placeholder):
        taken.append(words)
        return encode(pipe, list(texts))

    for mixed in (True, False):
        found = LearntWords(every=100, updates=1, mixed=mixed).begin(context.context, seed=0)
        found(0, {"concept": view})
        with monkeypatch.context() as patch:
            patch.setattr(adversary, "word_states", states)
            found(2, {"concept": view})
            assert torch.allclose(taken[-1], found.words[0, owners])  # there is one word alone
            first, second = torch.zeros_like(found.words[0]), torch.ones_like(found.words[0])
            second[1] = 3
            found.words = torch.stack([first, second])
            found(4, {"concept": view})
            found(4, {"concept": view})  # another minibatch of this step
        words = taken[-1][:, 0] / second[owners, 0]
        assert torch.equal(taken[-2], taken[-1]) != mixed
        assert words.std(1).max() < 1e-6
        assert ((words >= 0) & (words <= 1)).all()
        assert len(set(words[:, 0].tolist())) > 3 if mixed else (words == 1).all()


def test_after_the_last_round_no_word_is_searched_and_all_take_turns(context):
    found = LearntWords(every=2, updates=1, rounds=3).begin(context.context, seed=0)
    view = context.context.trajectories.at(context.context.denoiser, torch.arange(3))
    sizes, met = [], []
    for step in range(40):
        states = found(step, {"concept": view})["concept"].states["adversary"]
        sizes.append(len(found.words))
        met.append(states.sum().item())
    assert sizes == [1, 1, 2, 2] + [3] * 36
    counts = [met[4:].count(value) for value in set(met[4:])]
    assert len(counts) == 3
    assert min(counts) > 5
    assert (found.settings.restart, LearntWords().restart) == (4, 0)


def test_soft_tokens_stand_behind_the_whole_prompt_and_do_learn(context):
    settings = LearntWords(every=100, updates=12, batch=6, tokens=4, beside=True)
    found = settings.begin(context.context, seed=0)
    view = context.context.trajectories.at(context.context.denoiser, torch.arange(9))
    states = found(0, {"concept": view})["concept"].states["adversary"]
    first, *_, last = found.losses
    assert last < 0.8 * first
    assert found.words.shape == (1, 2, 4, 128)
    texts = ["a red car {}", "a car at night {}", "an oak {}"]
    for row, prompt in enumerate(context.context.trajectories.prompt.tolist()):
        word = LearntWord(found.words[0, prompt // 2], (), 0)
        wanted = word.states(context.pipe, [texts[prompt]])
        assert torch.allclose(states[row], wanted[0], atol=1e-5)
        assert not torch.allclose(states[row], view.states["concept"][row], atol=1e-2)


def test_soft_tokens_that_do_not_fit_behind_a_prompt_are_refused(context):
    with pytest.raises(ErasureError, match="or the prompt is too long"):
        LearntWords(tokens=20, beside=True).begin(context.context, seed=0)


def test_a_run_that_is_resumed_between_two_searches_goes_on_with_the_same_words(context):
    settings, step = LearntWords(every=2, updates=2), 3
    view = context.context.trajectories.at(context.context.denoiser, torch.arange(3))
    whole, resumed = (settings.begin(context.context, seed=4) for _ in range(2))
    for i in range(step):
        whole(i, {"concept": view})
    resumed.restore(whole.state())
    for i in range(step, 6):
        one, other = (loop(i, {"concept": view})["concept"] for loop in (whole, resumed))
        assert torch.equal(one.states["adversary"], other.states["adversary"])
    assert torch.equal(whole.words, resumed.words)


def test_the_last_search_is_against_the_student_before_it_begins_anew(context, monkeypatch):
    met = []
    search = adversary.LearntWordsState._search

    def watched(self, step):
        met.append(max(B.abs().max().item() for _, B in context.lora.factors().values()))
        return search(self, step)

    monkeypatch.setattr(adversary.LearntWordsState, "_search", watched)
    settings = LearntWords(every=2, updates=1, batch=2, rounds=3)
    loop = train(
        context.context.denoiser,
        context.lora.parameters,
        {"concept": context.context.trajectories},
        Steer(role="adversary"),
        pace=Pace(steps=6, batch=2, learning_rate=1e-2, restart=settings.restart),
        inner=(settings.begin(context.context, seed=0),),
    )
    sizes = [max(B.abs().max().item() for _, B in context.lora.factors().values()) for _ in loop]
    assert met == [0, sizes[1], sizes[3]]
    assert sizes[4] == pytest.approx(1e-2, rel=1e-3)  # Adam's first step, from B = 0


def test_a_search_that_finds_nothing_is_the_last_one(context, tmp_path, monkeypatch):
    """The run ends with its round, at a rate that falls; a resumed one ends there, too."""
    losses = iter([0.9, 1.5])

    def searched(self, step):
        self.losses = (next(losses),) * 20
        return torch.zeros(self.words.shape[1:])

    monkeypatch.setattr(adversary.LearntWordsState, "_search", searched)
    rates = []
    descend = trainer._Run.descend
    monkeypatch.setattr(
        trainer._Run,
        "descend",
        lambda run, rate, clip: [rates.append(rate), descend(run, rate, clip)],
    )
    settings = LearntWords(every=4, enough=1.2)
    pace = Pace(steps=100, batch=2, learning_rate=1e-2)

    def steps():
        return train(
            context.context.denoiser,
            context.lora.parameters,
            {"concept": context.context.trajectories},
            Steer(role="adversary"),
            pace=pace,
            inner=(settings.begin(context.context, seed=0),),
            checkpoints=Checkpoints(tmp_path, {"a": 1}, every=6),
        )

    assert [step.index for step in islice(steps(), 7)] == list(range(7))
    first = {path: B.clone() for path, (_, B) in context.lora.factors().items()}
    assert [step.index for step in steps()] == [6, 7]
    assert list(steps()) == []
    shares = [rate / pace.rate(i) for i, rate in enumerate([*rates[:6], *rates[7:]])]
    falls = [trainer._fallen(i, 4, 8) for i in range(4, 8)]
    assert shares == pytest.approx([1, 1, 1, 1, *falls])
    assert falls[::2] == pytest.approx([1, 0.55])  # halfway from 1 to a tenth
    assert any(not torch.equal(B, first[path]) for path, (_, B) in context.lora.factors().items())


def test_a_run_does_not_end_after_its_steps():
    loops = [SimpleNamespace(), SimpleNamespace(ending=None), SimpleNamespace(ending=(30, 60))]
    assert trainer.ending(loops, 35) == (30, 35)
    assert trainer.ending(loops, 100) == (30, 60)
    assert trainer.ending(loops[:2], 35) == (35, 35)


QUICK = Recipe("quick", trajectories=2, sampling_steps=2, steps=3, batch=2, rank=2)


def test_an_eraser_is_trained_against_the_words_and_the_card_says_so(untrained):
    against = replace(
        QUICK,
        keep=((1.0, Steer(role="adversary")), (1.0, Keep("null", at="concept"))),
        adversaries=(LearntWords(every=2, updates=2, batch=2),),
        parts=("to_q", "to_k", "to_v", "to_out.0"),
    )

    def factors(recipe):
        options = {"target": "truck", "progress": False, "check": False}
        eraser = erase(untrained, "car", recipe=recipe, **options)
        return eraser, torch.cat([f.flatten() for pair in eraser.factors.values() for f in pair])

    eraser, one = factors(against)
    assert torch.equal(one, factors(against)[1])
    assert not torch.equal(one, factors(replace(against, keep=against.keep[1:]))[1])
    assert eraser.config.parameters["adversaries"][0].startswith("LearntWords(every=2")
    assert "role='adversary'" in eraser.config.parameters["keep"][0][1]
    assert "ended_after_steps" not in eraser.config.parameters
    ends = replace(against, adversaries=(replace(against.adversaries[0], enough=1e-9),))
    assert factors(ends)[0].config.parameters["ended_after_steps"] == 2


def test_an_adversary_that_no_term_faces_changes_nothing(untrained):
    def factors(*adversaries):
        recipe = replace(QUICK, adversaries=adversaries)
        options = {"target": "truck", "progress": False, "check": False}
        found = erase(untrained, "car", recipe=recipe, **options).factors
        return torch.cat([f.flatten() for pair in found.values() for f in pair])

    assert torch.equal(factors(), factors(LearntWords(updates=1)))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"updates": 0}, "`updates` is a number of 1 or more, without a fraction; got 0"),
        ({"memory": 1.5}, "`memory` is a number of 1 or more"),
        ({"mixed": "no"}, "`mixed` is True or False; got 'no'"),
        ({"learning_rate": 0}, "`learning_rate` must be positive"),
        ({"spread": -1}, "`spread` must not be negative"),
        ({"rounds": 5, "memory": 4}, "`memory` must be no less than `rounds`.* got 4 and 5"),
        ({"enough": 0}, "`enough` is a positive loss"),
        ({"enough": 1.2, "rounds": 2}, "ends no run with `rounds`; got 1.2"),
        ({"tokens": 0}, "`tokens` is a number of 1 or more"),
        ({"rounds": 1}, "`rounds` is a number of 2 or more searches, or 0 .* got 1"),
    ],
)
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(ErasureError, match=message):
        LearntWords(**settings)


def test_prompts_in_which_no_word_can_be_learnt_are_refused(context):
    prompts = (Prompt("many {}s at night", "car"), *context.context.prompts[1:])
    with pytest.raises(ErasureError, match=r"No word can stand for .* in the prompt 'many"):
        LearntWords().begin(replace(context.context, prompts=prompts), seed=0)


def test_a_place_keeps_its_preposition():
    beach = Prompt("a photo of a house {in}", "beach", "place")
    stars = Prompt("a photo of a house {in}", "under the stars", "place")
    assert adversary._template(beach) == "a photo of a house on the {}"
    assert adversary._template(stars) == "a photo of a house {}"


def test_a_term_for_an_adversary_needs_one():
    with pytest.raises(ErasureError, match="has the role `adversary`, and no adversary has"):
        Recipe("x", keep=((1.0, Steer(role="adversary")),))
    words = LearntWords(role="words")
    with pytest.raises(ErasureError, match="role in the view `concept`"):
        Recipe("x", keep=((1.0, Steer(role="word")),), adversaries=(words,))
    with pytest.raises(ErasureError, match="would end the run before another one's `rounds`"):
        Recipe("x", adversaries=(replace(words, rounds=2), LearntWords(enough=1.0)))
    for same in ("words", "concept"):
        with pytest.raises(ErasureError, match="`role` of its own"):
            Recipe("x", adversaries=(words, NearbyStates(role=same)))


def test_two_adversaries_have_a_role_each(context):
    loops = [
        each.begin(context.context, seed=0)
        for each in (LearntWords(updates=1, role="words"), NearbyStates())
    ]
    views = {"concept": context.context.trajectories.at(context.context.denoiser, torch.arange(9))}
    for loop in loops:
        views = loop(0, views)
    states = views["concept"].states
    assert not torch.equal(states["words"], states["adversary"])
    assert not torch.equal(states["words"], states["concept"])


def test_states_nearby_lie_in_their_shell_and_the_first_token_stays(context):
    loop = NearbyStates(cosine=(0.7, 0.8)).begin(context.context, seed=0)
    view = context.context.trajectories.at(context.context.denoiser, torch.arange(9))
    states, again, other = (loop(step, {"concept": view})["concept"].states for step in (3, 3, 4))
    own, near = states["concept"], states["adversary"]
    assert torch.equal(near[:, 0], own[:, 0])
    cosines = torch.nn.functional.cosine_similarity(near[:, 1:], own[:, 1:], dim=-1)
    assert cosines.min() > 0.699
    assert cosines.max() < 0.801
    torch.testing.assert_close(near.norm(dim=-1), own.norm(dim=-1))
    assert torch.equal(again["adversary"], near)
    assert not torch.equal(other["adversary"], near)
    further = replace(loop.settings, role="beyond").begin(context.context, seed=0)
    beyond = further(3, {"concept": view})["concept"].states["beyond"]
    rest = [(each - own)[:, 1:].flatten() for each in (near, beyond)]
    assert torch.nn.functional.cosine_similarity(*rest, dim=0) < 0.5  # each has its own directions


@pytest.mark.parametrize("cosine", [(0.8, 0.7), (-0.1, 0.5), (0.5, 1.1), 0.8, (0.8,), [0.7, 0.8]])
def test_a_shell_has_cosines_between_0_and_1(cosine):
    with pytest.raises(ErasureError, match="range in 0"):
        NearbyStates(cosine=cosine)


def test_regenerated_states_regain_the_keys_and_values_of_the_concept(context):
    """They are the concept's own as long as the eraser changes nothing."""
    about = replace(context.context, factors=context.lora.factors)
    view = about.trajectories.at(about.denoiser, torch.arange(9))
    c = view.states["concept"]
    loop = RegeneratedStates(bound=1e-9, role="regained").begin(about, seed=0)
    assert torch.allclose(loop(0, {"concept": view})["concept"].states["regained"], c, atol=1e-4)
    generator = torch.Generator().manual_seed(1)
    for p in context.lora.parameters:
        p.data = 0.2 * torch.randn(p.shape, generator=generator)
    found = loop(1, {"concept": view})["concept"].states["regained"]
    weights = text_weights(about.denoiser.unet)
    assert len(weights) == len(context.lora.factors())
    left, moved = 0.0, 0.0
    for path, (A, B) in context.lora.factors().items():
        W = weights[path]
        left += (found @ (W + B @ A).T - c @ W.T).square().sum().item()
        moved += (c @ (B @ A).T).square().sum().item()
    assert left < 0.2 * moved
    with pytest.raises(ErasureError, match="a context with `factors`"):
        RegeneratedStates().begin(context.context, seed=0)
    with pytest.raises(ErasureError, match="`bound` must be a positive number; got 0"):
        RegeneratedStates(bound=0)


def test_a_pipeline_without_one_text_encoder_is_refused(context):
    bare = replace(context.context, pipeline=None)
    with pytest.raises(ErasureError, match="one text encoder"):
        LearntWords().begin(bare, seed=0)
