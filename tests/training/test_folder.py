"""The folder of a run: taken, read-only, full; nothing is lost."""

from __future__ import annotations

import contextlib
import errno
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import tiny_recipe as tiny
import torch

import spiketide.training.folder as folder_module
from spiketide.errors import RecipeError, RunError, ShapeError
from spiketide.training import Classification, open_run
from spiketide.training.folder import AtomicCheckpointIO, RunFolder, latest, versions, write
from spiketide.training.recipe import Recipe
from spiketide.training.run import load, train
from spiketide.training.run import test as run_test


def refuse(code: int, names: set[str]) -> Any:
    """An ``os.fsync`` that fails for some files: what a full disk does to a write that was buffered."""
    real = os.fsync

    def fsync(descriptor: int) -> None:
        name = os.readlink(f"/proc/self/fd/{descriptor}")
        if any(part in name for part in names):
            raise OSError(code, os.strerror(code))
        real(descriptor)

    return fsync


def test_write_is_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file.txt"
    write(path, "old")
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", refuse(errno.ENOSPC, {"file.txt"}))
        with pytest.raises(RunError, match=r"disk is full.*intact"):
            write(path, "new")
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["file.txt"]  # no half file is left lying
    write(path, "new")
    assert path.read_text() == "new"


def test_ctrl_c_leaves_no_half_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def press(descriptor: int) -> None:
        raise KeyboardInterrupt

    write(tmp_path / "file.txt", "old")
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", press)
        with pytest.raises(KeyboardInterrupt):
            write(tmp_path / "file.txt", "new")
    assert os.listdir(tmp_path) == ["file.txt"] and (tmp_path / "file.txt").read_text() == "old"


def test_real_full_disk(tmp_path: Path) -> None:
    """``/dev/full`` is a disk that is always full."""
    if not Path("/dev/full").exists():
        pytest.skip("this system has no /dev/full")
    temporary = tmp_path / f".file.{os.getpid()}.tmp"
    temporary.symlink_to("/dev/full")
    with pytest.raises(RunError, match="disk is full"):
        write(tmp_path / "file", "content")


def test_full_disk_in_the_second_epoch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, saves = RunFolder(tmp_path / "run"), 0
    save = AtomicCheckpointIO.save_checkpoint

    def second(self: Any, checkpoint: Any, path: Any, storage_options: Any = None) -> None:
        nonlocal saves
        saves += "last" in str(path)
        if saves == 2:
            monkeypatch.setattr(os, "fsync", refuse(errno.ENOSPC, {"last.ckpt"}))
        save(self, checkpoint, path, storage_options)

    with monkeypatch.context() as patch:
        patch.setattr(AtomicCheckpointIO, "save_checkpoint", second)
        with pytest.raises(RunError, match=r"last\.ckpt: the disk is full.*--resume"):
            train(tiny.recipe(), folder)
    monkeypatch.undo()
    assert torch.load(folder.last, weights_only=True)["epoch"] == 0  # what was there is whole
    assert train(tiny.recipe(), folder, resume=True)["epochs"] == 3


@pytest.mark.parametrize("name", ["max_epochs", "max_steps", "limit_train_batches"])
def test_a_run_of_no_length_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=f"trainer.{name} is 0, so nothing would be trained"):
        train(tiny.recipe(**{name: 0}), RunFolder(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_read_only_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = tmp_path / "closed"
    place.mkdir()
    if os.geteuid() == 0:  # nothing is read-only to root: let the system call say what it says to others

        def mkdir(*_: Any, **__: Any) -> None:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))

        monkeypatch.setattr(Path, "mkdir", mkdir)
    else:
        place.chmod(0o500)
    with pytest.raises(RunError, match=r"read-only.*--run"):
        train(tiny.recipe(), RunFolder(place / "run"))


