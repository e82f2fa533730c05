"""Float bits in a real browser, against torch's own conversions, bit patterns and `nextafter`."""

from __future__ import annotations

import math

import pytest
import torch

from rlhf_lib.course.widgets.floats import LINES, digits, float_bits, pattern_of, stored

from .contrast import too_faint

NUMBERS = {
    "log ratio": 5.65625, "ratio": 286.0, "ratio x loss scale": 286.0 * 2**16, "a third": 1 / 3, "zero": 0.0,
    "a small gradient": 3e-8, "lost": -1e-9, "below normal": -2.0e-5, "half way, to even": 2049.0, "edge": 65520.0,
    "just below": 65519.0, "infinite": math.inf, "not a number": math.nan, "<b>&amp;\n🙂": -0.1,
}  # fmt: skip
CELLS = [
    "from rlhf_lib.course.widgets import float_bits\nfrom tests.browser.test_floats import NUMBERS",
    "bits = float_bits(NUMBERS)\nbits",
]
FORMATS = ("float32", "bfloat16", "float16")


@pytest.fixture(scope="module")
def notebook(open_notebook):
    return open_notebook("floats", *CELLS)


@pytest.fixture
def widget(notebook):
    widget = notebook.widget("Float bits")
    choose(notebook, widget, "float16", 0)
    return widget


def choose(notebook, widget, format: str, place: int, value: float | None = None) -> float:
    value = list(NUMBERS.values())[place] if value is None else value
    value = float(torch.tensor(value))
    said = value if abs(value) < 2**53 else str(value).replace("inf", "Infinity").replace("nan", "NaN")
    notebook.set_view(widget, "bits", dict(format=format, chosen=place, value=said, pattern=""))
    return value


def shown_bits(widget) -> str:
    return "".join(widget.locator("td.floats-bit").all_inner_texts())


def columns(widget) -> list[list[str]]:
    rows = widget.locator(".floats-formats tr")
    texts = [rows.nth(i).locator("td").all_inner_texts() for i in range(1, rows.count())]
    return [list(column) for column in zip(*texts, strict=True)]


def assert_shows(widget, value: float, format: str) -> None:
    assert shown_bits(widget) == pattern_of(value, format)
    assert columns(widget) == [[line(value, other) for line in LINES.values()] for other in FORMATS]


@pytest.mark.parametrize("format", FORMATS)
def test_every_number_in_every_format(notebook, widget, format):
    """Rejects a cut instead of rounding, ties that go up, a wrong bias, subnormals that are lost or normalised,
    overflow at another number than 65,520, and a NaN or infinity that breaks the page.
    """
    for place in range(len(NUMBERS)):
        value = choose(notebook, widget, format, place)
        assert_shows(widget, value, format)
        said = widget.locator(".floats-about").inner_text()
        if math.isfinite(value) and math.isinf(stored(value, format)):
            assert said.startswith("Overflow") and digits(torch.finfo(getattr(torch, format)).max) in said
        elif value and stored(value, format) == 0:
            assert said.startswith("Underflow")
        else:
            assert f"The bits say {digits(stored(value, format))} " in said


def test_random_bits_in_both_directions(notebook, widget):
    """Rejects a decoder or encoder that is right on handsome numbers only."""
    generator = torch.Generator().manual_seed(9)
    raw = torch.randint(-(2**31), 2**31 - 1, (40,), generator=generator, dtype=torch.int64).to(torch.int32)
    for number in raw.view(torch.float32).tolist():
        for format in FORMATS:
            if math.isfinite(number):
                choose(notebook, widget, format, len(NUMBERS), number)
                assert_shows(widget, number, format)


@pytest.mark.parametrize("format", FORMATS)
def test_each_bit_flips_by_mouse(notebook, widget, format):
    """Rejects a click that flips another bit, and a value that is not the one of the bits."""
    kind = torch.int32 if format == "float32" else torch.int16
    for place in range(32 if format == "float32" else 16):
        value = choose(notebook, widget, format, 1)
        bits = list(pattern_of(value, format))
        bits[place] = "10"[int(bits[place])]
        widget.locator("td.floats-bit").nth(place).click()
        pattern = "".join(bits)
        assert shown_bits(widget) == pattern
        whole = int(pattern, 2)
        whole -= 2 ** len(bits) if bits[0] == "1" else 0
        wanted = torch.tensor(whole, dtype=kind).view(getattr(torch, format)).item()
        assert f"The bits say {digits(wanted)} " in widget.locator(".floats-about").inner_text()


