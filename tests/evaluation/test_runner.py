import dataclasses

import pytest

from diffusers_erase.errors import ErasureError
from diffusers_erase.evaluation.detector import Detection, FromFunction
from diffusers_erase.evaluation.runner import Runner
from diffusers_erase.evaluation.sampler import PipelineSampler, Sampling
from diffusers_erase.evaluation.suites import PromptCase
from diffusers_erase.models.denoiser import counted
from diffusers_erase.models.model import Model


CASES = [
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
    """The result of `run()` and its denoiser evaluations."""
    with counted(Model.of(sampler.pipe).denoiser) as evaluations:
        return run(), evaluations()


def test_runner_draws_each_side_once(erased, tmp_path):
    runner = Runner(erased, tmp_path / "work", progress=False)
    for side in ("base", "erased"):
        judgements, spent = cost(erased, lambda side=side: runner(CASES, side))
        assert [(x.group, x.prompt, x.seed, x.wanted) for x in judgements] == [
            (a.group, a.prompt, a.seed, a.wanted) for a in CASES
        ]
        assert spent == 2 * STEPS * len(CASES)
        again, spent = cost(erased, lambda side=side: runner(CASES, side))
        assert again == judgements
        assert spent == 0
    assert [x.score for x in runner(CASES, "base")] != [x.score for x in runner(CASES, "erased")]


def test_runner_draws_the_base_without_the_erasers(sampler, make_eraser):
    runner = Runner(sampler, progress=False)
    bare = runner(CASES, "erased")
    sampler.pipe.load_erasure(make_eraser(sampler.pipe.unet, scale=3.0), "car")
    assert [x.score for x in runner(CASES, "base")] == [x.score for x in bare]


@pytest.mark.filterwarnings("ignore:The eraser")  # random ones disturb one another
@pytest.mark.parametrize("change", ["strength", "steps", "guidance", "another", "detector"])
def test_runner_draws_again_after_any_change_of_pictures_or_verdicts(
    erased, make_eraser, tmp_path, change
):
    runner = Runner(erased, tmp_path / "work", progress=False)
    runner(CASES[:1], "erased")
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
    assert cost(erased, lambda: runner(CASES[:1], "erased"))[1] > 0


class Constant:
    """A detector without `info` that returns the same label for every picture."""

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
    assert Runner(silent, progress=False)(CASES[:1], "base")[0].label == "bright"


def test_runner_never_returns_the_verdicts_of_another_detector(sampler, tmp_path):
    for label in ("bright", "dark"):
        detector = DescribedConstant(label)
        runner = Runner(dataclasses.replace(sampler, detector=detector), tmp_path, progress=False)
        assert [x.label for x in runner(CASES[:2], "base")] == [label] * 2


@pytest.mark.filterwarnings("ignore:The eraser")
def test_runner_reuses_verdicts_for_other_names_batches_and_orders_of_erasers(
    untrained, make_eraser, tmp_path
):
    one, two = (make_eraser(untrained.unet, seed=k) for k in (1, 2))

    def run(names, batch):
        for name, eraser in names:
            untrained.load_erasure(eraser, name)
        sampler = PipelineSampler(
            untrained, FromFunction(bright, "bright"), Sampling(steps=STEPS, batch=batch)
        )
        found = cost(
            sampler, lambda: Runner(sampler, tmp_path, progress=False)(CASES[:2], "erased")
        )
        untrained.unload_erasures()
        return found

    first, spent = run([("a", one), ("b", two)], 2)
    second, nothing = run([("x", two), ("y", one)], 1)
    assert first == second
    assert (spent > 0, nothing) == (True, 0)


def test_runner_resumes_after_an_error_with_the_same_result(erased, tmp_path):
    whole = Runner(erased, tmp_path / "whole", progress=False)(CASES, "erased")
    calls = []

    def failing(picture):
        calls.append(picture)
        if len(calls) == 4:
            raise RuntimeError("the detector broke")
        return bright(picture)

    broken = dataclasses.replace(erased, detector=FromFunction(failing, "bright"))
    work = tmp_path / "work"
    with pytest.raises(ErasureError, match="the detector broke"):
        Runner(broken, work, progress=False)(CASES, "erased")
    runner = Runner(erased, work, progress=False)
    judgements, spent = cost(erased, lambda: runner(CASES, "erased"))
    assert judgements == whole
    assert spent == 2 * STEPS * (len(CASES) - erased.sampling.batch)


def test_runner_stores_the_first_pictures_of_each_group(erased, tmp_path):
    runner = Runner(erased, tmp_path, progress=False, shown=2)
    runner(CASES, "erased")
    assert [a.seed for a, _ in runner.pictures(CASES, "erased")] == [0, 1, 9]
    assert len(list((tmp_path / "pictures").iterdir())) == 3
    (_, first), *_ = runner.pictures(CASES, "erased")
    (drawn,) = erased.draw([CASES[0].prompt], [0])
    assert max(abs(a - b) for a, b in zip(first.tobytes(), drawn.tobytes(), strict=True)) <= 1


def test_runner_shares_the_pictures_among_processes(erased, tmp_path):
    class Process:
        def __init__(self, rank):
            self.process_index, self.num_processes = rank, 2

        def wait_for_everyone(self):
            pass

    with pytest.raises(ErasureError, match="2 processes exchange verdicts in a folder"):
        Runner(erased, None, Process(1))
    second = Runner(erased, tmp_path, Process(1), progress=False)
    with pytest.raises(KeyError):  # the first has not run yet
        second(CASES, "erased")
    first = Runner(erased, tmp_path, Process(0), progress=False)
    judgements, spent = cost(erased, lambda: first(CASES, "erased"))
    assert judgements == Runner(erased, progress=False)(CASES, "erased")
    assert 0 < spent < 2 * STEPS * len(CASES)


def test_runner_refuses_no_cases(erased):
    with pytest.raises(ErasureError, match="No cases to draw"):
        Runner(erased)([], "base")
