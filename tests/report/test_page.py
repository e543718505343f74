"""The page: text escaped, pictures inside, nothing from outside."""

import base64
import io
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.image import imread

from cryowgen_jax.report import SummaryRow, figure_png, render_report

ATTACK = '<script>alert("x")</script>'
VOID = {"meta", "img"}


def figure():
    made = Figure(figsize=(2, 1))
    made.subplots().plot([0, 1], [0, 1])
    return made


def render(**changes):
    arguments = {
        "title": "Restoration",
        "summary": [("Method", "langevin"), ("R-hat", 1.0312345, "below 1.05 the chains agree")],
        "warnings": ["The chains disagree."],
        "figures": {"Slices": figure()},
        "settings": {
            "seed": 3,
            "sampler": {"step_size": 0.0123456, "adapt": True},
            "half2": None,
            "tilts": (-60.0, 60.0),
        },
    }
    return render_report(**(arguments | changes))


class Reader(HTMLParser):
    """Collects tags, attributes and text, and checks that tags close in order."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.attributes, self.text, self.open = [], [], [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, *pair) for pair in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if data.strip() and self.open[-1:] != ["style"]:
            self.text.append(data.strip())


def test_everything_is_there_in_order():
    page = Reader(render())
    assert page.open == []
    words = " | ".join(page.text)
    order = [
        words.index(part) for part in ("The chains disagree.", "langevin", "1.031", "below 1.05", "Slices", "Settings")
    ]
    assert order == sorted(order)
    for expected in ("sampler.step_size | 0.01235", "sampler.adapt | yes", "half2 | –", "tilts | -60, 60", "seed | 3"):
        assert expected in words


def test_no_warning_is_said_in_words():
    assert "No automatic check raised a warning" in render(warnings=[])
    assert "No automatic check raised a warning" not in render()
    assert "before you trust" not in render(warnings=[])


@pytest.mark.parametrize(
    "change",
    [
        {"title": ATTACK},
        {"summary": [(ATTACK, ATTACK, ATTACK)]},
        {"summary": [SummaryRow("a", 1, ATTACK)]},
        {"warnings": [ATTACK]},
        {"figures": {ATTACK: figure()}, "captions": {ATTACK: ATTACK}},
        {"figures": {'" onload="alert(1)': figure()}},
        {"settings": {ATTACK: {"inner": ATTACK}}},
        {"settings": {"list": [ATTACK, "a"]}},
    ],
)
def test_text_is_escaped(change):
    page = Reader(render(**change))
    assert "script" not in page.tags
    assert not any(name.startswith("on") for _, name, _ in page.attributes)
    if ATTACK in str(change):
        assert ATTACK in " ".join(page.text)


def test_nothing_is_loaded_from_outside():
    text = render(captions={"Slices": "Bright is dense."})
    page = Reader(text)
    assert not {"link", "script", "iframe", "object", "base"} & set(page.tags)
    sources = [value for _, name, value in page.attributes if name in ("src", "href", "srcset", "data")]
    assert sources
    assert all(value.startswith("data:image/png;base64,") for value in sources)
    assert not re.search(r"url\(|@import|https?:", text)


def test_pictures_decode_as_png():
    page = Reader(render(figures={"a": figure(), "b": figure()}))
    sources = [value for tag, name, value in page.attributes if (tag, name) == ("img", "src")]
    assert len(sources) == 2
    picture = imread(io.BytesIO(base64.b64decode(sources[0].split(",")[1], validate=True)), format="png")
    assert picture.shape == (160, 320, 4)
    assert np.ptp(picture[..., 0]) > 0.5
    assert [value for tag, name, value in page.attributes if (tag, name) == ("img", "alt")] == ["a", "b"]


def test_png_is_reproducible():
    assert figure_png(figure()) == figure_png(figure())
    assert figure_png(figure()).startswith(b"\x89PNG\r\n\x1a\n")


def test_page_can_be_nearly_empty():
    page = Reader(render(summary=[], figures={}, settings={}))
    assert "img" not in page.tags
    assert "Settings" not in page.text
