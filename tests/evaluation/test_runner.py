import dataclasses

import pytest

from diffusers_erase.errors import ErasureError
from diffusers_erase.evaluation.detector import Detection, FromFunction
from diffusers_erase.evaluation.runner import Runner
from diffusers_erase.evaluation.sampler import PipelineSampler, Sampling
from diffusers_erase.evaluation.suites import PromptCase
from diffusers_erase.models.denoiser import counted
from diffusers_erase.models.model import Model


ASKED = [
    PromptCase("target", f"a photo of a {colour} car", ("bright",), seed)
    for seed, colour in enumerate(("red", "blue", "green", "pink"))
] + [PromptCase("kept", "a photo of a red oak", ("bright", "dark"), 9)]

STEPS = 2


def bright(picture):
    mean = picture.convert("L").resize((1, 1)).getpixel((0, 0))
    return ("bright" if mean > 127 else "dark", mean / 255)


@pytest.fixture
def sampler(untrained):
    return PipelineSampler(
        untrained, FromFunction(bright, "bright"), Sampling(steps=STEPS, batch=2)
    )


@pytest.fixture
def erased(sampler, make_eraser):
    sampler.pipe.load_erasure(make_eraser(sampler.pipe.unet, scale=3.0), "car")
    return sampler


def cost(sampler, run):
    with counted(Model.of(sampler.pipe).denoiser) as evaluations:
        return run(), evaluations()


def test_base_and_erased_are_drawn_once_each(erased, tmp_path):
    runner = Runner(erased, tmp_path / "work", progress=False)
    for side in ("base", "erased"):
        judgements, spent = cost(erased, lambda side=side: runner(ASKED, side))
        assert [(x.group, x.prompt, x.seed, x.wanted) for x in judgements] == [
            (a.group, a.prompt, a.seed, a.wanted) for a in ASKED
        ]
        assert spent == 2 * STEPS * len(ASKED)
        again, spent = cost(erased, lambda side=side: runner(ASKED, side))
        assert again == judgements
        assert spent == 0
    assert [x.score for x in runner(ASKED, "base")] != [x.score for x in runner(ASKED, "erased")]


def test_the_base_is_the_pipeline_without_its_erasers(sampler, make_eraser):
    runner = Runner(sampler, progress=False)
    bare = runner(ASKED, "erased")
    sampler.pipe.load_erasure(make_eraser(sampler.pipe.unet, scale=3.0), "car")
    assert [x.score for x in runner(ASKED, "base")] == [x.score for x in bare]


@pytest.mark.filterwarnings("ignore:The eraser")  # random ones disturb one another
@pytest.mark.parametrize("change", ["strength", "steps", "guidance", "another", "detector"])
def test_whatever_changes_the_pictures_or_the_verdicts_is_looked_at_anew(
    erased, make_eraser, tmp_path, change
):
    runner = Runner(erased, tmp_path / "work", progress=False)
    runner(ASKED[:1], "erased")
    if change == "strength":
        erased.pipe.set_erasure_strength("car", 0.5)
    elif change == "another":
        erased.pipe.load_erasure(make_eraser(erased.pipe.unet, seed=3), "other")
    elif change == "detector":
        other = dataclasses.replace(erased, detector=FromFunction(bright, "other"))
        runner = dataclasses.replace(runner, sampler=other)
    else:
        how = dataclasses.replace(erased.sampling, **{change: 3})
        runner = dataclasses.replace(runner, sampler=dataclasses.replace(erased, sampling=how))
    assert cost(erased, lambda: runner(ASKED[:1], "erased"))[1] > 0


class Constant:
    """Says the same of every picture, and nothing of itself."""

    def __init__(self, label):
        self.label = label

    def __call__(self, pictures):
        return [Detection(self.label, 1.0) for _ in pictures]


class DescribedConstant(Constant):
    @property
    def info(self):
        return {"name": "constant", "label": self.label}


