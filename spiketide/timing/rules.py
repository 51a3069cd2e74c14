"""How a wanted displacement of spikes becomes an update of weights and a wanted displacement of the layer before."""

from __future__ import annotations

from ..errors import ParameterError, unknown

TRANSFERS = ("weight", "sign", "share", "exact")
SLOPES = ("constant", "chord", "local", "exact")


class Rule:
    """One layer's learning rule; ``d_j`` is the displacement that neuron ``j`` wants, negative for earlier.

    ::

        w_ji <- w_ji - rate d_j G_j eps(t_j - t_i)              update
        d_i   = sum_j B_ji d_j                                  transfer to the layer before

    where ``G_j`` stands for ``-dt_j/dV`` (``slope``) and ``B_ji`` for ``dt_j/dt_i`` (``transfer``). ``r_j`` is the slope of the
    membrane at the spike, ``a_ji = w_ji eps'(t_j - t_i) / r_j`` the true derivative, and ``u`` the unit of the kernel:

    ============== =============================== ============== =========================================
    ``transfer``   ``B_ji``                        ``slope``      ``G_j``
    ============== =============================== ============== =========================================
    ``"weight"``   ``w_ji``   if ``t_i < t_j``     ``"constant"`` 1
    ``"sign"``     ``sign(w_ji)`` if ``t_i < t_j`` ``"chord"``    ``t_j / (2 u)``: a straight line from the start
    ``"share"``    ``a_ji / sum_j |a_ji|``         ``"local"``    ``1 / (u r_j)``, at most ``slope_limit``
    ``"exact"``    ``a_ji``                        ``"exact"``    ``1 / r_j``, at most ``u slope_limit``
    ============== =============================== ============== =========================================

    With :class:`.psp.Step`, inputs at the very time of the spike take part. With :class:`.psp.FixedSlope` all ``B`` and ``G`` are
    divided by the threshold, and ``G`` is multiplied by the length of the window.

    Args:
        transfer: as above.
        slope: as above.
        normalise: give every sample's displacements of the layer before the same length (2-norm) as those of this layer.
        slope_limit: bound of ``1 / (u r)``, where the membrane only grazes its threshold.

    Raises:
        ParameterError: an unknown word or a limit that is not positive.
    """

    def __init__(
        self,
        *,
        transfer: str = "weight",
        slope: str = "chord",
        normalise: bool = True,
        slope_limit: float = 5.0,
    ):
        if transfer not in TRANSFERS:
            raise ParameterError(unknown("transfer of the rule", transfer, TRANSFERS))
        if slope not in SLOPES:
            raise ParameterError(unknown("slope of the rule", slope, SLOPES))
        if not slope_limit > 0:
            raise ParameterError(f"{type(self).__name__} expected slope_limit above 0, got {slope_limit!r}.")
        self.transfer, self.slope = transfer, slope
        self.normalise, self.slope_limit = bool(normalise), float(slope_limit)

    def __repr__(self) -> str:
        return f"{type(self).__name__}(transfer={self.transfer!r}, slope={self.slope!r}, normalise={self.normalise})"


class STiDi(Rule):
    """Spike-time displacement, not recursive: only displacements travel back, no product of derivatives does.

    Every layer has an error of its own, ``E = 1/2 sum_j (t*_j - t_j)^2`` with the wanted times ``t*_j = t_j + d_j`` held
    fixed, and goes down its gradient with a linear approximation in the place of ``dt/dV``. The table of choices is in
    :class:`Rule`.

    Example:
        >>> from spiketide.timing import STiDi
        >>> STiDi()
        STiDi(transfer='weight', slope='chord', normalise=True)

    Args:
        transfer: ``"weight"``, ``"sign"`` (no multiplications) or ``"share"``.
        slope: ``"constant"``, ``"chord"`` or ``"local"``.
        normalise: give every sample's displacements the same length in all layers.
        slope_limit: for ``"local"`` and ``"share"``.

    Raises:
        ParameterError: an unknown word; ``"exact"`` ones belong to :class:`SpikeProp`.

    Reference:
        Mirsadeghi et al. 2021 (STiDi-BP; Neurocomputing 427) and arXiv:2108.13621. Their constants are not public: transfer
        ``"weight"`` and slope ``"constant"`` are those of S4NN from the same group, ``"chord"`` is our reading of "a linear
        approximation" of the derivative.
    """

    def __init__(
        self,
        *,
        transfer: str = "weight",
        slope: str = "chord",
        normalise: bool = True,
        slope_limit: float = 5.0,
    ):
        if "exact" in (transfer, slope):
            raise ParameterError(
                "STiDi is not recursive: for exact derivatives use SpikeProp(), or Rule(...) for a mixture."
            )
        super().__init__(transfer=transfer, slope=slope, normalise=normalise, slope_limit=slope_limit)


class SpikeProp(Rule):
    """The full chain rule through spike times, for comparison: ``dt_j/dw = -eps / r``, ``dt_j/dt_i = w eps' / r``.

    Exact wherever ``1 / (u r)`` is below ``slope_limit``.

    Example:
        >>> from spiketide.timing import SpikeProp
        >>> SpikeProp()
        SpikeProp(transfer='exact', slope='exact', normalise=False)

    Args:
        slope_limit: bound where the membrane only grazes its threshold.

    Reference:
        S. M. Bohte, J. N. Kok, H. La Poutré, Neurocomputing 48, 2002.
    """

    def __init__(self, *, slope_limit: float = 5.0):
        super().__init__(transfer="exact", slope="exact", normalise=False, slope_limit=slope_limit)
