"""What an operation costs: named price models, every number with its citation.

Nothing here was measured on a chip by us. A price list says what single operations cost in one technology; an energy
computed from it is an estimate of arithmetic (and, with Lemaire et al., of on-chip memory), not of a device.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType

from ..errors import ParameterError, unknown

HOROWITZ = "M. Horowitz, Computing's energy problem (and what we can do about it), ISSCC 2014, table for 45 nm at 0.9 V"
LEMAIRE = (
    "E. Lemaire et al., An analytical estimation of spiking neural networks energy efficiency, ICONIP 2022, "
    "arXiv 2210.13107"
)
SUBTRACTION = "a comparison is a subtraction, and priced as one (ours)"


@dataclass(frozen=True)
class Costs:
    """Prices of operations in picojoules.

    ``mac = mul + add`` and ``ac = add``, as everywhere in this literature.

    Example:
        >>> from spiketide.energy import costs
        >>> prices = costs("horowitz-fp32")
        >>> round(prices.mac, 3), prices.ac
        (4.6, 0.9)

    Args:
        name: by which :func:`costs` finds it.
        about: what it prices and what not, in one sentence.
        add: one addition (pJ).
        mul: one multiplication (pJ).
        sources: number -> where it stands.
        sram: (bytes, pJ for one access) of memories of different sizes; empty: memory is not priced.
        addressing: price the additions and multiplications that find an address.
        word: bytes of a weight or state.
    """

    name: str
    about: str
    add: float
    mul: float
    sources: MappingProxyType[str, str]
    sram: tuple[tuple[int, float], ...] = ()
    addressing: bool = False
    word: int = 4

    @property
    def mac(self) -> float:
        """A multiplication and an addition (pJ)."""
        return self.mul + self.add

    @property
    def ac(self) -> float:
        """An addition (pJ)."""
        return self.add

    def access(self, size: float) -> float:
        """Energy of one read or write in a memory of ``size`` bytes (pJ); 0 where memory is not priced.

        Linear between the sizes of the table. Below the smallest a memory costs what the smallest does, above the
        largest the last slope goes on (both ours: the table does not say).

        Example:
            >>> from spiketide.energy import costs
            >>> [costs("lemaire").access(size) for size in (100, 8192, 20480, 32768, 2**20)]
            [10.0, 10.0, 15.0, 20.0, 100.0]
        """
        if not self.sram:
            return 0.0
        (low, cost), *rest = self.sram
        if size <= low:
            return cost
        slope = 0.0
        for high, dearer in rest:
            slope = (dearer - cost) / (high - low)
            if size <= high:
                return cost + slope * (size - low)
            low, cost = high, dearer
        return cost + slope * (size - low)


_FP32 = MappingProxyType(
    {"add 0.9": HOROWITZ, "mul 3.7": HOROWITZ, "mac 4.6 = mul + add": HOROWITZ, "comparison": SUBTRACTION}
)
_INT32 = MappingProxyType(
    {"add 0.1": HOROWITZ, "mul 3.1": HOROWITZ, "mac 3.2 = mul + add": HOROWITZ, "comparison": SUBTRACTION}
)
COSTS: dict[str, Costs] = {
    model.name: model
    for model in (
        Costs(
            name="horowitz-fp32",
            about="arithmetic alone, 32-bit floating point, 45 nm; memory and communication cost nothing here",
            add=0.9,
            mul=3.7,
            sources=_FP32,
        ),
        Costs(
            name="horowitz-int32",
            about="arithmetic alone, 32-bit integers, 45 nm; memory and communication cost nothing here",
            add=0.1,
            mul=3.1,
            sources=_INT32,
        ),
        Costs(
            name="lemaire",
            about="32-bit integer arithmetic, every access to on-chip SRAM by the size of the memory, and addressing, 45 nm",
            add=0.1,
            mul=3.1,
            sources=MappingProxyType(
                {
                    **_INT32,
                    "SRAM 8 KB 10 pJ, 32 KB 20 pJ, 1 MB 100 pJ (64-bit access)": HOROWITZ,
                    "operations, memory accesses and addressing added up": LEMAIRE,
                }
            ),
            sram=((8 * 1024, 10.0), (32 * 1024, 20.0), (1024 * 1024, 100.0)),
            addressing=True,
        ),
    )
}
"""Name -> price model."""


def costs(name: str) -> Costs:
    """A price model by its name.

    ============== ========================================================================================
    horowitz-fp32  arithmetic alone: addition 0.9, multiplication 3.7, so MAC 4.6 and AC 0.9 pJ
    horowitz-int32 arithmetic alone: addition 0.1, multiplication 3.1, so MAC 3.2 and AC 0.1 pJ
    lemaire        int32, and every memory access, and addressing (Lemaire et al. 2022)
    ============== ========================================================================================

    Example:
        >>> from spiketide.energy import costs
        >>> round(costs("horowitz-int32").mac, 3)
        3.2

    Raises:
        ParameterError: no such model.

    Reference: Horowitz, ISSCC 2014; Lemaire et al. 2022. Certain: the prices of additions, multiplications and the three
        SRAM sizes, and that Lemaire et al. add operations, memory accesses (weights, potentials, inputs, outputs; the price
        growing linearly with the size of the memory) and addressing. Ours: one access moves one word, whatever its width; the
        line goes piecewise through the three points (public code of the authors' group fits one line by least squares, 13 pJ
        for the smallest memory); what lies outside of them; which memory an access goes to (:class:`.meter.LayerCounts`).
    """
    if name not in COSTS:
        raise ParameterError(unknown("price model", name, COSTS))
    return COSTS[name]
