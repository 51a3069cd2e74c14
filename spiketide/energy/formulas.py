"""Operations of a layer for each time step by the counting of the papers: no network, no data, one line of arithmetic each."""

from __future__ import annotations

import math
from typing import NamedTuple

from ..errors import ParameterError, unknown
from ..synapses.base import positive
from .costs import Costs

KINDS = ("lstm", "gru", "rnn", "lif", "alif", "li")


class PaperCounts(NamedTuple):
    """Multiply-accumulates and accumulates of a layer in one time step."""

    mac: float
    ac: float

    def energy(self, costs: Costs) -> float:
        """``mac E_MAC + ac E_AC`` (pJ); memory is not in these formulas."""
        return self.mac * costs.mac + self.ac * costs.ac


def paper_counts(
    kind: str,
    n_in: int,
    n: int,
    *,
    rate_in: float = 1.0,
    rate_out: float = 0.0,
    graded: bool = False,
    recurrent: bool | None = None,
    scale_input: bool = False,
) -> PaperCounts:
    """Operations of a layer of ``n`` units with ``n_in`` inputs in one time step, as Yin et al. count.

    ========= ======================================== ==================================================
    ``lstm``  MAC 4 (m n + n n) + 17 n
    ``gru``   MAC 3 (m n + n n) + 11 n                 the linear term is ours
    ``rnn``   MAC m n + n n + 4 n                      the linear term is ours
    ``lif``   MAC n                                    AC m n rate_in + (n n + n) rate_out
    ``alif``  MAC 3 n                                  AC m n rate_in + (n n + 2 n) rate_out
    ``li``    MAC n                                    AC m n rate_in
    ========= ======================================== ==================================================

    with m inputs. MAC of a neuron: the decays of membrane and adaptation, and the threshold; AC for each of its spikes: the
    feedback (n n), the reset and, in ALIF, the increment of the adaptation. A graded input moves ``m n`` from AC to MAC.

    Example:
        >>> from spiketide.energy import costs, paper_counts
        >>> lstm = paper_counts("lstm", 4, 36)
        >>> alif = paper_counts("alif", 4, 36, rate_in=0.08, rate_out=0.1)
        >>> lstm.mac, alif.mac, round(alif.ac, 2)
        (6372, 108, 148.32)
        >>> round(lstm.energy(costs("horowitz-fp32")) / alif.energy(costs("horowitz-fp32")), 1)
        46.5

    Args:
        kind: ``"lstm"``, ``"gru"``, ``"rnn"``, ``"lif"``, ``"alif"`` or ``"li"`` (leaky integrator, a read-out).
        n_in: number of inputs.
        n: number of units.
        rate_in: spikes of an input in a step; not used by classical layers, which multiply whatever comes.
        rate_out: spikes of a unit in a step; for ``"lif"`` and ``"alif"``.
        graded: the input is no spikes: every connection multiplies, whatever the rate.
        recurrent: whether the layer feeds back to itself; ``None``: yes, but for ``"li"``. Classical layers always do.
        scale_input: count the multiplication of the input with ``1 - decay`` (``n`` MAC more); else it is folded into the
            weights, as the papers do.

    Raises:
        ParameterError: an unknown kind, sizes below 1, a rate below 0, or feedback of a read-out.

    Reference: the linear terms of LSTM and LIF are those of Zhang et al. 2024 (TC-LIF, tables 2 and 4), who count as Yin,
        Corradi & Bohté 2021 do; ALIF and LI are derived in the same way from Yin's equations. For GRU and RNN the linear
        terms follow from the parts of the LSTM's: 2 n a gate, 4 n a tanh, n a product. What Yin's own table has in the
        linear terms we do not know.
    """
    if kind not in KINDS:
        raise ParameterError(unknown("layer for paper_counts:", kind, KINDS))
    m, n = positive("paper_counts", "n_in", n_in), positive("paper_counts", "n", n)
    for name, rate in (("rate_in", rate_in), ("rate_out", rate_out)):
        if not (math.isfinite(rate) and rate >= 0):
            raise ParameterError(f"paper_counts expected {name} in spikes per step, 0 or more, got {rate!r}.")
    if kind == "li" and recurrent:
        raise ParameterError('paper_counts expected no feedback of a read-out ("li"); leave recurrent away.')
    if kind == "lstm":
        return PaperCounts(4 * (m * n + n * n) + 17 * n, 0)
    if kind == "gru":
        # two gates of 2 n, tanh 4 n, the reset's product n, and (1 - z) g + z h: 2 n
        return PaperCounts(3 * (m * n + n * n) + 11 * n, 0)
    if kind == "rnn":
        return PaperCounts(m * n + n * n + 4 * n, 0)
    feedback = n * n if recurrent in (None, True) and kind != "li" else 0
    own = {"lif": 1, "alif": 2, "li": 0}[kind]
    mac = {"lif": n, "alif": 3 * n, "li": n}[kind] + (n if scale_input else 0)
    ac = (feedback + own * n) * rate_out
    if graded:
        return PaperCounts(mac + m * n, ac)
    return PaperCounts(mac, m * n * rate_in + ac)
