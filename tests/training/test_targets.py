import copy
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import pytest
import torch

from diffusers_erase.concepts import Concept, Prompt, Vocabulary
from diffusers_erase.errors import ErasureError
from diffusers_erase.models.denoiser import Denoiser, NoiseSchedule
from diffusers_erase.models.lora import attached
from diffusers_erase.models.text_states import encode
from diffusers_erase.models.trajectories import sample_trajectories
from diffusers_erase.training.adaptive import Adaptive
from diffusers_erase.training.objectives import Keep, Steer, Sum
from diffusers_erase.training.targets import (
    PROBE_LATENTS,
    Fixed,
    Nearest,
    TargetContext,
    distances,
    nearest_words,
)
from diffusers_erase.training.trial import Trial


WORDS = Vocabulary(("car", "truck", "oak", "cat", "fish"))
AGE = Sum(((1.0, Steer()), (1.0, Keep("target", at="concept"))))


@pytest.fixture(scope="module")
def sampled():
    """The trajectories of `context`, which are the same in every test."""
    return []


@pytest.fixture
def context(untrained, sampled):
    """Two concepts in two prompts each, on a denoiser with a student."""
    concepts = (Concept("car", synonyms=("automobile",)), Concept("oak"))
    prompts = (
        Prompt("a red {}", "car"),
        Prompt("{a} at night", "automobile"),
        Prompt("a photo of {a}", "oak"),
        Prompt("a blue {}", "oak"),
    )
    with attached(untrained.unet, parts=("to_k", "to_v"), rank=2, seed=0) as lora:
        denoiser = Denoiser(
            untrained.unet, NoiseSchedule.of(untrained.scheduler), lora.adapter_disabled
        )
        if not sampled:
            states, null = encode(untrained, [p.text for p in prompts]), encode(untrained, [""])
            sampled.append(
                sample_trajectories(denoiser, untrained.scheduler, states, null, steps=3)
            )
        kept = copy.deepcopy(sampled[0])
        context = TargetContext(
            denoiser,
            lambda texts: encode(untrained, texts),
            concepts,
            prompts,
            torch.tensor([0, 0, 1, 1]),
            kept,
        )
        yield SimpleNamespace(context=context, lora=lora, pipe=untrained)


def view_of(context, rows=(0, 4, 7, 11)):
    return context.trajectories.at(context.denoiser, torch.tensor(rows))


def test_fixed_target_replaces_the_concept_in_its_prompts(context):
    s = context.context
    targets = Fixed(("truck", None)).begin(s)
    texts = ["a red truck", "a truck at night", "a photo", "a blue"]
    view = targets(0, {"concept": view_of(s)})["concept"]
    wanted = encode(context.pipe, texts)[s.trajectories.prompt[view.rows]]
    assert torch.equal(view.states["target"], wanted)
    assert torch.allclose(
        view.teacher("target"), s.denoiser.teacher(view.z, view.t, wanted), atol=1e-5
    )
    before = s.denoiser.evaluations
    targets.with_target(view_of(s)).teacher("target")
    assert s.denoiser.evaluations == before
    assert [c.target for c in targets.choices()] == ["truck", None]
    with pytest.raises(ErasureError, match=r"one for each of .*; got 3"):
        Fixed(("a", "b", "c")).begin(s)


def test_fixed_whole_target_is_the_whole_prompt(context):
    view = Fixed("", whole=True).begin(context.context).with_target(view_of(context.context))
    assert torch.equal(view.states["target"], encode(context.pipe, [""]).expand(4, -1, -1))


def test_distances_are_zero_for_the_concept_alone(context):
    s = context.context
    itself = distances(s, ["car", "oak"], probe=6)
    assert itself[1, 1] < 1e-8  # every prompt about the oak calls it that
    assert itself[0, 1] > 1e-6
    assert itself[1, 0] > 1e-6


def test_distances_measure_a_word_once(context):
    s = context.context
    distances(s, ["cat", "fish"], probe=3)
    before = s.denoiser.evaluations
    distances(s, ["fish", "cat"], probe=3)
    assert s.denoiser.evaluations == before
    distances(s, ["cat", "truck"], probe=3)
    assert s.denoiser.evaluations == before + 7  # two for each of two names, three for one


