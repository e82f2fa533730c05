"""Names for tensor shapes. The two widths are independent axes on purpose: `alignment` checks that they differ by one.

B rows, `states` tokens of a padded row (T), `actions` choices in it (T-1), V vocabulary, D width. The tests enforce
these annotations with jaxtyping's import hook; at run time they cost nothing.
"""

from jaxtyping import Bool, Float, Int
from torch import Tensor

Tokens = Int[Tensor, "B states"]
PerState = Float[Tensor, "B states"]
PerAction = Float[Tensor, "B actions"]
ActionMask = Bool[Tensor, "B actions"]
PerRow = Float[Tensor, "B"]
RowMask = Bool[Tensor, "B"]
Lengths = Int[Tensor, "B"]
Scalar = Float[Tensor, ""]
