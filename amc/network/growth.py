"""How the costs of a layer of a user's own kind grow with its widths."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction


@dataclass(frozen=True)
class Growth:
    """``fixed + per_in * in + per_out * out + per_pair * in * out``: between channels there are
    weights, or each has its own.
    """

    fixed: Fraction
    per_in: Fraction
    per_out: Fraction
    per_pair: Fraction

    def at(self, inputs: int, outputs: int) -> int:
        """The cost at these widths."""
        pairs = self.per_pair * inputs * outputs
        return int(self.fixed + self.per_in * inputs + self.per_out * outputs + pairs)

    @classmethod
    def through(
        cls, costs: tuple[int, int, int, int], widths: tuple[int, int], lost: tuple[int, int]
    ) -> Growth:
        """Fitted exactly.

        Args:
            costs: whole; with fewer inputs; with fewer outputs; with both.
            widths: inputs and outputs of the whole.
            lost: how many fewer; 0: always as many.
        """
        whole, inward, outward, both = costs
        (inputs, outputs), (fewer_in, fewer_out) = widths, lost
        pair = Fraction(whole - inward - outward + both, max(1, fewer_in * fewer_out))
        per_in = Fraction(whole - inward, max(1, fewer_in)) - pair * outputs
        per_out = Fraction(whole - outward, max(1, fewer_out)) - pair * inputs
        fixed = whole - per_in * inputs - per_out * outputs - pair * inputs * outputs
        return cls(fixed, per_in, per_out, pair)
