"""The page: complete, well formed, closed to the outside, safe against its own contents, written whole."""

import hashlib
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spiketide.errors import RunError
from spiketide.report import (
    Constants,
    ReportData,
    Row,
    SampleTrace,
    Strip,
    html,
    plots,
    render_report,
    write_report,
)
from spiketide.report.data import SECTIONS
from spiketide.segments import Onsets
from spiketide.synapses import SynapticDelay, delay_statistics

VOID = {"meta", "link", "br", "hr", "img", "input"}


class Page(HTMLParser):
    """A strict reader: every tag must be closed in order; collects what the tests ask about."""

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.open, self.tags, self.attributes, self.texts = [], [], [], []
        self.feed(text)
        self.close()
        assert self.open == [], f"left open: {self.open}"

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes.append((tag, dict(attrs)))
        assert len(dict(attrs)) == len(attrs), f"an attribute twice in {tag}"
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        self.open.pop()

    def handle_endtag(self, tag):
        assert self.open and self.open[-1] == tag, f"</{tag}> closes {self.open[-3:]}"
        self.open.pop()

    def handle_data(self, data):
        self.texts.append(data)

    @property
    def text(self):
        return " ".join("".join(self.texts).split())

    def values(self, name):
        return [attrs[name] for _, attrs in self.attributes if name in attrs]


@pytest.fixture(scope="module")
def page(digits_run):
    return Page(render_report(digits_run))


def section(text, key):
    return re.search(rf'<section id="{key}".*?</section>', text, re.S)[0]


def test_all_sections_stand_in_order(page):
    ids = [attrs["id"] for tag, attrs in page.attributes if tag == "section"]
    always = tuple(key for key in html.TITLES if key not in html.OPTIONAL)
    assert tuple(ids) == SECTIONS == always == tuple(html.ABSENT)


def test_the_digits_report_has_its_figures_and_numbers(digits_run, page):
    text = render_report(digits_run)
    count = {key: section(text, key).count("<figure") for key in SECTIONS}
    assert count == {
        "summary": 0,
        "curves": 3,
        "confusion": 2,
        "samples": 4,
        "firing": 1,
        "diagnosis": 0,
        "environment": 0,
    }
    assert 0.7 < digits_run.accuracy < 1
    assert f"{100 * digits_run.accuracy:.1f}\u202f% of the test samples are right" in "".join(page.texts)
    assert "✓ reproduced Claim: 96 ± 1, Somebody et al. 2020, Table 2." in page.text
    assert "not measured" in section(text, "summary") and "61,440" in section(text, "summary")
    assert "spiketide train digits/latency_lif --seed 3" in section(text, "environment")
    assert "Marked: epoch 3, the first of highest validation accuracy." in section(text, "curves")
    assert text.count("✗ wrong") == 1 and text.count("✓ right") == 3


def test_every_picture_is_described_in_words(page):
    drawn = [attrs for tag, attrs in page.attributes if tag == "svg"]
    assert len(drawn) == page.tags.count("figure") == page.tags.count("figcaption") == 10
    assert all(attrs["role"] == "img" and len(attrs["aria-label"]) > 15 for attrs in drawn)


def test_ids_are_unique_and_links_lead_somewhere(page):
    ids = page.values("id")
    assert len(ids) == len(set(ids))
    inner = [href[1:] for href in page.values("href") if href.startswith("#")]
    masks = [value[5:-1] for value in page.values("mask")]
    assert set(inner + masks + page.values("aria-labelledby")) <= set(ids)
    assert len(inner) == len(SECTIONS)


def closed_to_the_outside(text):
    page = Page(text)
    assert not {"script", "img", "iframe", "object", "embed", "form"} & set(page.tags)
    for name in ("href", "src", "xlink:href", "srcset", "action", "data", "poster"):
        assert all(value.startswith(("#", "data:")) for value in page.values(name)), name
    style = re.search("<style>(.*?)</style>", text, re.S)[1]
    assert "url(" not in style and "@import" not in style
    assert all("url(" not in value for value in page.values("style"))
    assert not any(name.startswith("on") for _, attrs in page.attributes for name in attrs)
    policy = [a["content"] for t, a in page.attributes if t == "meta" and a.get("http-equiv")]
    assert policy == ["default-src 'none'; style-src 'unsafe-inline'; img-src data:"]
    return page


def test_nothing_is_fetched(digits_run):
    closed_to_the_outside(render_report(digits_run))


