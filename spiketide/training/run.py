"""Train, resume and test one run in its folder."""

from __future__ import annotations

import contextlib
import logging
import shutil
import signal
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.trainer.states import TrainerStatus
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from lightning.pytorch.utilities.seed import isolate_rng

from ..errors import RecipeError, RunError
from .callbacks import Bar, Keep, Reseed
from .folder import AtomicCheckpointIO, RunFolder, read_checkpoint, versions
from .recipe import Built, Recipe
from .reporting import Collector, make_report, measured

log = logging.getLogger("spiketide")

NOISE = (
    r".*does not have many workers.*",  # a loader from memory is faster without workers
    r".*Consider setting `persistent_workers=True`.*",
    r".*isinstance\(treespec, LeafSpec\)` is deprecated.*",  # Lightning's own call into torch
)
"""Advice of Lightning that is wrong here, or about itself. Everything else it warns about is shown."""


class Stopped(KeyboardInterrupt):
    """A run that was interrupted and can be resumed."""

    def __init__(self, folder: RunFolder):
        super().__init__(f"stopped; go on with: spiketide train --resume {folder.path}")
        self.folder = folder


def main_process() -> bool:
    """Whether this process writes: true but for the further processes of a distributed run."""
    return bool(getattr(rank_zero_only, "rank", 0) == 0)


def train(recipe: Recipe, folder: RunFolder, *, resume: bool = False) -> dict[str, Any]:
    """Train a recipe in a folder, or go on with what lies there.

    A resumed run goes on after the last whole epoch and gives what the uninterrupted run gives, to the bit on CPU: data
    order and random numbers are functions of the seed and the epoch. The test data is not touched.

    Args:
        recipe: what to train.
        folder: where.
        resume: go on with a run of the same recipe.

    Returns:
        ``run``, ``epochs``, ``seconds`` and ``best``, the metrics of the best epoch.

    Raises:
        RunError: the folder holds a run already, another recipe, is in use, or cannot be written.
        RecipeError: it cannot be trained: no epoch, or arguments that Lightning's trainer refuses on this machine.
        Stopped: on Ctrl-C, with everything up to the last whole epoch on disk. In start-up, before the first epoch begins, it is
            a plain ``KeyboardInterrupt``, and a folder made by this call is gone again.
    """
    if not resume:
        _check_length(recipe)
    made = False
    keep: Keep | None = None
    try:
        with contextlib.ExitStack() as stack:
            built = trainer = checkpoint = None
            if not resume:  # what cannot be built, or trained here, leaves no folder behind
                built = recipe.build()
                stack.enter_context(surroundings(built.threads))
                keep = Keep(folder, built.best)
                trainer = _trainer(built, folder, keep, None)
            fresh = folder.writer and not folder.path.exists()
            stack.enter_context(folder.hold())
            made = fresh
            _prepare(recipe, folder, resume)
            if resume and folder.finished:
                log.info("%s is finished already", folder.path)
                return _result(folder)
            stack.enter_context(_logging_to(folder))
            if built is None or keep is None or trainer is None:
                built = recipe.build()
                stack.enter_context(surroundings(built.threads))
                keep = Keep(folder, built.best)
                if folder.last.is_file():
                    checkpoint = folder.last
                    read_checkpoint(checkpoint)  # a broken file is told of here
                trainer = _trainer(built, folder, keep, checkpoint)
            _fit(trainer, built, folder, checkpoint)
            keep.write(finished=True)
    except KeyboardInterrupt as stopped:
        if not made or (keep is not None and keep.started) or folder.begun:
            raise
        shutil.rmtree(folder.path, ignore_errors=True)
        raise KeyboardInterrupt from stopped
    return _result(folder)


def _check_length(recipe: Recipe) -> None:
    """Refuse a recipe that ends before it begins: its run would have nothing to test and nothing to go on with."""
    trainer = recipe.settings["trainer"]
    for name in ("max_epochs", "max_steps", "limit_train_batches"):
        if trainer.get(name) == 0:
            raise RecipeError(
                f"trainer.{name} is 0, so nothing would be trained: give 1 or more with --trainer.{name}. (spiketide diagnose "
                "looks at a network that is not trained.)"
            )


