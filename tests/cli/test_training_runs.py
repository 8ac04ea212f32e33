from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from accelerate.tracking import GeneralTracker

from diffusers_erase import Concept, ErasureError, Recipe
from diffusers_erase.cli.training_runs import TrainingRun, read_runs, run_all
from diffusers_erase.editing.recipes import EDITS
from diffusers_erase.eraser.adapter import EraserAdapter
from diffusers_erase.making import api as making
from diffusers_erase.making import by_training


QUICK = Recipe("replace", trajectories=2, sampling_steps=2, steps=3, batch=2)
OPTIONS = {"recipe": QUICK, "progress": False, "check": False}


def made(pipe, runs, *, overwrite=False, resume=False):
    said = []
    for run in runs:
        run.check(overwrite=overwrite, resume=resume)
    options = {"overwrite": overwrite, "resume": resume, "accelerator": Accelerator(cpu=True)}
    run_all(runs, pipe, say=said.append, **options)
    return said


def factors(folder):
    eraser = EraserAdapter.from_pretrained(folder)
    return torch.cat([f.flatten() for pair in eraser.factors.values() for f in pair])


def test_read_runs_makes_a_run_of_each_line(tmp_path):
    file = tmp_path / "concepts.txt"
    file.write_text("# vehicles\ncar, automobile , sedan -> truck\n\nfire truck\n")
    car, fire = read_runs(file, tmp_path / "out", "object", {"target": None, "seed": 3})
    assert car.concepts == (Concept("car", synonyms=("automobile", "sedan")),)
    assert car.options == {"target": "truck", "seed": 3}
    assert fire.concepts == (Concept("fire truck"),)
    assert fire.options == {"target": None, "seed": 3}
    assert [run.output.name for run in (car, fire)] == ["car", "fire-truck"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "Cannot read the concepts"),
        ("# nothing\n\n", "names no concept"),
        ("fire truck\nfire-truck\n", "line 2: This names 'fire-truck' twice"),
        ("car\nCAR\n", "line 2: This names 'CAR' twice"),
        ('car\n"oak\n', "line 2: .* cannot be read"),
        ("car -> oak, pine\n", "line 1: .* names more than one target"),
        ("car -> oak -> pine\n", "line 1: .* names more than one target"),
        (", automobile\n", "empty"),
    ],
)
def test_read_runs_refuses_bad_files(tmp_path, text, message):
    if text is not None:
        (tmp_path / "concepts.txt").write_text(text)
    with pytest.raises(ErasureError, match=message):
        read_runs(tmp_path / "concepts.txt", tmp_path, "object", {})


HOSTILE = ("../../x", "/etc/passwd", "~/x", "..\\..\\x", "a/../../b", "car.run", "./.", "NUL:x")


@pytest.mark.parametrize("name", HOSTILE)
def test_read_runs_puts_every_eraser_into_the_output_folder(tmp_path, name):
    (tmp_path / "concepts.txt").write_text(f"x1\n{name}\n" if name != "./." else "./.\n")
    if name == "./.":
        with pytest.raises(ErasureError, match=r"line 1: './.' has no letter or digit"):
            read_runs(tmp_path / "concepts.txt", tmp_path / "out", "object", {})
        return
    runs = read_runs(tmp_path / "concepts.txt", tmp_path / "out", "object", {})
    folders = [folder for run in runs for folder in (run.output, run.work)]
    assert {folder.resolve().parent for folder in folders} == {(tmp_path / "out").resolve()}
    assert len({folder.name.casefold() for folder in folders}) == 4
    assert runs[1].concepts == (Concept(name),)


def test_read_runs_takes_names_with_a_comma_in_double_quotes(tmp_path):
    (tmp_path / "concepts.txt").write_text(
        '"Paris, Texas", Paris TX -> "Rome, Georgia"\n"a -> b" -> oak\nplain name\n'
    )
    paris, arrow, plain = read_runs(tmp_path / "concepts.txt", tmp_path, "object", {"seed": 1})
    assert paris.concepts == (Concept("Paris, Texas", synonyms=("Paris TX",)),)
    assert paris.options == {"seed": 1, "target": "Rome, Georgia"}
    assert paris.output.name == "Paris-Texas"
    assert (arrow.concepts, arrow.options["target"]) == ((Concept("a -> b"),), "oak")
    assert plain.options == {"seed": 1}


def test_read_runs_infers_the_kinds_of_names(tmp_path):
    file = tmp_path / "concepts.txt"
    file.write_text('lumina style\nred\n"red"\nred car, crimson car\non the beach\n"a style"\n')
    with pytest.raises(ErasureError, match="line 3: This names 'red' twice"):
        read_runs(file, tmp_path, None, {})
    file.write_text(file.read_text().replace('"red"\n', ""))
    runs = read_runs(file, tmp_path, None, {})
    assert [run.concepts for run in runs] == [
        (Concept("lumina", "style"),),
        (Concept("red", "attribute"),),
        (Concept("red car", "compound", ("crimson car",)),),
        (Concept("beach", "place"),),
        (Concept("a style", "object"),),
    ]
    assert runs[0].output.name == "lumina"
    (colour,) = read_runs(file, tmp_path, "attribute", {})[1].concepts
    assert colour == Concept("red", "attribute")