def hostile(text):
    return ReportData(
        title=text,
        recipe=text,
        unit=text,
        summary=[Row(text, text, text)],
        curves={text: [(0, 1.0, 2.0), (1, 0.5, 1.0)]},
        confusion=[[1, 2], [3, 4]],
        class_names=[text, "b"],
        samples=[
            SampleTrace(
                label=0,
                prediction=1,
                input=np.eye(3),
                hidden={text: np.eye(3)},
                membrane={text: np.eye(3)},
                threshold={text: 1.0},
                adaptation={text: np.eye(3)},
                scores=np.ones((3, 2)),
            ),
            SampleTrace(label=None, prediction=None, scores=np.ones((3, 2))),
        ],
        strips=[Strip([0, 1, -1], [0, 0, 1], np.eye(3), title=text, step_ms=4.0, channels=[text] * 3)],
        over_time={text: [0.5, 1.0]},
        onsets={text: Onsets(3, 2, 1)},
        onset_tolerance=text,
        constants={text: Constants([1.0], [2.0], text)},
        firing={text: np.ones(3)},
        delays={text: delay_statistics(SynapticDelay(3, 2, 4))[""]},
        claim={"paper": text, "value": text, "verdict": text, text: text},
        environment={"versions": {text: [text]}, "command": text, text: text},
        diagnosis=[text],
        missing={"summary": text},
    )


EVIL = [
    '"><script>alert(1)</script>',
    "</title></style></svg><img src=x onerror=alert(1)>",
    "' onload='alert(1)",
    "]]><!-- <b>",
    "\x00\x1b\ud83d&amp;&#60;",
    "http://example.org/x.js",
]


@pytest.mark.parametrize("text", EVIL)
def test_text_of_the_user_stays_text(text):
    plain = closed_to_the_outside(render_report(hostile("plain")))
    evil = closed_to_the_outside(render_report(hostile(text)))
    assert evil.tags == plain.tags


def test_the_strict_reader_would_notice_an_injection():
    text = render_report(hostile("plain")).replace("<h1>plain", "<h1><script>alert(1)</script>")
    with pytest.raises(AssertionError):
        closed_to_the_outside(text)
    with pytest.raises(AssertionError):
        Page("<p><b></p></b>")


@settings(max_examples=10, deadline=None)
@given(st.text(min_size=1, max_size=30).filter(str.strip))
def test_any_text_gives_a_well_formed_page(text):
    closed_to_the_outside(render_report(hostile(text)))


def test_counts_have_separators_and_seeds_have_none():
    data = ReportData(
        title="run",
        summary=[Row("operations", 61440), Row("ratio", 0.123456), Row("done", True)],
        environment={"seed": 12345, "compiled": False},
    )
    text = render_report(data)
    assert "<td>61,440</td>" in text and "<td>0.1235</td>" in text and "<td>yes</td>" in text
    assert "<td>12345</td>" in text and "<td>no</td>" in text


def test_missing_parts_say_why():
    empty = Page(render_report(ReportData(title="run")))
    assert empty.text.count("Not shown: ") == len(SECTIONS)
    for reason in html.ABSENT.values():
        assert reason in empty.text
    assert empty.text.count("not recorded") == 6
    assert "No claim to compare with" in empty.text and "No test result" in empty.text
    told = render_report(ReportData(title="run", missing={"curves": "killed in its first epoch."}))
    assert "Not shown: killed in its first epoch." in told and html.ABSENT["curves"] not in told


def test_partly_missing_parts_say_so_too():
    data = ReportData(
        title="run",
        curves={"loss": [], "rate": [(0, 1.0, None)]},
        confusion=[[4, 0], [1, 5]],
        samples=[
            SampleTrace(label=0, prediction=0, input=np.eye(4)),
            SampleTrace(label=1, prediction=1, input=np.eye(4), lengths=0),
            SampleTrace(label=1, prediction=1),
        ],
        firing={"dead": np.array([]), "lif": np.array([0.5])},
        diagnosis=[],
    )
    text = Page(render_report(data)).text
    assert "No epoch recorded for: loss." in text
    assert "No best epoch is marked" in text
    assert "Not recorded: hidden spikes, membrane potential, score over time." in text
    assert "Not shown: the sample has no valid step." in text
    assert "Not shown: nothing was recorded." in text
    assert "none of the 1 wrong ones of the test set is here" in text
    assert "Without a neuron: dead." in text
    assert (
        "diagnose found nothing wrong on a batch. It speaks up when more than 50% of a layer’s neurons"
        in text
    )


