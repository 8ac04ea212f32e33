import csv
import importlib.util
import json
import os
import signal
import subprocess
import sys
import time

import pytest
from typer.testing import CliRunner

from diffusers_erase.cli import app, sweeping
from diffusers_erase.cli.sweep_plan import Plan
from diffusers_erase.concepts import Concept
from diffusers_erase.errors import ErasureError
from diffusers_erase.evaluation.evidence import Evidence
from diffusers_erase.evaluation.runner import Judgement
from diffusers_erase.making import sweep as making
from diffusers_erase.making.sweep import Sweep
from diffusers_erase.runtime.plugin import list_erasures


PLAN = """
concepts: [car, oak]
recipes:
  uce:
  narrow: {recipe: closed-form, rank: 2}
suites:
  own: {suite: "{concept}.yaml", steps: 1}
"""


def write_plan(folder):
    for concept in ("car", "oak", "cat"):
        (folder / f"{concept}.yaml").write_text(
            f"suite: quick\nconcept: {concept}\ngroups:\n"
            f"  target: {{prompts: [a photo of a red {concept}], show: {concept}, pictures: 2}}\n"
        )
    (folder / "plan.yaml").write_text(PLAN)
    return folder


@pytest.fixture
def folder(tmp_path):
    return write_plan(tmp_path)


@pytest.fixture
def made(shipped, make_eraser, monkeypatch):
    """Erasers made so far, (concept, recipe) each; random ones, and nothing is drawn."""
    made = []

    def erase(pipe, concepts, *, recipe, **options):
        name = concepts[0].name
        made.append((name, recipe.name))
        return make_eraser(pipe.unet, concept=name, seed=recipe.rank, scale=0.3)

    def measured(self, asked, how):
        """A picture of each case, which shows the concept without the eraser alone."""
        wanted = asked.request.concepts[0].name
        judgements = [
            Judgement(side, c.group, c.prompt, c.wanted, c.seed, label, 1.0, True, (label,), ())
            for side, label in (("base", wanted), ("erased", asked.recipe))
            for c in how.suite.cases(asked.picture_seed)
        ]
        relations = {group.name: group.relation for group in how.suite.groups}
        found = {"x": {"concepts": [{"name": wanted, "target": None}]}}
        return Evidence(
            how.suite.name, (wanted,), relations, tuple(judgements), settings={"erasers": found}
        )

    monkeypatch.setattr(making, "erase", erase)
    monkeypatch.setattr(Sweep, "_measured", measured)
    monkeypatch.setattr(sweeping, "opened_model", lambda model: shipped)
    sweeping._opened.cache_clear()
    return made


def run(folder, out, *options, plan="plan.yaml"):
    arguments = ["sweep", folder / plan, "-o", folder / out, *options]
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def content(folder, out):
    """The bytes of table and results by the names of their files."""
    files = [*(folder / out).glob("table.*"), *(folder / out / "results").iterdir()]
    return {path.name: path.read_bytes() for path in files}


def test_sweep_writes_a_table_in_the_order_of_the_plan(folder, made):
    result = run(folder, "out")
    assert result.exit_code == 0, result.exception
    rows = list(csv.DictReader((folder / "out" / "table.csv").read_text().splitlines()))
    names = [(row["concept"], row["recipe"]) for row in rows]
    assert names == [("car", "uce"), ("car", "narrow"), ("oak", "uce"), ("oak", "narrow")]
    rates = [(row["efficacy"], row["efficacy_base"], row["efficacy_n"]) for row in rows]
    assert rates == [("0.0", "1.0", "2")] * 4
    assert {(row["sensitivity"], row["drift_null"], row["attack"]) for row in rows} == {("",) * 3}
    assert (folder / "out" / "table.md").read_text().rstrip() in result.stdout
    assert len(list((folder / "out" / "erasers").iterdir())) == 4
    (log,) = (folder / "out" / "log").iterdir()
    assert len(log.read_text().splitlines()) == 4 + 4


