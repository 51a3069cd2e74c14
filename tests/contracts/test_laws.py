"""Every layer of the package keeps the laws; a layer that does not is caught."""

from __future__ import annotations

import ast
import importlib
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import laws
import pytest
import torch
from helpers import interpreted
from torch import Tensor, nn

import spiketide
from spiketide import (
    ALIF,
    IF,
    LIF,
    AdLIF,
    AxonalDelay,
    BalancedResonateFire,
    BatchNorm,
    Bidirectional,
    Checkpointed,
    Conv1d,
    Conv2d,
    CubaLIF,
    DelayedConv2d,
    DendriticDelay,
    Dense,
    Dropout,
    Framewise,
    Lateral,
    Layer,
    LeakyIntegrator,
    Normalized,
    NormalizedLIF,
    NormalizedReadout,
    Recurrent,
    Residual,
    SEAdLIF,
    Sequential,
    StepNeuron,
    Substeps,
    SynapticDelay,
    TemporalConv1d,
    TemporalConv2d,
    TemporalConv3d,
    spike,
)
from spiketide.baselines import GRU, LSTM, RNN
from spiketide.errors import ShapeError
from spiketide.neurons import Neuron
from spiketide.shapes import silence_padding
from spiketide.surrogate import spike_derivative

pytestmark = pytest.mark.usefixtures("poisoned_memory")

STEPS, BATCH = 12, 5


def step(x: Any, v: Any, decay: Any, threshold: Any) -> Any:
    v = decay * v + x
    s = spike(v - threshold)
    return s, v - threshold * s


class Case(NamedTuple):
    """How to build a layer, and the features of its input."""

    build: Callable[[], Layer]
    shape: tuple[int, ...]


def dense(n_in: int, n_out: int, gain: float = 2.0) -> Dense:
    """A Dense layer with larger weights than usual, so that what follows fires."""
    layer = Dense(n_in, n_out)
    with torch.no_grad():
        layer.weight.mul_(gain)
    return layer


NEURON: dict[str, Any] = {"tau_mem": 6.0, "threshold": 0.9}
ADAPTIVE: dict[str, Any] = {"tau_mem": 6.0, "tau_adapt": 20.0, "threshold": 0.1}