@pytest.mark.parametrize(
    ("verdict", "tag"),
    [
        (True, '<span class="tag yes">✓ reproduced</span>'),
        (np.False_, '<span class="tag no">✗ not reproduced</span>'),
        ("reproduced", '<span class="tag yes">✓ reproduced</span>'),
        ("one seed only", '<span class="tag plain">one seed only</span>'),
        (None, '<span class="tag">no verdict</span>'),
    ],
)
def test_verdicts(verdict, tag):
    data = ReportData(title="run", claim={"value": 0.9, "verdict": verdict})
    text = render_report(data)
    assert tag in text and "Claim: 0.9, no tolerance given, an unnamed paper." in text


def test_best_epoch_is_given_or_derived():
    loss, accuracy = [(1, 1.0, 0.9), (2, 0.5, 0.4), (3, 0.4, 0.6)], [(1, 0.1, 0.2), (2, 0.2, 0.1)]
    find = html._best_epoch
    assert find(ReportData(title="r", curves={"loss": loss}))[0] == 2
    assert find(ReportData(title="r", curves={"loss": loss, "accuracy": accuracy}))[0] == 1
    assert find(ReportData(title="r", curves={"loss": loss}, best_epoch=3))[0] == 3
    assert find(ReportData(title="r", curves={"loss": [(1, 1.0, float("nan"))]}))[0] is None


@pytest.mark.parametrize("classes", [2, 35])
@pytest.mark.parametrize(("steps", "neurons"), [(1, 1), (1, 30), (50, 1), (2, 2)])
def test_smallest_and_odd_sizes(classes, steps, neurons):
    rng = np.random.default_rng(0)
    spikes = (rng.random((steps, neurons)) < 0.5).astype(float)
    sample = SampleTrace(
        label=0,
        prediction=classes - 1,
        input=spikes,
        hidden={"lif": spikes},
        membrane={"lif": rng.normal(size=(steps, 1))},
        threshold={"lif": 1.0},
        neurons={"lif": [0]},
        scores=rng.normal(size=(steps, classes)),
    )
    data = ReportData(
        title="run",
        curves={"loss": [(0, 1.0, 1.0)]},
        confusion=np.eye(classes, dtype=int),
        samples=[sample],
        firing={"lif": spikes.mean(0)},
    )
    text = render_report(data)
    closed_to_the_outside(text)
    assert "nan" not in re.sub("<style>.*?</style>", "", text, flags=re.S)
    assert text.count('<path class="other"') + text.count('class="other dot"') == classes - 2


def test_a_large_run_stays_small_and_keeps_a_wrong_sample():
    rng = np.random.default_rng(0)
    steps = 600

    def sample(right):
        layers = {f"lif{i}": (rng.random((steps, 700)) < 0.2).astype(float) for i in range(5)}
        return SampleTrace(
            label=0,
            prediction=0 if right else 1,
            input=rng.random((steps, 400)),
            hidden=layers,
            membrane={name: rng.normal(size=(steps, 6)) for name in layers},
            scores=rng.normal(size=(steps, 35)),
        )

    kept = [sample(True) for _ in range(2)] + [sample(False)]
    data = ReportData(
        title="large",
        curves={"loss": [(e, rng.random(), rng.random()) for e in range(5000)]},
        confusion=rng.integers(0, 90, (35, 35)),
        samples=[kept[i % 2] for i in range(11)] + [kept[2]],
        firing={f"lif{i}": rng.random(700) for i in range(5)},
    )
    text = render_report(data)
    assert len(text.encode()) < html.SIZE_LIMIT
    page = closed_to_the_outside(text)
    assert page.tags.count("article") < 12
    assert f"{12 - page.tags.count('article')} of 12 samples were left out" in page.text
    assert "Sample 12: 0, taken for 1" in page.text
    assert "2 more traces are not drawn" in page.text and "Spikes not drawn: lif4." in page.text
    assert len(page.tags) < 8000


def test_the_digits_report_is_small(digits_run):
    assert len(render_report(digits_run).encode()) < 150_000