def test_an_eraser_is_measured_on_the_model_it_is_made_from(folder, shipped, monkeypatch):
    monkeypatch.setattr(sweeping, "opened_model", lambda model: shipped)
    sweeping._opened.cache_clear()
    plan = PLAN.replace("[car, oak]", "[car]").replace("  uce:\n", "").replace("s: 1", "s: 4")
    (folder / "plan.yaml").write_text(plan)
    assert run(folder, "out").exit_code == 0
    (row,) = csv.DictReader((folder / "out" / "table.csv").read_text().splitlines())
    assert (row["efficacy"], row["efficacy_base"]) == ("0.0", "1.0")
    assert list_erasures(shipped) == {}
    evidence = Evidence.read(folder / "out" / "results" / row["file"])
    assert [each.side for each in evidence.judgements] == ["base"] * 2 + ["erased"] * 2


def test_a_stopped_sweep_goes_on_where_it_was(folder, made, monkeypatch):
    run(folder, "whole")
    measured = Sweep._measured

    def stopped(self, asked, how):
        if len(made) == 7:
            raise KeyboardInterrupt
        return measured(self, asked, how)

    with monkeypatch.context() as patched:
        patched.setattr(Sweep, "_measured", stopped)
        run(folder, "out")
    assert len(content(folder, "out")) == 2
    run(folder, "out")
    assert made[4:] == made[:4]
    assert content(folder, "out") == content(folder, "whole")


def test_a_changed_plan_makes_what_changed(folder, made):
    run(folder, "out")
    before = content(folder, "out")
    changed = PLAN.replace("[car, oak]", "[cat, car]").replace("rank: 2", "rank: 3")
    (folder / "plan.yaml").write_text(changed)
    run(folder, "out")
    assert made[4:] == [("cat", "uce"), ("cat", "closed-form"), ("car", "closed-form")]
    (folder / "plan.yaml").write_text(PLAN.replace("steps: 1", "steps: 1, guidance: 2"))
    run(folder, "out")
    assert len(made) == 7
    (folder / "plan.yaml").write_text(PLAN)
    results = len(list((folder / "out" / "results").iterdir()))
    run(folder, "out")
    assert results == 4 + 3 + 4 == len(list((folder / "out" / "results").iterdir()))
    assert {**content(folder, "out"), **before} == content(folder, "out")


def test_shares_give_the_table_of_one_process(folder, made, monkeypatch):
    run(folder, "one")
    first = run(folder, "two", "--shard", "1/2")
    assert "2 of 4 results are there" in first.stdout
    assert not (folder / "two" / "table.csv").exists()
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "0")
    assert run(folder, "two", "--shard", "2").exit_code == 0
    assert content(folder, "two") == content(folder, "one")


def test_an_eraser_that_another_worker_is_at_is_left_to_it(folder, made, shipped):
    run(folder, "out", "--shard", "3/4")
    asked = Plan.read(folder / "plan.yaml").erasers
    other = Sweep(shipped, folder / "out", sweeping._opened("playground", "out").detector)
    with other._claim(asked[0]) as ours, other._claim(asked[0]) as again:
        assert (ours, again) == (True, False)
        assert "3 of 4 results are there" in run(folder, "out").stdout
    assert run(folder, "out").exit_code == 0
    assert (folder / "out" / "table.csv").is_file()


def test_other_erasers_are_made_if_one_fails(folder, made, monkeypatch):
    erase = making.erase

    def failing(pipe, concepts, **options):
        if concepts[0].name == "car":
            raise ErasureError("no")
        return erase(pipe, concepts, **options)

    with monkeypatch.context() as patched:
        patched.setattr(making, "erase", failing)
        result = run(folder, "out")
    assert str(result.exception) == "2 of the erasers failed; the first: car, uce, seed 0: no"
    assert len(content(folder, "out")) == 2
    assert run(folder, "out").exit_code == 0