CASES: dict[str, Case] = {
    "IF": Case(lambda: IF(7, threshold=1.2), (7,)),
    "LIF": Case(lambda: LIF(7, learn=("tau_mem",), **NEURON), (7,)),
    "LIF/feature map": Case(lambda: LIF((2, 3, 4), **NEURON), (2, 3, 4)),
    "LIF/reference": Case(lambda: LIF(7, engine="reference", **NEURON), (7,)),
    "LIF/checkpoint": Case(lambda: LIF(7, checkpoint=5, **NEURON), (7,)),
    "CubaLIF": Case(lambda: CubaLIF(7, tau_syn=2.0, tau_mem=6.0, threshold=2.0), (7,)),
    "ALIF": Case(lambda: ALIF(7, **ADAPTIVE), (7,)),
    "AdLIF": Case(lambda: AdLIF(7, **ADAPTIVE), (7,)),
    "ALIF/relu": Case(lambda: ALIF(7, output="relu", **ADAPTIVE), (7,)),
    "SEAdLIF": Case(lambda: SEAdLIF(7, threshold=0.1, tau_adapt_range=(20.0, 300.0), gain=20.0), (7,)),
    "BalancedResonateFire": Case(
        lambda: BalancedResonateFire(
            7, delta=0.1, decay_refractory=0.8, omega=7.0, damping=0.5, threshold=0.12
        ),
        (7,),
    ),
    "LeakyIntegrator": Case(lambda: LeakyIntegrator(7, tau_mem=4.0, learn=("tau_mem",)), (7,)),
    "NormalizedLIF": Case(
        lambda: NormalizedLIF(7, decay=0.8, threshold=0.4, learn=("decay", "threshold")), (7,)
    ),
    "NormalizedLIF/feature map, no leak": Case(
        lambda: NormalizedLIF((2, 3, 4), leaky=False, threshold=2.0), (2, 3, 4)
    ),
    "StepNeuron": Case(
        lambda: StepNeuron(
            7, step, states=("v",), constants={"decay": 0.85, "threshold": 0.9}, learn=("decay",)
        ),
        (7,),
    ),
    "Dense": Case(lambda: Dense(7, 4), (7,)),
    "Conv1d": Case(lambda: Conv1d(2, 3, 3, padding=1), (2, 5)),
    "Conv2d": Case(lambda: Conv2d(2, 3, 3, stride=2, padding=1), (2, 5, 4)),
    "TemporalConv1d": Case(lambda: TemporalConv1d(7, 4, 3, dilation=2), (7,)),
    "TemporalConv1d/one tap": Case(lambda: TemporalConv1d(6, 4, 1, groups=2, bias=False), (6,)),
    "TemporalConv2d": Case(lambda: TemporalConv2d(2, 3, (4, 3), dilation=(2, 1), spread=0.5), (2, 5)),
    "TemporalConv2d/even": Case(lambda: TemporalConv2d(2, 4, (2, 2), stride=(1, 2), groups=2), (2, 5)),
    "TemporalConv3d": Case(lambda: TemporalConv3d(2, 3, (3, 3, 2), space_padding=1), (2, 4, 3)),
    "SynapticDelay": Case(lambda: SynapticDelay(7, 4, 6, kernel_count=2), (7,)),
    "SynapticDelay/narrow": Case(lambda: SynapticDelay(7, 4, 6, width=0.23, fan_in=3), (7,)),
    "SynapticDelay/linear": Case(lambda: SynapticDelay(7, 4, 20, interpolation="linear"), (7,)),
    "SynapticDelay/fixed": Case(lambda: SynapticDelay(7, 4, 6, interpolation="none", learn=False), (7,)),
    "AxonalDelay": Case(lambda: AxonalDelay(7, 6), (7,)),
    "AxonalDelay/linear": Case(lambda: AxonalDelay(7, 6, interpolation="linear"), (7,)),
    "DendriticDelay": Case(lambda: DendriticDelay(7, 6, width=0.23), (7,)),
    "DelayedConv2d": Case(lambda: DelayedConv2d(2, 3, 3, 4, padding=1), (2, 5, 4)),
    "LSTM": Case(lambda: LSTM(7, 5), (7,)),
    "GRU": Case(lambda: GRU(7, 5), (7,)),
    "RNN": Case(lambda: RNN(7, 5), (7,)),
    "RNN/no bias": Case(lambda: RNN(7, 5, bias=False), (7,)),
    "BatchNorm": Case(lambda: BatchNorm(7), (7,)),
    "BatchNorm/feature map": Case(lambda: BatchNorm((2, 3, 4)), (2, 3, 4)),
    "Dropout": Case(lambda: Dropout(0.5), (7,)),
    "Framewise": Case(lambda: Framewise(nn.Linear(7, 4)), (7,)),
    "Framewise/pool": Case(lambda: Framewise(nn.MaxPool2d(2)), (2, 4, 4)),
    "Sequential": Case(
        lambda: Sequential(
            dense(7, 9, 4.0), LIF(9, tau_mem=6.0, threshold=0.6), dense(9, 3), LeakyIntegrator(3, tau_mem=4.0)
        ),
        (7,),
    ),
    "Sequential/conv": Case(
        lambda: Sequential(
            Conv2d(1, 3, 3, padding=1),
            LIF((3, 4, 4), tau_mem=6.0, threshold=0.4),
            nn.MaxPool2d(2),
            nn.Flatten(),
        ),
        (1, 4, 4),
    ),
    "Sequential/empty": Case(lambda: Sequential(nn.Identity()), (7,)),
    "Recurrent": Case(lambda: Recurrent(LIF(7, **NEURON), dense(7, 7)), (7,)),
    "Recurrent/ALIF": Case(lambda: Recurrent(ALIF(7, **ADAPTIVE), Dense(7, 7, bias=False)), (7,)),
    "Recurrent/conv": Case(lambda: Recurrent(LIF((2, 5), **NEURON), Conv1d(2, 2, 3, padding=1)), (2, 5)),
    "Recurrent/delays": Case(
        lambda: Recurrent(LIF(7, **NEURON), Sequential(AxonalDelay(7, 4), dense(7, 7))), (7,)
    ),
    "Recurrent/synapse with a state": Case(
        lambda: Recurrent(LIF(7, **NEURON), Sequential(dense(7, 7), LeakyIntegrator(7, tau_mem=3.0))), (7,)
    ),
    "Normalized": Case(
        lambda: Normalized(
            Dense(7, 6, bias=False), NormalizedLIF(6, decay=0.8, threshold=0.3, learn=("decay",))
        ),
        (7,),
    ),
    "Normalized/ALIF behind a convolution": Case(
        lambda: Normalized(
            TemporalConv2d(2, 3, (3, 3)), ALIF((3, 5), tau_mem=6.0, tau_adapt=20.0, threshold=0.1)
        ),
        (2, 5),
    ),
    "Lateral": Case(
        lambda: Lateral(Dense(7, 6, bias=False), NormalizedLIF(6, decay=0.8, threshold=0.3, reset="none")),
        (7,),
    ),
    "Lateral/convolution": Case(
        lambda: Lateral(
            TemporalConv2d(2, 4, (3, 3), dilation=(2, 1), bias=False),
            NormalizedLIF((4, 5), decay=0.7, threshold=0.4, reset="none", learn=("decay", "threshold")),
        ),
        (2, 5),
    ),
    "Lateral/free, LIF": Case(
        lambda: Lateral(
            dense(7, 6),
            LIF(6, tau_mem=6.0, threshold=0.6, reset="none"),
            connections="free",
            normalized=False,
        ),
        (7,),
    ),
    "NormalizedReadout": Case(lambda: NormalizedReadout(Dense(7, 4, bias=False)), (7,)),
    "NormalizedReadout/decay": Case(lambda: NormalizedReadout(Dense(7, 4, bias=False), decay=0.7), (7,)),
    "Bidirectional": Case(lambda: Bidirectional(Recurrent(LIF(7, **NEURON), dense(7, 7))), (7,)),
    "Checkpointed": Case(
        lambda: Checkpointed(
            [
                dense(7, 9, 4.0),
                Recurrent(LIF(9, tau_mem=6.0, threshold=0.6), dense(9, 9)),
                dense(9, 3),
                LeakyIntegrator(3, tau_mem=4.0),
            ],
            chunk=5,
        ),
        (7,),
    ),
    "Substeps": Case(
        lambda: Substeps(Sequential(dense(7, 5, 4.0), LIF(5, tau_mem=6.0, threshold=0.6)), 3), (7,)
    ),
    "Residual": Case(
        lambda: Residual(Sequential(dense(7, 7, 4.0), LIF(7, tau_mem=6.0, threshold=0.6))), (7,)
    ),
}
"""Add a layer here: "ClassName" or "ClassName/variant" -> how to build one and the shape of its features."""