BUILD = """
import numpy as np
from spiketide.report import ReportData, SampleTrace, render_report
rng = np.random.default_rng(5)
sample = SampleTrace(label=0, prediction=2, input=rng.random((40, 9)), scores=rng.random((40, 3)),
                     hidden={"a": rng.random((40, 99)) < 0.9}, membrane={"a": rng.normal(size=(40, 2))})
curves = {"loss": [(0, 1, None)]}
text = render_report(ReportData(title="same", samples=[sample], firing={"a": rng.random(9)}, curves=curves))
"""

PROCESS = """
import hashlib, sys
import spiketide.report
heavy = {"matplotlib", "PIL", "lightning", "sklearn", "scipy"} & set(sys.modules)
assert not heavy, heavy
exec(sys.argv[1])
assert "matplotlib.pyplot" not in sys.modules
print(hashlib.sha256(text.encode()).hexdigest())
"""


def test_the_same_data_give_the_same_bytes_in_another_process_and_importing_is_light():
    environment = {**os.environ, "PYTHONHASHSEED": "1"}
    command = [sys.executable, "-c", PROCESS, BUILD]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    built = {}
    exec(BUILD, built)
    assert done.stdout.strip() == hashlib.sha256(built["text"].encode()).hexdigest()


def test_the_same_data_give_the_same_file(digits_run, tmp_path):
    first, second = (
        write_report(digits_run, tmp_path / "a.html"),
        write_report(digits_run, tmp_path / "b.html"),
    )
    assert first.read_bytes() == second.read_bytes()


def test_write_makes_folders_and_returns_the_path(tmp_path):
    path = write_report(ReportData(title="run – ü"), str(tmp_path / "new" / "deep" / "report.html"))
    assert path == tmp_path / "new" / "deep" / "report.html"
    assert "<h1>run – ü</h1>" in path.read_text(encoding="utf-8")
    assert [p.name for p in path.parent.iterdir()] == ["report.html"]


@pytest.mark.parametrize(
    ("where", "error", "raised"),
    [
        ("replace", OSError(28, "No space left on device"), RunError),
        ("fsync", OSError(28, "No space left on device"), RunError),
        ("fsync", KeyboardInterrupt(), KeyboardInterrupt),
    ],
)
def test_a_failure_in_the_middle_leaves_the_old_report(tmp_path, monkeypatch, where, error, raised):
    path = write_report(ReportData(title="old"), tmp_path / "report.html")
    before = path.read_bytes()

    def fail(*arguments):
        raise error

    monkeypatch.setattr(html.os, where, fail)
    with pytest.raises(raised):
        write_report(ReportData(title="new"), path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_an_error_while_drawing_leaves_the_old_report(tmp_path, monkeypatch):
    path = write_report(ReportData(title="old"), tmp_path / "report.html")
    before = path.read_bytes()

    def fail(*arguments):
        raise ZeroDivisionError

    monkeypatch.setattr(plots, "firing_histogram", fail)
    with pytest.raises(ZeroDivisionError):
        write_report(ReportData(title="new", firing={"lif": np.ones(2)}), path)
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


def test_paths_that_cannot_be_written_are_refused(tmp_path):
    with pytest.raises(RunError, match="is a folder"):
        write_report(ReportData(title="run"), tmp_path)
    file = tmp_path / "file"
    file.write_text("kept")
    with pytest.raises(RunError, match="expected to write the report to"):
        write_report(ReportData(title="run"), file / "report.html")
    assert file.read_text() == "kept" and list(tmp_path.iterdir()) == [file]


def luminance(colour):
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(a, b):
    high, low = sorted((luminance(a), luminance(b)), reverse=True)
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("scheme", [0, 1])
def test_both_colour_schemes_have_enough_contrast(scheme):
    block = re.findall(r":root\{([^}]*)\}", html.STYLE)[scheme]
    colour = dict(re.findall(r"--(\w+):(#\w{6})", block))
    for ground in ("page", "pane"):
        for name in ("ink", "soft", "first", "second"):
            assert contrast(colour[name], colour[ground]) >= 4.5, (name, ground)
        assert contrast(colour["other"], colour[ground]) >= 2.2
    for name in ("first", "second"):
        assert contrast(colour["on"], colour[name]) >= 4.5


def test_the_reference_page_names_every_field():
    reference = Path(__file__).parents[2] / "docs" / "reference" / "report.md"
    text = reference.read_text(encoding="utf-8")
    for owner in (ReportData, SampleTrace, Strip, Constants):
        for name in owner.__dataclass_fields__:
            assert f"`{name}`" in text, f"{owner.__name__}.{name} is not in docs/reference/report.md"