def _prepare(recipe: Recipe, folder: RunFolder, resume: bool) -> None:
    if not folder.writer:
        return
    stored = folder.path / "recipe.yaml"
    if stored.is_file() and not resume and not folder.begun:
        log.info("%s holds a run without one whole epoch: it begins anew", folder.path)
        stored.unlink()
    if stored.is_file() and not resume:
        raise RunError(
            f"{folder.path} already holds a run. Go on with --resume, or choose another folder with --run."
        )
    if stored.is_file():
        if Recipe.load(stored).yaml != recipe.yaml:
            raise RunError(
                f"{folder.path} holds a run of another recipe or with other arguments; a resumed run keeps its own. "
                "Choose another folder with --run."
            )
        story = folder.read_json("versions.json") or {}
        story.setdefault("resumed", []).append(time.strftime("%Y-%m-%dT%H:%M:%S%z"))
    else:
        story = {"recipe": recipe.name, **versions(recipe.settings["seed"])}
        if recipe.path is not None:
            story["file"] = str(recipe.path)
        if files := recipe.files():
            story["files"] = files
        # The recipe comes last: a folder that holds it holds all that a run needs.
    if recipe.overridden:
        story["overridden"] = list(recipe.overridden)
    folder.write_json("versions.json", story)
    if not stored.is_file():
        folder.write("recipe.yaml", recipe.yaml)


def _trainer(built: Built, folder: RunFolder, keep: Keep, checkpoint: Path | None) -> L.Trainer:
    from lightning.pytorch.loggers import TensorBoardLogger

    settings = _settings(built)
    if checkpoint is not None and getattr(built.data, "num_workers", False):
        # Workers fetch as soon as the loader is made, which is before Lightning knows the epoch of a resumed run.
        settings["reload_dataloaders_every_n_epochs"] = 1
    callbacks: list[L.Callback] = [Reseed(built.seed), keep]
    if settings["enable_progress_bar"]:
        callbacks.append(Bar())
    return _lightning(
        folder,
        **settings,
        callbacks=callbacks,
        logger=TensorBoardLogger(folder.path, name="", version="tensorboard"),
        plugins=[AtomicCheckpointIO()],
        default_root_dir=folder.path,
        num_sanity_val_steps=0,
        enable_model_summary=False,
    )


def _lightning(folder: RunFolder, **arguments: Any) -> L.Trainer:
    """Lightning's trainer for a run.

    Raises:
        RecipeError: it refuses its arguments, for example an accelerator that this machine does not have.
    """
    try:
        return L.Trainer(**arguments)
    except (MisconfigurationException, ImportError, TypeError, ValueError, RuntimeError) as error:
        wanted = arguments["accelerator"]
        here = " ".join(str(error).split())
        missing = isinstance(error, ImportError) or "accelerator" in here.lower() or "backend" in here.lower()
        if wanted not in ("auto", "cpu") and missing:
            stored = folder.path / "recipe.yaml"  # a run that is there keeps its arguments
            remedy = (
                f"Go on where it was trained, or write accelerator: auto in {stored}"
                if stored.is_file()
                else "Take what there is with --trainer.accelerator auto, or the processor with --trainer.accelerator cpu"
            )
            raise RecipeError(
                f"trainer.accelerator is {wanted!r}, and this machine has none that torch can use ({here.rstrip('.!')}). "
                f"{remedy}."
            ) from error
        raise RecipeError(f"trainer: Lightning refused its arguments: {here}") from error


def _settings(built: Built) -> dict[str, Any]:
    """Arguments for the trainer, with what depends on the machine filled in."""
    settings = dict(built.trainer)
    if settings["deterministic"] is None:
        settings["deterministic"] = settings["accelerator"] == "cpu" or not torch.cuda.is_available()
    if settings["log_every_n_steps"] is None:
        settings["log_every_n_steps"] = 1
    if settings["enable_progress_bar"] is None:
        settings["enable_progress_bar"] = sys.stderr.isatty()
    return settings


def _fit(trainer: L.Trainer, built: Built, folder: RunFolder, checkpoint: Path | None) -> None:
    with _interruptible(trainer, Stopped(folder)):
        trainer.fit(built.model, datamodule=built.data, ckpt_path=checkpoint)