BASES = {"Layer", "Neuron", "Synapse"}
"""Classes to inherit from: abstract, or without the step that makes a neuron."""

FORWARD = ("streaming", "causality", "batch_independence", "purity")
OTHERS = ("lengths", "lengths_streaming", "padding", "state_tree", "float64", "layout", "gradients")


def make(name: str, mode: str) -> tuple[Layer, Tensor]:
    """The layer of a case in a mode, and its input."""
    torch.manual_seed(1)
    layer = CASES[name].build()
    layer.train(mode == "train")
    if isinstance(layer, BatchNorm):
        with torch.no_grad():
            layer.running_mean.uniform_(-0.5, 0.5)
            layer.running_var.uniform_(0.5, 2.0)
    return layer, 0.35 + 0.6 * torch.randn(STEPS, BATCH, *CASES[name].shape)


# ------------------------------------------------------------------------------------------------ every layer is here


def layer_classes() -> dict[str, type[Layer]]:
    """Every class of the package that inherits from Layer.

    The source is read first, and only modules that define one are imported: walking by import alone would load the training
    framework and everything else that the core does without.
    """
    root = Path(spiketide.__file__).parent
    defined = []
    for path in sorted(root.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ClassDef):
                bases = {
                    base.attr if isinstance(base, ast.Attribute) else getattr(base, "id", "")
                    for base in node.bases
                    if not ast.unparse(base).startswith("nn.")  # torch has a Sequential of its own
                }
                module = ".".join(("spiketide", *path.relative_to(root).with_suffix("").parts)).removesuffix(
                    ".__init__"
                )
                defined.append((node.name, bases, module))
    names = {"Layer"}
    while True:
        more = {name for name, bases, _ in defined if bases & names} | names
        if more == names:
            break
        names = more
    found: dict[str, type[Layer]] = {}
    for name, _, module in defined:
        if name in names:
            cls = getattr(importlib.import_module(module), name)
            assert issubclass(cls, Layer), cls
            found[name] = cls
    return found


