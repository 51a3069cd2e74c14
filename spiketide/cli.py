"""The command line: ``spiketide train | test | reproduce | list | diagnose | report | energy | export | stream | demo | encode``.

Only ``argparse`` is imported for ``--help``, ``--version`` and ``list``; Lightning and jsonargparse come with the verb that
needs them. Whatever is not an option of a verb, ``--model.lr 0.01`` for example, is an argument of the recipe.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import sys
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from . import recipes
from .errors import RecipeError, RunError, SpiketideError, unknown
from .plain import to_json

log = logging.getLogger("spiketide")

FAILED, STOPPED = 2, 130

SECTIONS = frozenset({"--seed", "--threads", "--about"})
"""Arguments of a recipe without a dot."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code: 0 done, 2 refused or failed, 130 stopped with a resumable run."""
    try:
        return _main(argv)
    except KeyboardInterrupt:  # before the command line was read
        _complain("\nspiketide: stopped; give the same command again")
        return STOPPED
    except BrokenPipeError:  # whoever read our output has closed it, as head does: no more is wanted
        # what is left in the buffer goes nowhere, and nothing complains
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _main(argv: Sequence[str] | None) -> int:
    parser = _parser()
    words, given = _recipe_arguments(list(sys.argv[1:] if argv is None else argv))
    as_json = "--json" in words  # wherever it stands, also before the verb
    try:
        options, rest = parser.parse_known_args([word for word in words if word != "--json"])
    except UsageError as error:
        _complain(f"{error.usage}{error.program}: {error}")
        if as_json:
            verb = error.program.partition(" ")[2] or None
            _say(to_json({"verb": verb, "error": str(error), "kind": "UsageError"}))
        return FAILED
    rest += given
    _listen()
    try:
        if rest and not options.takes_arguments:
            known = sorted(_options(parser, options.verb))
            raise RecipeError(unknown(f"option of {options.verb}:", rest[0], known))
        if not options.takes_arguments:
            result = options.run(options)
        else:
            result = options.run(options, _hinted(rest, _options(parser, options.verb)))
    except SpiketideError as error:
        if options.debug:
            traceback.print_exc()
        else:
            _complain(f"spiketide {options.verb}: {error}")
        if as_json and _first_process():
            _say(to_json({"verb": options.verb, "error": str(error), "kind": type(error).__name__}))
        return FAILED
    except KeyboardInterrupt as stopped:
        early = " in start-up, before the first epoch: nothing was trained" if options.verb == "train" else ""
        _complain(
            f"\nspiketide {options.verb}: {str(stopped) or f'stopped{early}; give the same command again'}"
        )
        if as_json and _first_process():
            folder = getattr(stopped, "folder", None)
            _say(to_json({"verb": options.verb, "stopped": True, "run": folder and str(folder.path)}))
        return STOPPED
    except BrokenPipeError:  # no mistake, and no one to tell: main ends it
        raise
    except Exception as error:
        # A mistake of ours or of a class of the user's: the traceback is wanted, and the line that a program waits for too.
        if as_json and _first_process():
            _say(to_json({"verb": options.verb, "error": str(error), "kind": type(error).__name__}))
        raise
    if as_json and result is not None:
        _say(to_json({"verb": options.verb, **result}))
    return 0


class UsageError(Exception):
    """A command line that does not say what to do."""

    def __init__(self, message: str, program: str, usage: str):
        super().__init__(message)
        self.program, self.usage = program, usage