@contextlib.contextmanager
def _interruptible(trainer: L.Trainer, stopped: KeyboardInterrupt) -> Iterator[None]:
    """Lightning's loops end as Ctrl-C ends everything else, and what Lightning refuses is an error of ours."""
    main = threading.current_thread() is threading.main_thread()
    handler = signal.getsignal(signal.SIGINT)
    try:
        yield
    except SystemExit as error:
        # Lightning turns Ctrl-C and SIGTERM into an exit after it has closed everything.
        if trainer.state.status == TrainerStatus.INTERRUPTED:
            raise stopped from error
        raise
    except MisconfigurationException as error:
        raise RunError(f"Lightning refused to go on: {' '.join(str(error).split())}") from error
    finally:
        if main:
            signal.signal(signal.SIGINT, handler)  # Lightning leaves it ignored


def test(folder: RunFolder, *, again: bool = False) -> dict[str, Any]:
    """Measure the best checkpoint (chosen on validation data) on the test data, once, and write the report.

    A second call gives the stored result: looking twice and keeping the better number is how test data wears out.

    Args:
        folder: a run.
        again: measure anew and overwrite.

    Returns:
        ``test_accuracy``, ``test_loss``, ``firing_rate`` (spikes per neuron and step), ``synaptic_operations`` a sample and
        what the same connections would cost densely, and more; the content of ``test.json``.

    Raises:
        RunError: no run, no checkpoint yet, or training is not finished.
    """
    if not again and (stored := folder.read_json("test.json")) is not None:
        return {**stored, "stored": True}  # without the lock: what a read-only run holds can be asked for
    with folder.hold():
        # Once more, now that nobody else writes: another process may have measured since.
        if not again and (stored := folder.read_json("test.json")) is not None:
            return {**stored, "stored": True}
        if not folder.best.is_file():
            if folder.finished:
                raise RunError(
                    f"{folder.path} is finished but has no best checkpoint: it was never validated, so none of its epochs was "
                    "chosen. Train anew with validation (trainer.limit_val_batches, trainer.check_val_every_n_epoch)."
                )
            raise RunError(
                f"{folder.path} has no best checkpoint yet; go on with: spiketide train --resume {folder.path}"
            )
        if not folder.finished:
            raise RunError(
                f"{folder.path} is not finished; test data is touched once, at the end. "
                f"Go on with: spiketide train --resume {folder.path}"
            )
        with _logging_to(folder):
            return {**_measure(folder), "stored": False}


def _measure(folder: RunFolder) -> dict[str, Any]:
    """Measure, and write ``test.json`` and the report."""
    began = time.perf_counter()
    recipe, built, collector, metrics = evaluate(folder)
    result = {
        **measured(built.model, built.data, collector),
        "test_loss": metrics["test/loss"],
        "firing_rate": collector.rate,
        "firing_rates": {name: float(rates.mean()) for name, rates in collector.rates.items()},
        "synaptic_operations": collector.operations.sparse_per_sample,
        "dense_operations": collector.operations.dense_per_sample,
        "samples": collector.samples,
        **({"overridden": list(recipe.overridden)} if recipe.overridden else {}),
        "epoch": int(metrics["epoch"]),
        "test_seconds": round(time.perf_counter() - began, 3),
    }
    folder.write_json("test.json", result)
    make_report(folder, recipe, built, collector, result)
    return result


def evaluate(folder: RunFolder) -> tuple[Recipe, Built, Collector, dict[str, float]]:
    """The best checkpoint of a run on its test data; writes nothing."""
    recipe = load(folder)
    collector = Collector()
    built = recipe.build()
    with surroundings(built.threads):
        checkpoint = folder.fill(built.model)
        kept = ("accelerator", "precision", "limit_test_batches", "deterministic", "enable_progress_bar")
        trainer = _lightning(
            folder,
            **{key: _settings(built)[key] for key in kept},
            devices=1,
            callbacks=[Reseed(built.seed), collector],
            logger=False,
            enable_checkpointing=False,
            enable_model_summary=False,
        )
        told = f"stopped while measuring {folder.path}: no result was written"
        with _interruptible(trainer, KeyboardInterrupt(told)):
            trainer.test(built.model, datamodule=built.data, verbose=False)
    metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
    return recipe, built, collector, {"epoch": checkpoint["epoch"], **metrics}


class _Losses(L.Callback):
    """The loss of every training step."""

    def __init__(self) -> None:
        self.losses: list[float] = []

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.losses.append(float(outputs["loss"]))