def test_two_runs_in_one_folder(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    with folder.hold(), pytest.raises(RunError, match="another process"):
        train(tiny.recipe(), RunFolder(folder.path))
    with folder.hold():  # free again
        pass
    train(tiny.recipe(max_epochs=1), folder)
    with pytest.raises(RunError, match="already holds a run"):
        train(tiny.recipe(max_epochs=1), folder)


def test_further_processes_write_nothing(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run", writer=False)
    with folder.hold():
        folder.write_json("metrics.json", {})
    assert not folder.path.exists()


def test_json_files_hold_no_nan(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.write_json("metrics.json", {"history": [{"val/loss": float("nan")}], "seconds": float("inf")})
    assert "NaN" not in (tmp_path / "metrics.json").read_text()
    assert folder.read_json("metrics.json") == {"history": [{"val/loss": None}], "seconds": None}


def test_a_result_that_appears_meanwhile_is_not_measured_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = RunFolder(tmp_path)
    folder.write("recipe.yaml", tiny.recipe().yaml)
    hold = RunFolder.hold

    @contextlib.contextmanager
    def late(self: RunFolder) -> Iterator[RunFolder]:
        with hold(self):
            self.write_json("test.json", {"test_accuracy": 0.5})  # what another process wrote just before
            yield self

    monkeypatch.setattr(RunFolder, "hold", late)
    assert run_test(folder) == {"test_accuracy": 0.5, "stored": True}


def test_a_stored_result_can_be_asked_for_without_the_lock(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.write_json("test.json", {"test_accuracy": 0.5})
    with folder.hold():
        assert run_test(RunFolder(tmp_path)) == {"test_accuracy": 0.5, "stored": True}
        with pytest.raises(RunError, match="another process"):
            run_test(RunFolder(tmp_path), again=True)


def test_what_is_not_a_run(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"holds no recipe\.yaml"):
        RunFolder.open(tmp_path)
    (tmp_path / "recipe.yaml").write_text(tiny.recipe().yaml)
    with pytest.raises(RunError, match="no best checkpoint"):
        run_test(RunFolder.open(tmp_path))
    (tmp_path / "metrics.json").write_text("{")
    with pytest.raises(RunError, match=r"cannot read .*metrics\.json"):
        _ = RunFolder.open(tmp_path).finished


def test_versions_and_latest(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    facts = versions(7)
    assert facts["seed"] == 7
    assert facts["torch"] == torch.__version__ or facts["torch"] in torch.__version__
    assert facts["lightning"] == L.__version__
    assert facts["machine"]["cores"] == os.cpu_count()
    assert latest(tmp_path, "tiny") is None
    for age, name in ((20, "new"), (10, "old")):
        (tmp_path / "tiny" / name).mkdir(parents=True)
        (tmp_path / "tiny" / name / "recipe.yaml").touch()
        os.utime(tmp_path / "tiny" / name / "recipe.yaml", (age, age))
    assert latest(tmp_path, "tiny") == tmp_path / "tiny" / "new"
    (tmp_path / "tiny" / "old" / "checkpoints").mkdir()
    assert latest(tmp_path, "tiny") == tmp_path / "tiny" / "new"  # nothing in it
    (tmp_path / "tiny" / "old" / "checkpoints" / "last.ckpt").touch()
    assert latest(tmp_path, "tiny") == tmp_path / "tiny" / "old"
    assert f"{tmp_path / 'tiny' / 'new'} was begun later but has no checkpoint" in caplog.text
    (tmp_path / "tiny" / "new" / "checkpoints").mkdir()
    (tmp_path / "tiny" / "new" / "checkpoints" / "best.ckpt").touch()
    assert latest(tmp_path, "tiny") == tmp_path / "tiny" / "new"


def test_runs_of_two_files_of_one_name(tmp_path: Path) -> None:
    for number, file in enumerate(("a/rec.yaml", "b/rec.yaml")):
        run = tmp_path / "runs" / "rec" / str(number)
        (run / "checkpoints").mkdir(parents=True)
        (run / "checkpoints" / "best.ckpt").touch()
        (run / "recipe.yaml").touch()
        os.utime(run / "recipe.yaml", (number, number))
        (run / "versions.json").write_text(json.dumps({"file": str(tmp_path / file)}))
    found = [
        latest(tmp_path / "runs", "rec", file and tmp_path / file)
        for file in ("a/rec.yaml", None, "c/rec.yaml")
    ]
    assert found == [tmp_path / "runs/rec/0", tmp_path / "runs/rec/1", None]


def test_a_class_of_ones_own_that_changed_is_told_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    module = tmp_path / "my_read_out.py"
    module.write_text("from spiketide.readouts import MaxMembrane\n\nclass Mine(MaxMembrane):\n    pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    content = tiny.content()
    content["model"]["init_args"]["readout"] = {"class_path": "my_read_out.Mine"}
    content["trainer"]["max_epochs"] = 1
    folder = RunFolder(tmp_path / "run")
    train(Recipe(content, name="mine"), folder)
    story = folder.read_json("versions.json")
    assert story is not None and list(story["files"]) == ["my_read_out"]
    load(folder)
    assert "my_read_out" not in caplog.text
    module.write_text(module.read_text() + "# changed\n")
    load(folder)
    assert "the file of my_read_out is not the one" in caplog.text


def test_a_run_is_opened_with_its_best_weights_and_nothing_else_moves(tmp_path: Path) -> None:
    with pytest.raises(RunError):
        open_run(tmp_path)
    folder = RunFolder(tmp_path / "run")
    train(tiny.recipe(max_epochs=2), folder)
    torch.manual_seed(8)
    wanted = torch.rand(3)
    torch.manual_seed(8)
    built = open_run(folder.path)
    assert torch.equal(torch.rand(3), wanted) and not built.model.training
    best = torch.load(folder.best, weights_only=True)["state_dict"]
    assert all(torch.equal(value, best[name]) for name, value in built.model.state_dict().items())
    folder.best.unlink()
    with pytest.raises(RunError, match="no best checkpoint yet"):
        open_run(folder.path)


def test_checkpoints_go_through_the_atomic_writer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[str] = []
    real = folder_module.write
    monkeypatch.setattr(
        folder_module, "write", lambda path, content: (written.append(path.name), real(path, content))
    )
    train(tiny.recipe(max_epochs=1), RunFolder(tmp_path / "run"))
    assert written.index("best.ckpt") < written.index("last.ckpt")  # a kill between them repeats the epoch


def test_a_run_that_failed_before_its_first_epoch_was_over_is_begun_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = RunFolder(tmp_path / "run")

    def fail(self: Classification, batch: Any, batch_idx: int) -> Any:
        raise ShapeError("layer 0: expected something else")

    with monkeypatch.context() as patch:
        patch.setattr(Classification, "training_step", fail)
        with pytest.raises(ShapeError):
            train(tiny.recipe(), folder)
    assert "ERROR ShapeError: layer 0: expected something else" in (folder.path / "run.log").read_text()
    assert not folder.begun and (folder.path / "recipe.yaml").is_file()
    other = tiny.recipe(max_epochs=1)
    assert train(other, folder)["epochs"] > 0  # other arguments: the failed ones are gone
    assert folder.begun and (folder.path / "recipe.yaml").read_text() == other.yaml
    with pytest.raises(RunError, match="already holds a run"):
        train(tiny.recipe(), folder)
