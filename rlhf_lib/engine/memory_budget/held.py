"""What a model holds apart from what it computes."""

from __future__ import annotations


def held_bytes(trainable: int, frozen: int, *, number: int, moments: int) -> dict[str, int]:
    """The bytes of a model's weights, of their gradients, and of what the optimiser keeps for each.

    trainable, frozen  how many weights learn, and how many do not
    number             bytes of one number: 4 in float32, 2 in bfloat16; gradients and moments have that of the weights
    moments            numbers that the optimiser keeps for a weight: 2 of Adam, 0 of plain SGD
    returns            weights, gradients, moments; together the least that a step needs
    """
    return {
        "weights": (trainable + frozen) * number,
        "gradients": trainable * number,
        "moments": trainable * moments * number,
    }