def concrete() -> dict[str, type[Layer]]:
    return {
        name: cls
        for name, cls in layer_classes().items()
        if name not in BASES and not name.startswith("_") and not inspect.isabstract(cls)
    }


def test_every_layer_of_the_package_is_in_the_battery() -> None:
    found = concrete()
    covered = {name.split("/")[0] for name in CASES}
    missing = sorted(set(found) - covered)
    assert not missing, f"{missing} keep no law yet: add a case for each to CASES in {__file__}"
    assert covered <= set(found), f"{sorted(covered - set(found))} are no layers of the package any more"
    assert len(found) == 35, (
        f"the package has {len(found)} layers; if that is meant, change the count in {__file__}"
    )
    for name, cls in found.items():
        built = {type(CASES[case].build()) for case in CASES if case.split("/")[0] == name}
        assert built == {cls}, f"the cases of {name} build {built}"


def test_exemptions_name_a_law_and_give_a_reason() -> None:
    for name, cls in layer_classes().items():
        for law, reason in cls.exempt.items():
            assert law in FORWARD, f"{name} is exempt from {law!r}, which is no law; laws: {FORWARD}"
            assert len(reason) > 20, f"{name} gives no reason for its exemption from {law}"
    exempt = {name for name, cls in concrete().items() if cls.exempt}
    known = {"BatchNorm", "Dropout", "Bidirectional", "SynapticDelay", "AxonalDelay", "DendriticDelay"}
    assert exempt == known, "an exemption is an event: say so here"


# ------------------------------------------------------------------------------------------------------------ the laws


@pytest.mark.parametrize("name", CASES)
def test_the_fixture_fires(name: str) -> None:
    layer, x = make(name, "eval")
    with interpreted():
        laws.fires(layer, x)


@pytest.mark.parametrize("mode", ["eval", "train"])
@pytest.mark.parametrize("law", FORWARD)
@pytest.mark.parametrize("name", CASES)
def test_law(name: str, law: str, mode: str) -> None:
    layer, x = make(name, mode)
    reason = type(layer).exempt.get(law, "")
    if reason.startswith(
        "large inputs only"
    ):  # small ones keep the law; tests/synapses/test_delay.py has large ones
        reason = ""
    with interpreted():
        if reason and (mode == "train" or not reason.startswith("training mode only")):
            with pytest.raises((AssertionError, ShapeError)):  # an exemption that is not needed is a lie
                getattr(laws, law)(layer, x)
        else:
            getattr(laws, law)(layer, x)


NEEDS = {"lengths": "batch_independence", "lengths_streaming": "streaming", "gradients": "streaming"}
"""Laws about single samples or chunks can be asked only of a layer that keeps these."""


def asked() -> list[tuple[str, str, str]]:
    """Every (case, law, mode) of the other laws, less what an exemption excludes."""
    found = []
    for name, case in CASES.items():
        exempt = type(case.build()).exempt
        for law in OTHERS:
            reason = exempt.get(NEEDS.get(law, ""), "")
            modes = (
                ["eval", "train"]
                if not reason
                else ["eval"]
                if reason.startswith("training mode only")
                else []
            )
            found += [(name, law, mode) for mode in modes]
    return found