@pytest.mark.parametrize(
    "detector",
    [
        Constant("bright"),
        lambda pictures: [Detection("bright", 1.0) for _ in pictures],
        FromFunction(lambda picture: "bright"),
    ],
)
def test_runner_refuses_a_work_folder_for_a_detector_without_info(sampler, tmp_path, detector):
    silent = dataclasses.replace(sampler, detector=detector)
    with pytest.raises(ErasureError, match=r"'.*work' needs a detector with `info`"):
        Runner(silent, tmp_path / "work", progress=False)
    assert list(tmp_path.iterdir()) == []
    assert Runner(silent, progress=False)(ASKED[:1], "base")[0].label == "bright"


def test_runner_never_returns_the_verdicts_of_another_detector(sampler, tmp_path):
    for label in ("bright", "dark"):
        detector = DescribedConstant(label)
        runner = Runner(dataclasses.replace(sampler, detector=detector), tmp_path, progress=False)
        assert [x.label for x in runner(ASKED[:2], "base")] == [label] * 2


@pytest.mark.filterwarnings("ignore:The eraser")
def test_names_batches_and_the_order_of_erasers_do_not_matter(untrained, make_eraser, tmp_path):
    one, two = (make_eraser(untrained.unet, seed=k) for k in (1, 2))
    asked = ASKED[:2]

    def looked(names, batch):
        for name, eraser in names:
            untrained.load_erasure(eraser, name)
        sampler = PipelineSampler(
            untrained, FromFunction(bright, "bright"), Sampling(steps=STEPS, batch=batch)
        )
        found = cost(sampler, lambda: Runner(sampler, tmp_path, progress=False)(asked, "erased"))
        untrained.unload_erasures()
        return found

    first, spent = looked([("a", one), ("b", two)], 2)
    second, nothing = looked([("x", two), ("y", one)], 1)
    assert first == second
    assert (spent > 0, nothing) == (True, 0)


def test_a_run_that_was_interrupted_keeps_what_it_has_and_ends_the_same(erased, tmp_path):
    whole = Runner(erased, tmp_path / "whole", progress=False)(ASKED, "erased")
    calls = []

    def failing(picture):
        calls.append(picture)
        if len(calls) == 4:
            raise RuntimeError("the detector broke")
        return bright(picture)

    broken = dataclasses.replace(erased, detector=FromFunction(failing, "bright"))
    work = tmp_path / "work"
    with pytest.raises(ErasureError, match="the detector broke"):
        Runner(broken, work, progress=False)(ASKED, "erased")
    runner = Runner(erased, work, progress=False)
    judgements, spent = cost(erased, lambda: runner(ASKED, "erased"))
    assert judgements == whole
    assert spent == 2 * STEPS * (len(ASKED) - erased.sampling.batch)


def test_the_first_pictures_of_a_group_are_kept_and_no_more(erased, tmp_path):
    runner = Runner(erased, tmp_path, progress=False, shown=2)
    runner(ASKED, "erased")
    assert [a.seed for a, _ in runner.pictures(ASKED, "erased")] == [0, 1, 9]
    assert len(list((tmp_path / "pictures").iterdir())) == 3
    (_, first), *_ = runner.pictures(ASKED, "erased")
    (drawn,) = erased.draw([ASKED[0].prompt], [0])
    assert max(abs(a - b) for a, b in zip(first.tobytes(), drawn.tobytes(), strict=True)) <= 1


def test_processes_share_the_pictures(erased, tmp_path):
    class Process:
        def __init__(self, rank):
            self.process_index, self.num_processes = rank, 2

        def wait_for_everyone(self):
            pass

    with pytest.raises(ErasureError, match="2 processes share what they see in a folder"):
        Runner(erased, None, Process(1))
    second = Runner(erased, tmp_path, Process(1), progress=False)
    with pytest.raises(KeyError):  # the first has not run yet
        second(ASKED, "erased")
    first = Runner(erased, tmp_path, Process(0), progress=False)
    judgements, spent = cost(erased, lambda: first(ASKED, "erased"))
    assert judgements == Runner(erased, progress=False)(ASKED, "erased")
    assert 0 < spent < 2 * STEPS * len(ASKED)


def test_nothing_asked_is_refused(erased):
    with pytest.raises(ErasureError, match="no prompt to look at"):
        Runner(erased)([], "base")
