"""The contrast of every text in an element as the browser paints it: WCAG 2's ratio, computed from computed styles."""

from __future__ import annotations

ENOUGH = 4.5

COLOURS = """
(root) => {
  const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
  const rgba = (text) => {  // the browser itself turns color-mix() and names into numbers
    canvas.clearRect(0, 0, 1, 1);
    canvas.fillStyle = text;
    canvas.fillRect(0, 0, 1, 1);
    const [r, g, b, a] = canvas.getImageData(0, 0, 1, 1).data;
    return [r, g, b, a / 255];
  };
  const backs = (element) => {
    const found = [];
    for (let e = element; e; e = e.parentElement) found.push(rgba(getComputedStyle(e).backgroundColor));
    return found;
  };
  return [...root.querySelectorAll("*")].flatMap((element) => {
    const text = [...element.childNodes].filter((n) => n.nodeType === 3).map((n) => n.data).join("").trim();
    const isField = element.matches("select, input[type=number], input[type=text]");
    const style = getComputedStyle(element);
    const hidden = style.visibility === "hidden" || element.getClientRects().length === 0;
    if ((!text && !isField) || hidden) return [];
    return [[text || element.value, rgba(style.color), backs(element)]];
  });
}
"""


def ratio(text: list[float], back: list[float]) -> float:
    """Between 1 and 21, of two opaque colours."""
    lighter, darker = sorted((_luminance(text), _luminance(back)), reverse=True)
    return (lighter + 0.05) / (darker + 0.05)


def too_faint(widget) -> list[str]:
    """The texts in the widget that have less than ENOUGH contrast, with it."""
    found = []
    for text, colour, layers in widget.evaluate(COLOURS):
        back = [255.0, 255.0, 255.0]
        for layer in reversed(layers):
            back = _over(layer, back)
        contrast = ratio(_over(colour, back), back)
        if contrast < ENOUGH:
            found.append(f"{text[:40]!r}: {contrast:.2f}")
    return found


def _over(layer: list[float], back: list[float]) -> list[float]:
    *colour, opacity = layer
    return [opacity * c + (1 - opacity) * b for c, b in zip(colour, back)]


def _luminance(colour: list[float]) -> float:
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in (c / 255 for c in colour)]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
