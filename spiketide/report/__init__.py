"""The report of a run: one self-contained HTML file.

``ReportData`` says what goes in (plain numbers and arrays), ``write_report`` draws it. Nothing here knows a
model or a trainer, and drawing libraries are imported only while a report is written.
"""

from .data import Constants, ReportData, Row, SampleTrace, Strip, choose_samples
from .first_spikes import FirstSpikes, FirstSpikeSample
from .html import render_report, write_report

__all__ = [
    "Constants",
    "FirstSpikeSample",
    "FirstSpikes",
    "ReportData",
    "Row",
    "SampleTrace",
    "Strip",
    "choose_samples",
    "render_report",
    "write_report",
]