def test_what_a_number_cannot_say(notebook, widget):
    """Rejects a NaN whose other bits do not stay where they were put, and a zero that loses its sign."""
    choose(notebook, widget, "float16", 11)  # infinity
    cells = widget.locator("td.floats-bit")
    for place in (15, 9):
        cells.nth(place).click()
    assert shown_bits(widget) == "0111110001000001"
    assert "NaN" in widget.locator(".floats-about").inner_text()
    cells.nth(9).click()
    cells.nth(15).click()
    assert shown_bits(widget) == "0111110000000000"
    choose(notebook, widget, "float16", 4)  # zero
    cells.first.click()
    assert shown_bits(widget) == "1" + 15 * "0"
    notebook.wait_for_python("print(bits.view['pattern'])", "1" + 15 * "0")


def test_by_keyboard_alone(notebook, widget):
    """Rejects bits that only a mouse can flip, arrows that move the notebook's cell, and keys that flip two."""
    keyboard = notebook.page.keyboard
    widget.get_by_role("radio", name="float16", exact=True).focus()
    keyboard.press("ArrowLeft")
    assert shown_bits(widget) == pattern_of(5.65625, "bfloat16")
    widget.locator("td.floats-bit").first.focus()
    keyboard.press("ArrowRight")
    keyboard.press("ArrowRight")
    keyboard.press("Space")
    keyboard.press("End")
    keyboard.press("Enter")
    bits = list(pattern_of(5.65625, "bfloat16"))
    for place in (2, 15):
        bits[place] = "10"[int(bits[place])]
    assert shown_bits(widget) == "".join(bits)
    focused = notebook.page.evaluate("document.activeElement.getAttribute('aria-label')")
    assert focused == f"fraction, bit 7 of 7: {bits[15]}"
    widget.get_by_role("combobox", name="number").focus()
    keyboard.press("Home")
    notebook.wait_for_python("print(bits.view['chosen'], bits.view['value'])", "0 5.65625")


def test_buttons_step_and_scale(notebook, widget):
    """Rejects a neighbour that is not torch's `nextafter`, across zero too, and a doubling that misses the overflow."""
    press = {name: widget.get_by_role("button", name=name) for name in ("next smaller", "next larger", "× 2", "÷ 2")}
    ends = torch.tensor([-torch.inf, torch.inf], dtype=torch.float16)
    for place in (0, 4, 5, 10):
        for name, end in zip(("next smaller", "next larger"), ends, strict=True):
            value = choose(notebook, widget, "float16", place)
            press[name].click()
            wanted = torch.nextafter(torch.tensor(value).half(), end).item()
            assert f"The bits say {digits(wanted)} " in widget.locator(".floats-about").inner_text()
    choose(notebook, widget, "float16", 1)
    for _ in range(8):  # 286 * 2^8 = 73,216
        press["× 2"].click()
    assert widget.locator(".floats-about").inner_text().startswith("Overflow: 73216 ")
    notebook.wait_for_python("print(bits.view['value'])", "73216")
    choose(notebook, widget, "float16", 11)
    assert press["next larger"].get_attribute("aria-disabled") == "true"
    press["next larger"].click(force=True)
    assert shown_bits(widget) == pattern_of(math.inf, "float16")


def test_names_are_text(widget):
    """Rejects a name that becomes markup."""
    assert "<b>&amp;\n🙂" in widget.locator("option").all_text_contents()


def test_another_format_keeps_the_number(notebook, widget):
    """Rejects a number that was rounded once and stays so: the source is what is shown in each format."""
    choose(notebook, widget, "float16", 3)
    for format in ("bfloat16", "float32", "float16"):
        widget.get_by_role("radio", name=format, exact=True).check()
        assert_shows(widget, float(torch.tensor(1 / 3)), format)


def test_without_a_front_end():
    """Rejects a static form without the bits or without what becomes of the number, and arguments that show nothing."""
    text = float_bits({"ratio": 70000.0}).static_html()
    assert "<td>11111</td><td>0000000000</td>" in text and "<td>overflow</td>" in text
    for bad in (lambda: float_bits({}), lambda: float_bits({"x": 1.0}, format="float8")):
        with pytest.raises(ValueError):
            bad()


@pytest.mark.parametrize("theme", ["Light", "Dark"])
def test_legible(notebook, widget, theme):
    """Rejects text that a theme makes faint, what is lost included."""
    choose(notebook, widget, "float16", 2)
    notebook.theme(theme)
    assert too_faint(widget) == []
    notebook.picture(widget, f"floats_{theme.lower()}")
    notebook.theme("Light")