@pytest.mark.parametrize(("name", "law", "mode"), asked())
def test_other_law(name: str, law: str, mode: str) -> None:
    layer, x = make(name, mode)
    with interpreted():
        getattr(laws, law)(layer, x)


@pytest.mark.parametrize("name", ["LIF", "Sequential", "Recurrent"])
@pytest.mark.parametrize("law", [*FORWARD, "lengths", "padding", "gradients"])
def test_laws_compiled(name: str, law: str) -> None:
    layer, x = make(name, "eval")
    getattr(laws, law)(layer, x)


@pytest.mark.parametrize("name", CASES)
def test_the_default_device_is_not_that_of_a_layer(name: str) -> None:
    """Layers and tensors stand on the CPU while new tensors would be made elsewhere."""
    layer, x = make(name, "eval")
    wanted, lengths = layer(x)[0], torch.full((BATCH,), STEPS - 1)
    x = x.requires_grad_()
    with torch.device("meta"):
        y, state = layer(x)
        y.sum().backward()
        layer(x.detach(), state, lengths=lengths)
    assert torch.equal(y, wanted) and x.grad is not None


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if isinstance(case.build(), Neuron)])
def test_the_backward_is_the_derivative(name: str) -> None:
    layer, x = make(name, "train")
    with interpreted():
        laws.derivative(layer, x)


# ------------------------------------------------------------------------------------------------ tests of the tests


class Identity(Layer):
    """A good layer, for the bad ones to differ from in one place."""

    def forward(self, x: Tensor, state: Any = None, *, lengths: Tensor | None = None) -> tuple[Tensor, Any]:
        return silence_padding(x * 1.0, lengths), ()


class Remembers(Identity):
    last: Any = None

    def forward(self, x: Tensor, state: Any = None, *, lengths: Tensor | None = None) -> tuple[Tensor, Any]:
        self.last = x.detach()
        return super().forward(x, state, lengths=lengths)


class RemembersInAList(Identity):
    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Tensor] = []

    def forward(self, x: Tensor, state: Any = None, *, lengths: Tensor | None = None) -> tuple[Tensor, Any]:
        self.seen.append(x.detach())
        return super().forward(x, state, lengths=lengths)


class CountsCalls(Identity):
    calls = 0

    def forward(self, x: Tensor, state: Any = None, *, lengths: Tensor | None = None) -> tuple[Tensor, Any]:
        self.calls += 1
        return super().forward(x, state, lengths=lengths)


class WritesABuffer(Identity):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(()), persistent=False)

    def forward(self, x: Tensor, state: Any = None, *, lengths: Tensor | None = None) -> tuple[Tensor, Any]:
        self.mean += x.detach().mean()
        return super().forward(x, state, lengths=lengths)


class WritesItsInput(Identity):
    def forward(self, x: Tensor, state: Any = None, *, lengths: Tensor | None = None) -> tuple[Tensor, Any]:
        y, end = super().forward(x, state, lengths=lengths)
        with torch.no_grad():
            x.data += 1
        return y, end


class WritesItsState(Identity):
    def forward(self, x: Tensor, state: Any = None, *, lengths: Tensor | None = None) -> tuple[Tensor, Any]:
        if state is None:
            return x * 1.0, (x.sum(0),)
        state[0].add_(x.sum(0))
        return x * 1.0, state


class Peeks(Identity):
    def forward(self, x: Tensor, state: Any = None, *, lengths: Tensor | None = None) -> tuple[Tensor, Any]:
        return x + torch.cat([x[1:], x[-1:]]), ()


class PeeksInItsGradient(Identity):
    def forward(self, x: Tensor, state: Any = None, *, lengths: Tensor | None = None) -> tuple[Tensor, Any]:
        mean = x.mean(0, keepdim=True)
        return x + (mean - mean.detach()), ()