def test_a_plan_is_read(folder):
    (folder / "plan.yaml").write_text(
        "concepts:\n  motor: {names: [car, bus], synonyms: automobile, target: oak}\n"
        "recipes: {age: {steps: 3, learning_rate: 1e-4, check: true}}\nseeds: [4, 7]\n"
        "suites: {objects: {pictures: 2, attacks: [noise], attempts: 2}}\n"
    )
    first, second = Plan.read(folder / "plan.yaml").erasers
    assert str(first) == "motor, age, seed 4"
    assert first.request.concepts == (Concept("car", synonyms=("automobile",)), Concept("bus"))
    assert (first.request.recipe.steps, first.request.recipe.learning_rate) == (3, 1e-4)
    assert first.check
    assert [attack.name for attack in first.suites[0].attacks] == ["noise"]
    pictures = [
        {case.seed for case in each.suites[0].suite.cases(each.picture_seed)}
        for each in (first, second)
    ]
    assert pictures[0].isdisjoint(pictures[1])


BAD = {
    "concepts: [car]\nrecipes: [uce]\n": "'.*plan.yaml', line 1: `suites` is missing",
    PLAN + "seed: [1]\n": r"line 8 \(seed\): No key named 'seed'. Did you mean 'seeds'",
    PLAN + "seeds: [1, 1]\n": r"line 8 \(seeds\): a list of different seeds",
    PLAN + "seeds: [0.5]\n": "a whole number from 0 on; got 0.5",
    PLAN.replace("uce:", "ucee:"): r"line 4 \(recipes > ucee\): No recipe 'ucee'. Did you mean",
    PLAN.replace("rank: 2", "ranc: 2"): "line 5 .*: No key named 'ranc'. Did you mean 'rank'",
    PLAN.replace("rank: 2", "rank: two"): "line 5 .*: a value such as 8 is needed here; got 'two'",
    PLAN.replace("rank: 2", "rank: 0"): "line 5 .*: `rank` must be positive; got 0",
    PLAN.replace("uce:", "age:").replace("steps: 1", "detector: nudenet") + "model: other\n": (
        "line 2 .*: Recipe 'age' chooses its target from a vocabulary"
    ),
    PLAN.replace("[car, oak]", "[car, car]"): "a name stands here twice",
    PLAN.replace("[car, oak]", "[car and oak]"): "looks like more than one concept",
    PLAN.replace("[car, oak]", "{car: {target: car}}"): "line 2 .*is the concept itself",
    PLAN.replace("{concept}.yaml", "card")[:-2] + ", pictures: 0}": "1 or more is needed",
    PLAN.replace("{concept}.yaml", "crad"): "line 7 .*: No suite named 'crad'. Did you mean 'card'",
    PLAN.replace("{concept}.yaml", "oak.yaml"): "is about oak, the eraser about car",
    PLAN.replace("steps: 1", "pictures: 2"): "belongs into 'car.yaml'",
    PLAN.replace("steps: 1", "attacks: [noise]"): "has no group that is to be kept",
    PLAN.replace("steps: 1", "attacks: [nose]"): "No attack named 'nose'. Did you mean 'noise'",
    PLAN.replace("steps: 1", "detector: jugde"): "No detector named 'jugde'. Did you mean 'judge'",
    PLAN.replace("steps: 1", "precision: half"): "No precision 'half'",
    PLAN + "model: other\n": "No detector named ''",
}


@pytest.mark.parametrize("text", BAD)
def test_a_bad_plan_is_refused_before_any_work(folder, text):
    (folder / "plan.yaml").write_text(text)
    result = run(folder, "out")
    assert isinstance(result.exception, ErasureError), result.exception
    with pytest.raises(ErasureError, match=BAD[text]):
        raise result.exception
    assert not (folder / "out").exists()


@pytest.mark.parametrize("shard", ["2/2", "x", "1/", "-1/2", "3"])
def test_a_bad_share_is_refused(folder, shard, monkeypatch):
    monkeypatch.delenv("SLURM_ARRAY_TASK_ID", raising=False)
    assert "I from 0 to N-1" in str(run(folder, "out", "--shard", shard).exception)


def test_a_folder_with_something_else_is_refused(folder):
    (folder / "out").mkdir()
    (folder / "out" / "table.csv").write_text("mine")
    assert "holds something else" in str(run(folder, "out").exception)
    assert (folder / "out" / "table.csv").read_text() == "mine"