def test_nearest_takes_the_nearest_word_that_is_no_name_of_a_concept(context):
    chosen = Nearest(WORDS, synonym=0.0).begin(context.context).choices()
    for choice in chosen:
        assert set(choice.scores) == {"truck", "cat", "fish"}
        assert choice.scores[choice.target] == min(choice.scores.values())
    for how in (Nearest(WORDS, synonym=1e9), Nearest(Vocabulary(("cars", "automobile")))):
        for choice in how.begin(context.context).choices():
            assert (choice.target, choice.choice) == (None, "no candidate")


@pytest.mark.parametrize("how", [Trial, Adaptive, partial(Adaptive, form="minimax")])
def test_a_concept_without_a_candidate_is_left_out(context, how):
    for words in (("cars", "automobile"), ("red", "photo", "beach")):
        for choice in how(Vocabulary(words)).begin(context.context, seed=0).choices():
            assert (choice.target, choice.choice) == (None, "no candidate")


def test_targets_mean_none_of_the_concepts(context):
    """A word that is near enough to one concept to be its synonym is no target of the other."""
    s = context.context
    words = ["truck", "cat", "fish"]
    apart = distances(s, words)
    near = apart.min().item()
    found = nearest_words(s, Nearest(WORDS, synonym=near))
    k = int(apart.amin(0).argmin())
    assert [set(row) for row in found] == [set(words) - {words[k]}] * 2


def test_distances_are_measured_from_every_name(context):
    s = context.context
    assert s.names == ((0, "car"), (0, "automobile"), (1, "oak"))
    itself = distances(s, ["automobile", "car"], probe=6)[0]
    assert itself.max() < 1e-8
    assert len(s.probe_rows(2)) == 2 * 2 + 2


def test_mixture_gets_a_gradient_from_the_erase_term(context):
    """The released code loses it: the target's copy is detached, the teacher without gradients."""
    s = context.context
    targets = Adaptive(WORDS, form="minimax", synonym=0).begin(s, seed=0)
    assert not targets(0, {"concept": view_of(s)})["concept"].states["target"].requires_grad
    view = targets.mixed(view_of(s), targets.weights())
    gradient = torch.autograd.grad(Steer()({"concept": view}), targets.logits)[0]
    assert gradient.abs().max() > 1e-8
    assert all(p.grad is None for p in context.lora.parameters)


def test_mixture_learn_raises_the_loss_and_leaves_the_eraser_alone(context):
    s = context.context
    for p in context.lora.parameters:
        torch.nn.init.normal_(p, std=0.2)
    targets = Adaptive(WORDS, form="minimax", synonym=0, temperature=1.0, top_k=3).begin(s, seed=0)

    def gain():
        targets._generator.manual_seed(1)  # the same draw again
        return AGE({"concept": targets.mixed(view_of(s), targets.weights())})

    before = gain()
    targets._generator.manual_seed(1)
    targets.learn({"concept": view_of(s)}, AGE, lambda gradient: gradient)
    assert gain() > before
    assert all(p.grad is None for p in context.lora.parameters)
    odds = targets.choices()[0].scores
    assert sum(odds.values()) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("top_k", [None, 1, 2])
def test_mixture_mixes_top_k_words(context, top_k):
    targets = Adaptive(WORDS, form="minimax", synonym=0, top_k=top_k).begin(context.context, seed=0)
    weights = targets.weights().detach()
    assert torch.allclose(weights.sum(1), torch.ones(2))
    assert ((weights > 1e-6).sum(1) <= (top_k or 1)).all()


def test_mixture_draws_depend_on_seed_and_step_alone(context):
    s = context.context
    targets, other = (Adaptive(WORDS, form="minimax", synonym=0).begin(s, seed=k) for k in (0, 1))

    def drawn(targets, step):
        views = [targets(step, {"concept": view_of(s)})["concept"] for _ in range(3)]
        return torch.stack([view.states["target"] for view in views])

    first, second = drawn(targets, 3), drawn(targets, 4)
    assert torch.equal(drawn(targets, 3), first)
    assert not torch.equal(first, second)
    assert not torch.equal(first[0], first[1]) or not torch.equal(first[1], first[2])
    assert not torch.equal(drawn(other, 3), first)