class _Parser(argparse.ArgumentParser):
    """Raises where argparse prints and exits."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(message, self.prog, self.format_usage())


def _first_process() -> bool:
    """Whether this process prints results: a further process of a distributed run does not."""
    run = sys.modules.get("spiketide.training.run")  # only what trains has further processes
    return run is None or run.main_process()


# ------------------------------------------------------------------------------------------------- verbs


def _train(options: argparse.Namespace, overrides: list[str]) -> dict[str, Any] | None:
    from .training.folder import RunFolder
    from .training.run import load, main_process, train

    given, resume = options.recipe, options.resume
    if resume is not None:
        path = _resumable(given, resume, options)
        folder = RunFolder.open(path)
        if overrides:
            raise RunError(
                f"a resumed run keeps its own arguments; {' '.join(overrides)} would make it another run. "
                "Begin a new one without --resume."
            )
        folder.writer = main_process()
        result = train(load(folder), folder, resume=True)
    else:
        if given is None:
            raise RecipeError(
                "train needs a recipe: " + ", ".join(recipes.names()) + ", or the path of a YAML file."
            )
        result = _begin(given, overrides, options)
    if not main_process():
        return None  # a further process of a distributed run has nothing to say
    best = result["best"] or {}
    _say(f"run        {result['run']}")
    _say(f"epochs     {result['epochs']} in {result['seconds']:.1f} s")
    if "val/accuracy" in best:
        _say(f"best       epoch {best['epoch']}: validation accuracy {best['val/accuracy']:.2%}")
    _say(f"next       spiketide test {result['run']}")
    return result


def _begin(recipe_name: str, overrides: list[str], options: argparse.Namespace) -> dict[str, Any]:
    """A new run in a new folder."""
    recipes.find(recipe_name)  # before the slow imports: a misspelt name is said at once
    from .training.folder import RunFolder, new_name
    from .training.recipe import Recipe
    from .training.run import main_process, train

    recipe = Recipe.load(recipe_name, overrides)
    path = (
        Path(options.run_folder)
        if options.run_folder
        else _free(Path(options.runs) / recipe.name / new_name())
    )
    return train(recipe, RunFolder(path, writer=main_process()))


def _free(path: Path) -> Path:
    """The path itself, or with a number when two runs begin in one second."""
    candidate, number = path, 2
    while candidate.exists():
        candidate, number = path.with_name(f"{path.name}-{number}"), number + 1
    return candidate


def _resumable(given: str | None, resume: str, options: argparse.Namespace) -> Path:
    """The folder that ``--resume`` means: named by itself, by ``--run``, or the latest of a recipe."""
    name = resume or options.run_folder or given
    if not name:
        raise RunError("--resume needs a run folder, or a recipe whose latest run is meant.")
    return _run_path(name, options)


def _run_path(name: str, options: argparse.Namespace) -> Path:
    """A run folder, or the latest run of a recipe, given by its name or its file."""
    from .training.folder import latest

    path = Path(name)
    if (path / "recipe.yaml").is_file():
        return path
    if path.is_file() and path.suffix in (".yaml", ".yml"):
        found = latest(Path(options.runs), path.stem, path.resolve())
    else:
        found = latest(Path(options.runs), name)
    if found is None:
        from . import recipes

        if name in recipes.names() or path.is_file():
            raise RunError(
                f"the recipe {name} has no runs in {options.runs}/ yet: train it first with spiketide train {name}."
            )
        raise RunError(f"{name} is neither a run folder nor a recipe with runs in {options.runs}/.")
    return found


def _test(options: argparse.Namespace) -> dict[str, Any]:
    from .training.folder import RunFolder
    from .training.run import test

    folder = RunFolder.open(_run_path(options.run_name, options))
    result = {"run": str(folder.path), **test(folder, again=options.again)}
    if result["stored"]:
        _say("stored result of an earlier test (measure anew with --again):")
    _table(result)
    _say(f"report                        {(folder.path / 'report.html').resolve()}")
    return result


def _demo(options: argparse.Namespace, overrides: list[str]) -> dict[str, Any] | None:
    began = time.perf_counter()
    from .training.folder import RunFolder
    from .training.run import main_process, test

    trained = _begin(options.recipe, overrides, options)
    if not main_process():
        return None
    folder = RunFolder.open(trained["run"])
    tested = test(folder)
    seconds = round(time.perf_counter() - began, 1)
    result = {
        **tested,
        "run": trained["run"],
        "seconds": seconds,
        "report": str((folder.path / "report.html").resolve()),
    }
    _say("")
    _table(result)
    _say(f"report                        {result['report']}")
    return result


def _table(result: dict[str, Any]) -> None:
    sparse, dense = result["synaptic_operations"], result["dense_operations"]
    share = f" ({sparse / dense:.1%})" if dense else ""
    what = "samples" if "test_accuracy_labelled" not in result else "sequences, all steps"
    _say(f"test accuracy                 {result['test_accuracy']:.2%} of {result['samples']} {what}")
    if result.get("overridden"):
        _say(f"overridden                    {', '.join(result['overridden'])}")
    if "test_accuracy_labelled" in result:
        _say(f"of the labelled steps         {result['test_accuracy_labelled']:.2%}")
        true, found, false = (
            sum(row[key] for row in result["onsets"].values()) for key in ("true", "found", "false")
        )
        _say(f"onsets                        {found} of {true} found, {false} false ones")
    if "deadline" in result:
        _say(f"no output spike               {result['test_no_fire']:.2%}")
        _say(
            f"decision time                 {result['decision_time']:.1f} of {len(result['deadline'])} steps"
        )
        _say(f"spikes a sample               {result['spikes_per_image']:,.0f}")
    per = "sample" if "deadline" in result else "step"
    _say(f"firing rate                   {result['firing_rate']:.4f} spikes per neuron and {per}")
    _say(f"synaptic operations a sample  {sparse:,.0f} against {dense:,.0f} dense{share}")
    if "seconds" in result:
        _say(f"seconds                       {result['seconds']:.1f}")


def _reproduce(options: argparse.Namespace, overrides: list[str]) -> dict[str, Any]:
    from .training.reproduce import reproduce

    if options.seeds < 1:
        raise RecipeError(f"--seeds should be 1 or more, got {options.seeds}.")
    result = reproduce(
        options.recipe, overrides, seeds=options.seeds, runs=Path(options.runs), folder=options.run_folder
    )
    for row in result["runs"]:
        _say(f"seed {row['seed']:<4} {result['metric']} {row['value']:.4f}   {row['run']}")
    _say(
        f"mean {result['mean']:.4f} ± {result['sd']:.4f} (sd, {result['seeds']} seeds)"
        if result["seeds"] > 1
        else ""
    )
    if result["interval"]:
        _say(f"95 % interval of the mean     {result['interval'][0]:.4f} to {result['interval'][1]:.4f}")
    _say(result["verdict_in_words"])
    return result


def _list(options: argparse.Namespace) -> dict[str, Any]:
    rows, wide = [], max(map(len, recipes.names()), default=0)
    for name in recipes.names():
        content = recipes.read(recipes.find(name)[1])
        rows.append({"recipe": name, "about": content.get("about", ""), "claim": content.get("claim")})
        claim = content.get("claim")
        paper = f"  [{claim['paper']}: {claim['metric']} {claim['value']}]" if claim else ""
        _say(f"{name:<{wide}} {content.get('about', '')}{paper}")
    return {"recipes": rows}


def _diagnose(options: argparse.Namespace, overrides: list[str]) -> dict[str, Any]:
    from .training.folder import RunFolder
    from .training.recipe import Recipe
    from .training.reporting import diagnose_recipe

    folder = Path(options.target)
    is_run = (folder / "recipe.yaml").is_file()
    recipe = Recipe.load(folder / "recipe.yaml" if is_run else options.target, overrides)
    found = diagnose_recipe(recipe, RunFolder(folder) if is_run else None)
    _say(str(found))
    return found.to_dict()


def _encode(options: argparse.Namespace) -> dict[str, Any]:
    from dataclasses import asdict

    from .encoders.cochlea import Cochlea
    from .encoders.folder import encode_folder

    done = encode_folder(
        options.folder,
        options.out,
        naming=options.naming,
        ear=Cochlea(sample_rate=options.rate, channels=options.channels),
        jobs=options.jobs,
        skip_bad=options.skip_bad,
    )
    _say(f"file        {done.out}")
    _say(
        f"recordings  {done.recordings} of {done.classes} classes, {done.spikes:,} spikes, times as {done.times}"
    )
    if done.skipped:
        _say(
            f"left out    {len(done.skipped)}: {', '.join(done.skipped[:5])}{' …' if len(done.skipped) > 5 else ''}"
        )
    return {**asdict(done), "skipped": list(done.skipped)}


def _report(options: argparse.Namespace) -> dict[str, Any]:
    from .training.folder import RunFolder
    from .training.reporting import rewrite_report

    path = rewrite_report(RunFolder.open(_run_path(options.run_name, options)))
    _say(f"report  {path}")
    return {"report": str(path)}


def _stream(options: argparse.Namespace) -> dict[str, Any]:
    from .training.folder import RunFolder
    from .training.stream import opened, stream_lines

    sound = _is_sound(options)
    folder = RunFolder.open(_run_path(options.run_name, options))
    if sound:
        from .training.sound import classify_file, classify_microphone

        shared: dict[str, Any] = {"say": _say, "every": options.every, "restart": options.restart}
        if options.microphone:
            return classify_microphone(folder, seconds=options.seconds, device=options.device, **shared)
        return classify_file(
            folder,
            Path(options.wav),
            channel=options.channel,
            resample=bool(options.resample),
            clip=bool(options.clip),
            **shared,
        )
    with opened(options.input or "-") as lines:
        return stream_lines(
            folder,
            lines,
            say=_say,
            chunk=1 if options.chunk is None else options.chunk,
            threshold=options.level_crossing,
            mode=options.mode or "difference",
            segmented=bool(options.segments),
        )


def _is_sound(options: argparse.Namespace) -> bool:
    """Whether ``stream`` takes sound and not rows of numbers; options of the other are refused."""
    groups = {
        "text": ("input", "segments", "level_crossing", "mode", "chunk"),
        "sound": ("every", "restart"),
        "wav": ("channel", "resample", "clip"),
        "microphone": ("seconds", "device"),
    }
    given = {
        kind: [name for name in names if getattr(options, name) is not None] for kind, names in groups.items()
    }
    wav, microphone = options.wav is not None, bool(options.microphone)
    if wav and microphone:
        raise RecipeError("stream takes --wav FILE or --microphone, not both.")
    wrong = given["text"] if wav or microphone else given["sound"]
    wrong += ([] if wav else given["wav"]) + ([] if microphone else given["microphone"])
    if wrong:
        name = "FILE" if wrong[0] == "input" else "--" + wrong[0].replace("_", "-")
        source = "--wav" if wav else "--microphone" if microphone else "rows of numbers"
        raise RecipeError(f"stream: {name} does not go with {source}; see spiketide stream --help.")
    return wav or microphone


def _energy(options: argparse.Namespace) -> dict[str, Any]:
    from .energy import table
    from .training.energy import energy_of_run
    from .training.folder import RunFolder

    other = options.against
    found = energy_of_run(
        RunFolder.open(_run_path(options.run_name, options)),
        model=options.costs,
        against=None if other is None else RunFolder.open(_run_path(other, options)),
        on=options.on,
    )
    _say(table(found))
    _say(
        f"written to {Path(found['run']) / 'energy.json'}; measured on {found['on']} data, neurons and biases included"
    )
    return found


def _export(options: argparse.Namespace) -> dict[str, Any]:
    from .training.export import export_run
    from .training.folder import RunFolder

    done = export_run(RunFolder.open(_run_path(options.run_name, options)), Path(options.to))
    _say(f"file     {done['file']}: {done['bytes']:,} bytes")
    _say(f"weights  {done['weights']:,}, a bit each; as 32-bit numbers {done['float32_bytes']:,} bytes")
    if not done["encoder"]:
        _say("encoder  not in the file: it has no packed form")
    return done


# ------------------------------------------------------------------------------------------------- words in, words out


def _parser() -> argparse.ArgumentParser:
    shared = _Parser(add_help=False)
    shared.add_argument(
        "--json", action="store_true", help="print the result as one JSON line, last on stdout"
    )
    shared.add_argument("--debug", action="store_true", help="show the traceback of an error")
    shared.add_argument("--runs", default="runs", metavar="DIR", help="where runs are kept (default: runs)")

    parser = _Parser(
        prog="spiketide",
        description="Train spiking neural networks from recipes.",
        epilog="Any argument of any constructor in a recipe can be given as --key value, "
        "for example --model.lr 0.005 or --model.network.1.tau_mem 8. `spiketide VERB --help` tells more.",
    )
    parser.add_argument("--version", action="version", version=_version())
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")

    def verb(name: str, run: Any, about: str, *, arguments: bool) -> argparse.ArgumentParser:
        made = verbs.add_parser(name, parents=[shared], help=about, description=about, allow_abbrev=False)
        made.set_defaults(run=run, takes_arguments=arguments)
        return made

    def new_run(made: argparse.ArgumentParser) -> None:
        made.add_argument(
            "--run", dest="run_folder", metavar="DIR", help="folder of this run (default: by recipe and time)"
        )

    recipe_help = "name of a packaged recipe (see `spiketide list`) or path of a YAML file"
    run_help = "folder of a run, or a recipe: its latest run"

    made = verb(
        "train", _train, "train a recipe; further --key value are arguments of the recipe", arguments=True
    )
    made.add_argument("recipe", nargs="?", metavar="RECIPE", help=recipe_help)
    new_run(made)
    made.add_argument(
        "--resume",
        nargs="?",
        const="",
        metavar="RUN",
        help="go on with a run (default: the latest of the recipe)",
    )
    made = verb("test", _test, "measure the best checkpoint of a run on test data, once", arguments=False)
    made.add_argument("run_name", metavar="RUN", help=run_help)
    made.add_argument("--again", action="store_true", help="measure anew and overwrite the stored result")
    made = verb(
        "reproduce",
        _reproduce,
        "train and test over several seeds and compare with the claim",
        arguments=True,
    )
    made.add_argument("recipe", metavar="RECIPE", help=recipe_help)
    made.add_argument("--seeds", type=int, default=3, metavar="N", help="how many seeds (default: 3)")
    new_run(made)
    verb("list", _list, "list the packaged recipes and what they claim", arguments=False)
    made = verb("diagnose", _diagnose, "say what is wrong with a network, from one batch", arguments=True)
    made.add_argument(
        "target", metavar="RECIPE|RUN", help="a recipe (as it begins) or the folder of a run (its best)"
    )
    made = verb("report", _report, "write the report of a tested run again", arguments=False)
    made.add_argument("run_name", metavar="RUN", help=run_help)
    made = verb(
        "energy",
        _energy,
        "estimate the energy of a run from its operations, beside classical networks",
        arguments=False,
    )
    made.add_argument("run_name", metavar="RUN", help=run_help)
    made.add_argument(
        "--costs",
        default="horowitz-fp32",
        metavar="NAME",
        help="prices: horowitz-fp32 (default), horowitz-int32, lemaire (memory and addressing too)",
    )
    made.add_argument(
        "--against",
        metavar="RUN2",
        help="compare with this run (default: an LSTM, a GRU and an RNN of equal size, by formula)",
    )
    made.add_argument(
        "--on",
        default="validation",
        choices=("validation", "test"),
        help="data to measure on; test only for a run that was tested (default: validation)",
    )
    made = verb(
        "export",
        _export,
        "write a trained network of binary weights as a file with one bit for each weight",
        arguments=False,
    )
    made.add_argument("run_name", metavar="RUN", help=run_help)
    made.add_argument("--to", required=True, metavar="FILE", help="the .npz file to write")
    made = verb(
        "stream",
        _stream,
        "label steps or sound as they come, from a file, a pipe or a microphone, with the best checkpoint of a run",
        arguments=False,
    )
    made.add_argument("run_name", metavar="RUN", help=run_help)
    made.add_argument(
        "input",
        nargs="?",
        metavar="FILE",
        help="rows of numbers as text, one a step (default: stdin)",
    )
    made.add_argument(
        "--segments",
        action="store_true",
        default=None,
        help="print a line when a run of one label has ended, not one a step",
    )
    made.add_argument(
        "--level-crossing",
        type=float,
        metavar="L",
        help="the rows are samples of a signal: turn them into events at this threshold first",
    )
    made.add_argument(
        "--mode",
        choices=("difference", "send_on_delta"),
        help="kind of level crossing (default: difference)",
    )
    made.add_argument(
        "--chunk",
        type=int,
        metavar="N",
        help="rows collected before they are labelled (default: 1)",
    )
    made.add_argument("--wav", metavar="FILE", help="classify this sound file as if it came live")
    made.add_argument(
        "--microphone", action="store_true", help="classify what a microphone hears, until Ctrl-C"
    )
    made.add_argument(
        "--every",
        type=int,
        metavar="N",
        help="sound: print every N frames, not only when the decision changes",
    )
    made.add_argument("--restart", type=float, metavar="S", help="sound: begin anew every S seconds")
    made.add_argument(
        "--channel",
        type=int,
        metavar="N",
        help="with --wav: which channel, from 1, of a file that has several",
    )
    made.add_argument(
        "--resample",
        action="store_true",
        default=None,
        help="with --wav: turn another sample rate into that of the run",
    )
    made.add_argument(
        "--clip",
        action="store_true",
        default=None,
        help="with --wav: place the recording in a clip first, as the data set of the run does",
    )
    made.add_argument(
        "--seconds", type=float, metavar="S", help="with --microphone: how long (default: until Ctrl-C)"
    )
    made.add_argument(
        "--device", metavar="NAME", help="with --microphone: its name or number (default: the system's)"
    )
    made = verb("encode", _encode, "turn a folder of audio files into one file of spikes", arguments=False)
    made.add_argument("folder", metavar="FOLDER", help="audio files, in a sub-folder for each label")
    made.add_argument("--out", required=True, metavar="FILE", help="the HDF5 file to write")
    made.add_argument(
        "--naming",
        choices=("folder", "fsdd"),
        default="folder",
        help="where labels come from: sub-folders, or names {label}_{speaker}_{index}.wav (default: folder)",
    )
    made.add_argument("--rate", type=int, default=8000, metavar="HZ", help="rate of the ear (default: 8000)")
    made.add_argument(
        "--channels", type=int, default=700, metavar="N", help="cells of the ear (default: 700)"
    )
    made.add_argument("--jobs", type=int, metavar="N", help="processes (default: one for each core)")
    made.add_argument("--skip-bad", action="store_true", help="leave out broken files instead of stopping")
    made = verb("demo", _demo, "train, test and report a small recipe on real data", arguments=True)
    made.add_argument("recipe", nargs="?", default="digits/latency_lif", metavar="RECIPE", help=recipe_help)
    new_run(made)
    return parser


def _options(parser: argparse.ArgumentParser, verb: str) -> set[str]:
    """Names of the options of a verb."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            return {name for name in action.choices[verb]._option_string_actions if name.startswith("--")}
    return set()