def test_ray_is_an_extra(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    result = run(folder, "out", "--ray", "auto")
    assert "pip install diffusers-erase[ray]" in str(result.exception)


def command(folder, out, *options, launch=()):
    rest = ["sweep", folder / "plan.yaml", "-o", folder / out, *options]
    return [sys.executable, *launch, "-m", "diffusers_erase.cli", *map(str, rest)]


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    """A folder with a plan, and `one`, its sweep by one process; all have a thread each."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        folder = write_plan(tmp_path_factory.mktemp("sweep"))
        subprocess.run(command(folder, "one"), check=True, capture_output=True)
        yield folder


@pytest.mark.slow
def test_sweep_resumes_after_kills_with_the_same_bytes(one):
    killed = one / "killed"
    for sign in ("erasers/*", "work/verdicts/*/*", "results/*"):
        victim = subprocess.Popen(
            command(one, "killed"), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        while not list(killed.glob(sign)):
            assert victim.poll() is None
            time.sleep(0.01)
        victim.send_signal(signal.SIGKILL)
        victim.wait()
    assert not (killed / "table.csv").exists()
    subprocess.run(command(one, "killed"), check=True, capture_output=True)
    assert content(one, "killed") == content(one, "one")


LAUNCH = ("-m", "torch.distributed.run", "--nproc_per_node=2")


@pytest.mark.slow
@pytest.mark.parametrize("way", ["shares", "claims", "launched"])
def test_two_processes_give_the_table_of_one(one, way):
    commands = {
        "shares": [command(one, way, "--shard", f"{i}/2") for i in range(2)],
        "claims": [command(one, way)] * 2,
        "launched": [command(one, way, launch=LAUNCH)],
    }
    for process in [subprocess.Popen(each, stdout=subprocess.DEVNULL) for each in commands[way]]:
        assert process.wait() == 0
    assert content(one, way) == content(one, "one")
    logs = [path.read_text() for path in (one / way / "log").iterdir()]
    done = [json.loads(line)["done"] for log in logs for line in log.splitlines()]
    assert (len(logs), len(done)) == (2, len(set(done)))  # nothing was done twice


HOSTS = tuple(f"erase-{os.getpid()}-{i}" for i in range(2))


def ip(*arguments):
    subprocess.run(["ip", *arguments], check=True, capture_output=True)


@pytest.fixture
def hosts():
    """Two network namespaces with one link, 10.77.0.1 and 10.77.0.2: they share files, no port."""
    try:
        for host in HOSTS:
            ip("netns", "add", host)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("needs the right to make network namespaces")
    try:
        ip("link", "add", "erase-0", "netns", HOSTS[0], "type", "veth",
           "peer", "name", "erase-1", "netns", HOSTS[1])  # fmt: skip
        for i, host in enumerate(HOSTS):
            ip("-n", host, "address", "add", f"10.77.0.{i + 1}/24", "dev", f"erase-{i}")
            for link in ("lo", f"erase-{i}"):
                ip("-n", host, "link", "set", link, "up")
        yield HOSTS
    finally:
        for host in HOSTS:
            ip("netns", "delete", host)


@pytest.mark.slow
def test_two_hosts_give_the_table_of_one_process(one, hosts):
    launch = (
        "-m", "torch.distributed.run", "--nnodes=2", "--nproc_per_node=1",
        "--master_addr=10.77.0.1", "--master_port=29577",
    )  # fmt: skip
    processes = [
        subprocess.Popen(
            ["ip", "netns", "exec", host, *command(
                one, "hosts", launch=(*launch, f"--node_rank={i}")
            )],
            env={**os.environ, "GLOO_SOCKET_IFNAME": f"erase-{i}"},
            stdout=subprocess.DEVNULL,
        )
        for i, host in enumerate(hosts)
    ]  # fmt: skip
    assert [process.wait() for process in processes] == [0, 0]
    assert content(one, "hosts") == content(one, "one")
    assert len(list((one / "hosts" / "log").iterdir())) == 2


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="needs the extra `ray`")
def test_ray_gives_the_table_of_one_process(one):
    subprocess.run(command(one, "ray", "--ray", "local"), check=True, capture_output=True)
    assert content(one, "ray") == content(one, "one")