class SeesNothing(Identity):
    def forward(self, x: Tensor, state: Any = None, *, lengths: Tensor | None = None) -> tuple[Tensor, Any]:
        return x * 0.0, ()


class MixesBatch(Identity):
    def forward(self, x: Tensor, state: Any = None, *, lengths: Tensor | None = None) -> tuple[Tensor, Any]:
        return x - 0.01 * x.mean(1, keepdim=True), ()


class DependsOnItsPlace(Identity):
    def forward(self, x: Tensor, state: Any = None, *, lengths: Tensor | None = None) -> tuple[Tensor, Any]:
        return x * (1 + torch.arange(x.shape[1]).view(1, -1, *[1] * (x.dim() - 2))), ()


class BeginsAnew(LIF):
    def forward(self, x: Tensor, state: Any = None, **options: Any) -> tuple[Tensor, Any]:
        return super().forward(x, None, **options)


class SkipsEmptyChunks(LIF):
    def forward(self, x: Tensor, state: Any = None, **options: Any) -> tuple[Tensor, Any]:
        if not x.shape[0]:
            return x, self.initial_state(x)
        return super().forward(x, state, **options)


class CutsItsState(LIF):
    def forward(self, x: Tensor, state: Any = None, **options: Any) -> tuple[Tensor, Any]:
        y, (v,) = super().forward(x, state, **options)
        return y, (v.detach(),)


class IgnoresLengths(Identity):
    def forward(self, x: Tensor, state: Any = None, *, lengths: Tensor | None = None) -> tuple[Tensor, Any]:
        return x * 1.0, ()


class RunsThroughPadding(LIF):
    def forward(
        self, x: Tensor, state: Any = None, *, lengths: Tensor | None = None, **options: Any
    ) -> tuple[Tensor, Any]:
        y, end = super().forward(x.nan_to_num(0.0, 0.0, 0.0), state, **options)
        return silence_padding(y, lengths), end  # the outputs are right, the state is not


class MultipliesTheMask(Identity):
    def forward(self, x: Tensor, state: Any = None, *, lengths: Tensor | None = None) -> tuple[Tensor, Any]:
        return x * silence_padding(torch.ones_like(x), lengths), ()  # 0 * NaN is NaN


class LeaksIntoItsWeight(Identity):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(7, 7))

    def forward(self, x: Tensor, state: Any = None, *, lengths: Tensor | None = None) -> tuple[Tensor, Any]:
        return silence_padding(
            x @ self.weight, lengths
        ), ()  # the weight's gradient multiplies 0 by what was there


class KeepsAList(Identity):
    def forward(self, x: Tensor, state: Any = None, *, lengths: Tensor | None = None) -> tuple[Tensor, Any]:
        return x * 1.0, [x[-1]]


class StateWithoutABatch(Identity):
    def forward(self, x: Tensor, state: Any = None, *, lengths: Tensor | None = None) -> tuple[Tensor, Any]:
        return x * 1.0, (x.sum(),)


class AlwaysFloat32(Identity):
    def forward(self, x: Tensor, state: Any = None, *, lengths: Tensor | None = None) -> tuple[Tensor, Any]:
        return x.float() * 1.0, ()


class ReadsMemoryInOrder(Identity):
    def forward(self, x: Tensor, state: Any = None, *, lengths: Tensor | None = None) -> tuple[Tensor, Any]:
        return x.as_strided(x.shape, torch.empty(x.shape).stride()) * 1.0, ()


class NoGradient(Identity):
    def forward(self, x: Tensor, state: Any = None, *, lengths: Tensor | None = None) -> tuple[Tensor, Any]:
        return x.detach() + 0.0 * x, ()


class NeverSpikes(LIF):
    def forward(self, x: Tensor, state: Any = None, **options: Any) -> tuple[Tensor, Any]:
        return super().forward(x - 100.0, state, **options)


class AlwaysSpikes(LIF):
    def forward(self, x: Tensor, state: Any = None, **options: Any) -> tuple[Tensor, Any]:
        return super().forward(x + 100.0, state, **options)