def _recipe_arguments(words: list[str]) -> tuple[list[str], list[str]]:
    """The words for the parser, and those that are arguments of a recipe with their values.

    argparse does not know the latter and would take the first value for the name of the recipe.
    """
    others: list[str] = []
    given: list[str] = []
    rest = list(words)
    while rest:
        word = rest.pop(0)
        name, equals, _ = word.partition("=")
        if not (name.startswith("--") and ("." in name or name in SECTIONS)):
            others.append(word)
            continue
        given.append(word)
        if not equals and rest and not rest[0].startswith("--"):
            given.append(rest.pop(0))
    return others, given


def _hinted(rest: list[str], options: set[str]) -> list[str]:
    """Refuse a misspelt option here, where the options are known; dotted keys are for the recipe to check."""
    import difflib

    for word in rest:
        name = word.partition("=")[0]
        if name.startswith("--") and "." not in name and name not in SECTIONS:
            near = difflib.get_close_matches(name, sorted(options | SECTIONS), n=1, cutoff=0.5)
            hint = f"; did you mean {near[0]}?" if near else "."
            raise RecipeError(
                f"unknown option {name}{hint} Options: {', '.join(sorted(options))}. Arguments of a recipe have dots, "
                "as in --model.lr, except --seed and --threads."
            )
    return rest


def _version() -> str:
    from importlib import metadata

    return f"spiketide {metadata.version('spiketide')}"


def _listen() -> None:
    """Progress goes to stderr, so that stdout holds results only."""
    if not any(isinstance(handler, _Stderr) for handler in log.handlers):
        handler = _Stderr()
        handler.setFormatter(logging.Formatter("%(message)s"))
        log.addHandler(handler)
        log.setLevel(logging.INFO)


class _Stderr(logging.Handler):
    """Lines above the progress bar, on the stderr of the moment (tests and notebooks replace it)."""

    def emit(self, record: logging.LogRecord) -> None:
        bars = sys.modules.get("tqdm")  # only a progress bar imports it
        if bars is not None:
            bars.tqdm.write(self.format(record), file=sys.stderr)
        else:
            _complain(self.format(record))


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def _complain(text: str) -> None:
    sys.stderr.write(text + "\n")
    sys.stderr.flush()


if __name__ == "__main__":
    sys.exit(main())