def test_table_without_distance_chooses_the_word_the_eraser_moves_most(context):
    s = context.context
    how = Adaptive(WORDS, distance_weight=0.0, every=2, synonym=0)
    targets = how.begin(s)
    first = [choice.target for choice in targets.choices()]
    assert first == [c.target for c in Nearest(WORDS, synonym=0).begin(s).choices()]
    untouched = targets.table()
    assert all(torch.allclose(t, t.mean()) for t in untouched)  # nothing is damaged yet
    for p in context.lora.parameters:
        torch.nn.init.normal_(p, std=0.2)
    rows = s.probe_rows(6)
    view = s.trajectories.at(s.denoiser, rows)
    prompt = s.trajectories.prompt[rows]
    moved = {}
    with torch.no_grad():
        for word in ("truck", "cat", "fish"):
            seen = view.with_role("target", s.states_about([word] * 2)[prompt])
            error = (seen.student("target") - seen.teacher("target")).square().mean((1, 2, 3))
            moved[word] = error[s.concept_of[prompt] == 0].mean().item()
    targets(1, {"concept": view_of(s)})
    assert [choice.target for choice in targets.choices()] == first
    targets(2, {"concept": view_of(s)})
    assert targets.choices()[0].target == max(moved, key=moved.__getitem__)


@pytest.mark.parametrize(("without", "chosen"), [(0.4, "cat"), (0.5, "fish"), (9.0, "cat")])
def test_trial_takes_the_word_whose_edit_damages_its_worst_rival_least(context, without, chosen):
    """The edits of this test change every word, by different amounts.

    A word nearer than the prompt without the concept is no target, unless all words are.
    """
    s = context.context
    apart = {"truck": 3.0, "cat": 0.5, "fish": 2.0, None: without}
    for word, far in apart.items():
        for count in (PROBE_LATENTS, 2 * PROBE_LATENTS):
            s.known_distances[word, count] = torch.full((2,), far)
    amounts = {"truck": 0.3, "cat": 0.1, "fish": 0.2}
    texts = {word: s.states_about([word] * 2)[:2] for word in amounts}
    tried = []

    def edit(E, V):
        assert torch.equal(E, s.trajectories.states["concept"])
        (word,) = (w for w, states in texts.items() if torch.equal(states, V[:2]))
        tried.append(word)
        generator = torch.Generator().manual_seed(1)
        for p in context.lora.parameters:
            p.data = amounts[word] * torch.randn(p.shape, generator=generator)

    choice, _ = Trial(WORDS, synonym=0).begin(replace(s, apply_edit=edit)).choices()
    assert sorted(tried) == sorted(amounts)
    assert choice.target == chosen
    assert choice.choice == "trial"
    assert sorted(choice.scores, key=choice.scores.__getitem__) == ["cat", "fish", "truck"]


def test_trial_needs_a_context_that_applies_edits(context):
    with pytest.raises(ErasureError, match="needs a context with `apply_edit`"):
        Trial(WORDS, synonym=0).begin(context.context)


def test_targets_do_not_depend_on_the_order_of_the_vocabulary(context):
    for p in context.lora.parameters:
        torch.nn.init.normal_(p, std=0.2)
    found = []
    for words in (WORDS, Vocabulary(WORDS.words[::-1])):
        targets = Adaptive(words, every=1, synonym=0).begin(context.context)
        targets(1, {"concept": view_of(context.context)})
        found.append([(c.target, c.scores) for c in targets.choices()])
    assert found[0] == found[1]


def test_table_looks_up_the_scores_of_earlier_targets(context):
    s = context.context
    targets = Adaptive(WORDS, synonym=0).begin(s)
    targets.with_target(view_of(s))
    before = s.denoiser.evaluations
    targets.with_target(view_of(s)).teacher("target")
    assert s.denoiser.evaluations == before
    targets.chosen[0] = 1
    targets.with_target(view_of(s))
    changed = s.denoiser.evaluations
    assert changed > before
    targets.chosen[0] = 0
    targets.with_target(view_of(s))
    assert s.denoiser.evaluations == changed


def test_adaptive_refuses_unknown_forms_and_numbers_that_are_not_positive():
    with pytest.raises(ErasureError, match=r"No adaptive target of form 'maximin'"):
        Adaptive(WORDS, form="maximin")
    with pytest.raises(ErasureError, match="must be positive"):
        Adaptive(WORDS, shortlist=0)