class DropsATerm(Neuron):
    states = ("v",)
    step = staticmethod(step)

    @staticmethod
    def step_vjp(gs: Any, gv: Any, x: Any, v: Any, decay: Any, threshold: Any) -> Any:
        u = decay * v + x
        gu = gs * spike_derivative(u - threshold) + gv  # the reset's own dependence on the spike is forgotten
        return gu, gu * decay, gu * v, 0.0

    def coefs(self) -> tuple[Any, ...]:
        return 0.85, 0.9


BAD: dict[str, list[tuple[Callable[[], Layer], str]]] = {
    "purity": [
        (Remembers, "tensors kept in the module"),
        (RemembersInAList, "tensors kept in the module"),
        (CountsCalls, "attributes changed"),
        (WritesABuffer, "was changed by a forward"),
        (WritesItsInput, "the input was written to"),
        (WritesItsState, "the state that was given was written to"),
    ],
    "causality": [
        (Peeks, "the future changed the past"),
        (PeeksInItsGradient, "the past's gradient reaches the future"),
        (SeesNothing, "tests nothing"),
    ],
    "batch_independence": [(MixesBatch, "with other neighbours"), (DependsOnItsPlace, "alone")],
    "streaming": [
        (Peeks, "streamed in chunks"),
        (lambda: BeginsAnew(7, **NEURON), "streamed in chunks"),
        (lambda: SkipsEmptyChunks(7, **NEURON), "streamed in chunks"),
    ],
    "lengths": [
        (IgnoresLengths, "is not 0 past its end"),
        (lambda: RunsThroughPadding(7, **NEURON), "state tensor 0"),
    ],
    "lengths_streaming": [
        (lambda: RunsThroughPadding(7, **NEURON), "streamed with lengths|changed its state")
    ],
    "padding": [
        (IgnoresLengths, "in the padding got a gradient"),
        (MultipliesTheMask, "nan in the padding came out"),
        (LeaksIntoItsWeight, "made a gradient NaN"),
        (lambda: RunsThroughPadding(7, **NEURON), "with garbage in the padding|got a gradient"),
    ],
    "state_tree": [
        (KeepsAList, "is a list, not a tuple"),
        (StateWithoutABatch, "does not begin with the batch"),
    ],
    "float64": [(AlwaysFloat32, "outputs torch.float32 and torch.float32")],
    "layout": [(ReadsMemoryInOrder, "of a strided input")],
    "gradients": [
        (NoGradient, "no gradient comes through the outputs"),
        (lambda: CutsItsState(7, **NEURON), "the state has no gradient"),
    ],
    "fires": [
        (lambda: NeverSpikes(7, **NEURON), "fires at 0.0%"),
        (lambda: AlwaysSpikes(7, **NEURON), "fires at 100.0%"),
    ],
    "derivative": [(lambda: DropsATerm(7), "a gradient of DropsATerm: off by")],
}


def input_of_the_bad() -> Tensor:
    torch.manual_seed(1)
    return 0.35 + 0.6 * torch.randn(STEPS, BATCH, 7)


@pytest.mark.parametrize("law", BAD)
def test_a_layer_that_breaks_a_law_is_caught(law: str) -> None:
    for build, message in BAD[law]:
        layer = build().eval()
        with interpreted(), pytest.raises(AssertionError, match=message):
            getattr(laws, law)(layer, input_of_the_bad())


def test_the_battery_has_a_bad_layer_for_every_law() -> None:
    assert set(BAD) == {*FORWARD, *OTHERS, "fires", "derivative"}


@pytest.mark.parametrize("law", [*FORWARD, *OTHERS])
def test_a_good_layer_passes(law: str) -> None:
    getattr(laws, law)(Identity().eval(), input_of_the_bad())


def test_an_exemption_that_is_not_needed_is_caught() -> None:
    class Modest(Identity):
        exempt: ClassVar[dict[str, str]] = {"causality": "training mode only: this one only says so"}

    with pytest.raises(pytest.fail.Exception, match="DID NOT RAISE"), pytest.raises(AssertionError):
        laws.causality(Modest(), input_of_the_bad())