def first_losses(recipe: Recipe, steps: int = 20) -> list[float]:
    """The losses of the first training steps of a recipe: its fingerprint. Nothing is written.

    Args:
        recipe: trained on the CPU as it says.
        steps: how many.
    """
    built = recipe.build()
    kept = _Losses()
    with surroundings(built.threads):
        settings = {**_settings(built), "accelerator": "cpu", "devices": 1, "deterministic": True}
        trainer = L.Trainer(
            **{**settings, "enable_progress_bar": False, "limit_val_batches": 0},
            callbacks=[Reseed(built.seed), _Stop(steps), kept],
            logger=False,
            enable_checkpointing=False,
            num_sanity_val_steps=0,
            enable_model_summary=False,
        )
        trainer.fit(built.model, datamodule=built.data)
    return kept.losses


class _Stop(L.Callback):
    """Stop after some steps; ``max_steps`` would change the length of the learning-rate schedule."""

    def __init__(self, steps: int):
        self.steps = steps
        self.seen = 0  # batches; with truncation an optimiser step is a window

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.seen += 1
        trainer.should_stop = self.seen >= self.steps


def load(folder: RunFolder) -> Recipe:
    """The recipe of a run; files of its own classes that changed since it began are told of."""
    recipe = Recipe.load(folder.path / "recipe.yaml")
    story = folder.read_json("versions.json") or {}
    files = recipe.files()
    for module, digest in story.get("files", {}).items():
        if files.get(module) not in (None, digest):
            log.warning(
                "the file of %s is not the one that %s began with: what follows is computed with the file as it is now",
                module,
                folder.path,
            )
    recipe.name = story.get("recipe", recipe.name)
    recipe.overridden = tuple(story.get("overridden", ()))
    return recipe


def open_run(run: str | Path) -> Built:
    """The objects of a run, the model with the weights of the best epoch and in evaluation mode.

    Example:
        ::

            built = open_run("runs/digits/latency_lif/2026-11-24_10-00-00")
            network, data = built.model.network, built.data

    Args:
        run: its folder.

    Raises:
        RunError: no run, no checkpoint, or one that does not fit.
        RecipeError: the recipe does not hold any more, or one of its classes is not found.
    """
    folder = RunFolder.open(Path(run))
    if not folder.best.is_file():
        raise RunError(
            f"{folder.path} has no best checkpoint yet; go on with: spiketide train --resume {folder.path}"
        )
    with isolate_rng():  # built from its seed; the caller's random numbers go on as they were
        built = load(folder).build()
    folder.fill(built.model)
    built.model.eval()
    return built


def _result(folder: RunFolder) -> dict[str, Any]:
    metrics = folder.read_json("metrics.json") or {}
    keys = ("finished", "epochs", "seconds", "best")
    return {"run": str(folder.path), **{key: metrics.get(key) for key in keys}}


# ------------------------------------------------------------------------------------------------- surroundings


@contextlib.contextmanager
def surroundings(threads: int | None = None) -> Iterator[None]:
    """Set the threads, hide Lightning's advertisements and wrong advice, and undo the global switches it turns."""
    before = torch.get_num_threads()
    if threads is not None:
        torch.set_num_threads(threads)
    deterministic = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    debugging: Any = torch.utils.deterministic
    filled = debugging.fill_uninitialized_memory
    # Deterministic mode also fills every new tensor with NaN, a debugging aid that costs time and changes no result.
    debugging.fill_uninitialized_memory = False
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.WARNING)
    try:
        with warnings.catch_warnings():
            for message in NOISE:
                warnings.filterwarnings("ignore", message=message)
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
        debugging.fill_uninitialized_memory = filled
        torch.use_deterministic_algorithms(deterministic, warn_only=warn_only)
        torch.set_num_threads(before)


class _File(logging.FileHandler):
    """A log that never stops a run: when the disk is full the checkpoint says so, better."""

    def handleError(self, record: logging.LogRecord) -> None:
        pass


@contextlib.contextmanager
def _logging_to(folder: RunFolder) -> Iterator[None]:
    if not folder.writer:
        yield
        return
    handler = _File(folder.path / "run.log", encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    loggers = [logging.getLogger(name) for name in ("spiketide", "lightning.pytorch", "py.warnings")]
    level = log.level
    log.setLevel(logging.INFO)
    for logger in loggers:
        logger.addHandler(handler)
    try:
        yield
    except Exception as error:
        handler.emit(
            log.makeRecord(
                log.name, logging.ERROR, __file__, 0, "%s: %s", (type(error).__name__, error), None
            )
        )
        raise
    finally:
        for logger in loggers:
            logger.removeHandler(handler)
        log.setLevel(level)
        handler.close()