def test_read_runs_refuses_several_names_in_one(tmp_path):
    (tmp_path / "concepts.txt").write_text("oak\ncar and truck\n")
    with pytest.raises(ErasureError, match=r"line 2: 'car and truck' looks.*a line for each"):
        read_runs(tmp_path / "concepts.txt", tmp_path, None, {})


def test_check_refuses_a_target_before_any_eraser_of_the_file_is_made(tmp_path):
    for target, message in (("Car", "is the concept itself"), (" ", "target is empty")):
        run = TrainingRun((Concept("car"),), tmp_path / "car", {"target": target})
        with pytest.raises(ErasureError, match=message):
            run.check(overwrite=False, resume=False)


def test_run_of_a_solved_recipe_uses_no_accelerator(untrained, tmp_path):
    run = TrainingRun((Concept("car"),), tmp_path / "car", {"recipe": EDITS["uce"], "check": False})
    (text,) = made(untrained, [run])
    assert text.startswith("Erased 'car', answered as the same prompt without it.")
    assert [path.name for path in tmp_path.iterdir()] == ["car"]


def test_several_erasers_are_made_one_after_the_other(untrained, tmp_path):
    runs = [
        TrainingRun((Concept(name),), tmp_path / name, {**OPTIONS, "target": "oak"})
        for name in ("car", "cat")
    ]
    said = made(untrained, runs)
    assert said[1].startswith("Erased 'cat', answered as 'oak'.")
    assert all(run.done for run in runs)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["car", "cat"]
    assert not torch.equal(*(factors(run.output) for run in runs))


def test_train_command_resumes_to_the_same_eraser(untrained, tmp_path, monkeypatch):
    straight, stopped = (
        TrainingRun((Concept("car"),), tmp_path / name, OPTIONS) for name in ("straight", "stopped")
    )
    made(untrained, [straight])
    real = by_training.train

    def cut_off(*arguments, checkpoints, **options):
        checkpoints = by_training.Checkpoints(checkpoints.folder, checkpoints.run, every=1)
        loop = real(*arguments, checkpoints=checkpoints, **options)
        yield next(loop)
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(by_training, "train", cut_off)
        with pytest.raises(KeyboardInterrupt):
            made(untrained, [stopped])
    assert stopped.work.is_dir()
    assert not stopped.output.exists()
    with pytest.raises(ErasureError, match=r"unfinished run; continue it with `--resume`"):
        made(untrained, [stopped])

    def taken_up(*arguments, **options):
        for step in real(*arguments, **options):
            assert step.index > 0
            yield step

    monkeypatch.setattr(by_training, "train", taken_up)
    made(untrained, [stopped], resume=True)
    assert torch.equal(factors(straight.output), factors(stopped.output))
    assert not stopped.work.exists()


def test_train_command_replaces_its_output_only_with_overwrite(untrained, tmp_path):
    run = TrainingRun((Concept("car"),), tmp_path / "car", OPTIONS)
    made(untrained, [run])
    before = factors(run.output)
    with pytest.raises(ErasureError, match="exists already"):
        made(untrained, [run])
    other = TrainingRun((Concept("car"),), tmp_path / "car", {**OPTIONS, "seed": 1})
    made(untrained, [other], overwrite=True)
    assert not torch.equal(before, factors(run.output))


def test_train_command_never_clears_other_folders(untrained, tmp_path):
    run = TrainingRun((Concept("car"),), tmp_path / "car", OPTIONS)
    run.work.mkdir()
    (run.work / "diary.txt").write_text("dear diary")
    with pytest.raises(ErasureError, match=r"car\.run' is the folder for .* holds something else"):
        made(untrained, [run], overwrite=True)
    assert (run.work / "diary.txt").read_text() == "dear diary"


class Notebook(GeneralTracker):
    name = "notebook"
    requires_logging_directory = False

    def __init__(self):
        super().__init__()
        self.entries = []

    @property
    def tracker(self):
        return self.entries

    def store_init_configuration(self, values):
        self.entries.append(values)

    def log(self, values, step=None, **_):
        self.entries.append((step, values))


def test_trackers_are_told_the_loss_of_every_step(untrained):
    notebook = Notebook()
    accelerator = Accelerator(cpu=True, log_with=notebook)
    accelerator.init_trackers("diffusers-erase")
    options = {"recipe": QUICK, "progress": False, "check": False}
    making.erase(untrained, "car", accelerator=accelerator, **options)
    steps = [entry for entry in notebook.entries if isinstance(entry, tuple)]
    assert [step for step, _ in steps] == [0, 1, 2]
    assert all(values["loss"] > 0 for _, values in steps)


def test_read_runs_reads_no_device_that_never_ends(tmp_path):
    with pytest.raises(ErasureError, match="Cannot read the concepts '/dev/zero'"):
        read_runs(Path("/dev/zero"), tmp_path, "object", {})
