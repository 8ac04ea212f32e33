"""One small evaluation on the playground, shared by the tests of evidence and report."""

import copy

import pytest

from diffusers_erase.attacks.sampling import Completion, SeedSearch
from diffusers_erase.concepts import Concept
from diffusers_erase.evaluation.evidence import evaluate
from diffusers_erase.evaluation.runner import Runner
from diffusers_erase.evaluation.sampler import PipelineSampler, Sampling
from diffusers_erase.evaluation.suites import Suite
from diffusers_erase.making.api import erase
from diffusers_erase.playground.building import networks


SUITE = Suite.of(
    {
        "suite": "small",
        "concept": "car",
        "groups": {
            "target": {"prompts": ["a photo of a red car"], "show": "car", "pictures": 4},
            "neighbour": {"words": ["truck"], "templates": ["a photo of a red {}"], "pictures": 4},
        },
    }
)
ATTACKS = (SeedSearch(tries=2), Completion(steps=(4,)))


@pytest.fixture(scope="session")
def eraser(shipped):
    return erase(
        shipped,
        Concept("car"),
        recipe="closed-form",
        vocabulary=("fish", "oak", "star"),
        check=False,
    )


@pytest.fixture(scope="session")
def evaluated(shipped, judge, eraser, tmp_path_factory):
    """The runner of the evaluation; no test may change it or its pipeline."""
    pipe = networks.assemble(
        vae=shipped.vae,
        text_encoder=shipped.text_encoder,
        tokenizer=shipped.tokenizer,
        unet=copy.deepcopy(shipped.unet),
    )
    pipe.set_progress_bar_config(disable=True)
    pipe.load_erasure(eraser, "car")
    sampler = PipelineSampler(pipe, judge, Sampling(steps=5, batch=8))
    return Runner(sampler, tmp_path_factory.mktemp("evidence") / "work", progress=False)


@pytest.fixture(scope="session")
def evidence(evaluated):
    """The evaluation, with two attacks."""
    return evaluate(evaluated, SUITE, attacks=ATTACKS, attempts=4)
