"""Packed binary networks: the same spike times to the bit, a bit for each weight, and nothing else gets in or out."""

from __future__ import annotations

import io
import json
import os
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from spiketide.data import Digits
from spiketide.errors import DataError, NonFiniteError, ParameterError
from spiketide.timing import (
    AveragePool2d,
    EarliestPool2d,
    FixedSlope,
    Flatten,
    IntensityToLatency,
    Network,
    PixelTimes,
    Ramp,
    RampUpDown,
    ReL,
    Silence,
    Step,
    STiDi,
    TimingConv2d,
    TimingCrossEntropy,
    TimingLinear,
    calibrate,
    decide,
    pack,
    packed_encoder,
    unpack,
)


@pytest.fixture(scope="module")
def digits() -> tuple[torch.Tensor, torch.Tensor]:
    data = Digits(batch_size=300)
    data.prepare_data()
    data.setup("fit")
    batch = next(iter(data.val_dataloader()))
    return batch.x.view(len(batch.y), 1, 8, 8), batch.y


def fixed(n: int) -> dict[str, Any]:
    return {"psp": FixedSlope(16.0 * n, 16.0), "stop": 16.0 * (n + 1), "binary": True}


NETWORKS: dict[str, Any] = {
    "free slope, linear": lambda: Network(
        Flatten(),
        TimingLinear(64, 37, psp=ReL(32.0), stop=32.0, binary=True, learn_scale=True),
        TimingLinear(37, 10, psp=RampUpDown(4.0, 24.0), stop=32.0, threshold=0.7, binary=True),
    ),
    "fixed slope, conv": lambda: Network(
        TimingConv2d(1, 6, 3, padding=1, **fixed(1)),
        AveragePool2d(2, stop=32.0),
        TimingConv2d(6, 8, 2, stride=2, groups=2, **fixed(2)),
        Flatten(),
        Silence(0.2, end=48.0),
        TimingLinear(32, 10, **fixed(3)),
    ),
    "exact times": lambda: Network(
        TimingConv2d(1, 3, 3, psp=Ramp(3.5), stop=20.25, exact=True, binary=True),
        EarliestPool2d(3),
        Flatten(),
        TimingLinear(12, 10, psp=Step(), stop=30.0, exact=True, binary=True),
    ),
}


@pytest.fixture(params=NETWORKS)
def network(request: pytest.FixtureRequest, digits: Any) -> Network:
    """Calibrated and trained for some steps on real digits, so that signs and scales are not the initial ones."""
    torch.manual_seed(0)
    made: Network = NETWORKS[request.param]()
    x, y = digits
    times = IntensityToLatency(16)(x)
    calibrate(made, times, [0.5] * sum(hasattr(layer, "scale") for layer in made))
    loss, optimiser = TimingCrossEntropy(4.0), torch.optim.Adam(made.parameters(), 0.01)
    before = [layer.weight >= 0 for layer in made if hasattr(layer, "weight")]
    for _ in range(5):
        optimiser.zero_grad()
        loss(made.output, made.follow(times)[0], y).backward()
        optimiser.step()
    after = [layer.weight >= 0 for layer in made if hasattr(layer, "weight")]
    assert any(not torch.equal(a, b) for a, b in zip(before, after, strict=True))
    return made.eval()


def test_the_same_spike_times_on_real_digits(network: Network, digits: Any, tmp_path: Path) -> None:
    times = IntensityToLatency(16)(digits[0])
    size = pack(network, tmp_path / "net.npz")
    again = unpack(tmp_path / "net.npz").eval()
    fired, seen = network.follow(times)
    ours, theirs = again.follow(times)
    assert list(theirs) == list(seen)
    for name, found in seen.items():
        assert torch.equal(theirs[name], found), name
        assert bool(torch.isfinite(found).any())
    assert torch.equal(ours.potential, fired.potential)
    assert torch.equal(decide(ours).label, decide(fired).label)
    assert size == (tmp_path / "net.npz").stat().st_size
    assert str(again) == str(network) and [type(layer) for layer in again] == [
        type(layer) for layer in network
    ]


def test_a_bit_for_each_weight(tmp_path: Path) -> None:
    network = Network(TimingLinear(784, 600, binary=True), TimingLinear(600, 10, binary=True))
    size = pack(network, tmp_path / "net.npz")
    bits = 784 * 600 + 600 * 10
    assert bits / 8 < size < bits / 8 + 2500 and size < 4 * bits / 30
    # numpy alone reads it
    with np.load(tmp_path / "net.npz", allow_pickle=False) as archive:
        assert archive["0.signs"].nbytes == 784 * 600 / 8 and archive["0.scale"].shape == ()
        signs = np.unpackbits(archive["0.signs"], count=784 * 600).reshape(600, 784)
    assert np.array_equal(signs, (network[0].weight >= 0).numpy())


def test_zero_counts_as_positive_and_float64_stays(tmp_path: Path) -> None:
    network = Network(TimingLinear(3, 2, binary=True, stop=16.0)).double()
    with torch.no_grad():
        tiny = [[0.0, -0.0, -1e-300], [1.0, -1.0, 1e-300]]
        network[0].weight.copy_(torch.tensor(tiny, dtype=torch.float64))
        network[0].scale.fill_(1 / 3)
    pack(network, tmp_path / "net.npz")
    again = unpack(tmp_path / "net.npz")
    assert again[0].weight.tolist() == [[1, 1, -1], [1, -1, 1]] and again[0].weight.dtype == torch.float64
    assert float(again[0].scale) == 1 / 3
    assert torch.equal(again[0].effective_weight(), network[0].effective_weight())


def test_the_encoder_goes_along(tmp_path: Path, digits: Any) -> None:
    network = Network(Flatten(), TimingLinear(64, 10, binary=True))
    for encoder in (
        IntensityToLatency(32, span=0.5, threshold=0.1, exact=True),
        PixelTimes(64),
        PixelTimes(code="byte"),
    ):
        pack(network, tmp_path / "net.npz", encoder=encoder)
        again = packed_encoder(tmp_path / "net.npz")
        assert str(again) == str(encoder) and torch.equal(again(digits[0]), encoder(digits[0]))
    pack(network, tmp_path / "net.npz")
    assert packed_encoder(tmp_path / "net.npz") is None


# ---------------------------------------------------------------------------------------------------- lossless or refused


def test_real_weights_are_refused_by_name(tmp_path: Path) -> None:
    network = Network(Flatten(), TimingLinear(64, 20, binary=True), TimingLinear(20, 10))
    with pytest.raises(ParameterError, match=r"layer 2 \(TimingLinear\) has real weights.*binary=True"):
        pack(network, tmp_path / "net.npz")
    assert not list(tmp_path.iterdir())


class _Own(TimingLinear):
    pass


class _OwnKernel(ReL):
    pass


@pytest.mark.parametrize(
    ("network", "said"),
    [
        (
            lambda: nn.Sequential(TimingLinear(4, 2, binary=True)),
            "expected a spiketide.timing.Network, got Sequential",
        ),
        (lambda: Network(_Own(4, 2, binary=True)), r"layer 0 \(_Own\) has no packed form"),
        (lambda: Network(nn.Hardtanh(), TimingLinear(4, 2, binary=True)), "layer 0 is Hardtanh"),
        (lambda: Network(TimingLinear(4, 2, psp=_OwnKernel(4.0), binary=True)), "its kernel is _OwnKernel"),
        (lambda: Network(TimingLinear(4, 2, binary=True)).half(), "weights of torch.float16"),
    ],
)
def test_what_has_no_form_is_refused(network: Any, said: str, tmp_path: Path) -> None:
    with pytest.raises(ParameterError, match=said):
        pack(network(), tmp_path / "net.npz")
    assert not list(tmp_path.iterdir())


def test_an_encoder_without_a_form_and_weights_without_a_sign(tmp_path: Path) -> None:
    network = Network(TimingLinear(4, 2, binary=True))
    with pytest.raises(ParameterError, match="the encoder is Identity"):
        pack(network, tmp_path / "net.npz", encoder=nn.Identity())
    with torch.no_grad():
        network[0].weight[0, 0] = float("nan")
    with pytest.raises(NonFiniteError, match="layer 0.*weights"):
        pack(network, tmp_path / "net.npz")


@pytest.mark.parametrize("moment", ["fsync", "replace"])
def test_an_interrupted_write_leaves_the_old_file(
    moment: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "net.npz"
    pack(Network(TimingLinear(4, 2, binary=True)), path)
    old = path.read_bytes()

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, moment, full)
    with pytest.raises(DataError, match=r"cannot write .*net\.npz: No space left"):
        pack(Network(TimingLinear(40, 20, binary=True)), path)
    assert path.read_bytes() == old and list(tmp_path.iterdir()) == [path]


# -------------------------------------------------------------------------------------------------------- damaged files


def rewritten(path: Path, change: Any) -> None:
    """The file with its structure changed."""
    with np.load(path) as archive:
        arrays = {name: archive[name] for name in archive.files}
    structure = json.loads(arrays["structure"].tobytes())
    change(structure, arrays)
    arrays["structure"] = np.frombuffer(json.dumps(structure).encode(), np.uint8)
    np.savez(path, **arrays)


def signs(count: int) -> Any:
    def change(structure: Any, arrays: Any) -> None:
        arrays["0.signs"] = np.zeros(count, np.uint8)

    return change


CHANGES: dict[str, tuple[Any, str]] = {
    "another format": (lambda s, a: s.update(format="mine"), "its format is 'mine'"),
    "a later version": (lambda s, a: s.update(version=2), "version 2.*install a later one"),
    "no format": (lambda s, a: s.pop("format"), "damaged: 'format' is missing"),
    "an unknown layer": (lambda s, a: s["network"][0].update(kind="os.system"), "damaged: 'os.system'"),
    "an unknown argument": (lambda s, a: s["network"][0].update(colour=3), "damaged.*colour"),
    "a number out of range": (lambda s, a: s["network"][0].update(stop=-1.0), "damaged.*stop"),
    "an unknown kernel": (lambda s, a: s["network"][0].update(psp={"kind": "Sine"}), "damaged"),
    "too few bits": (signs(2), "damaged: 20 weights do not lie in 2 bytes"),
    "too many bits": (signs(4000), "damaged: 20 weights"),
    "no bits": (lambda s, a: a.pop("0.signs"), r"damaged: '0\.signs"),
    "a scale that is none": (lambda s, a: a.update({"0.scale": np.float32("nan")}), "damaged: a scale"),
    "two scales": (lambda s, a: a.update({"0.scale": np.ones(2, np.float32)}), "damaged: a scale"),
    "no layers": (lambda s, a: s.update(network=[]), "damaged.*Network expected"),
    "no list": (lambda s, a: s.update(network=3), "damaged"),
}


@pytest.mark.parametrize("what", CHANGES)
def test_a_changed_file_is_refused(what: str, tmp_path: Path) -> None:
    path = tmp_path / "net.npz"
    pack(Network(TimingLinear(4, 5, binary=True)), path)
    change, said = CHANGES[what]
    rewritten(path, change)
    with pytest.raises(DataError, match=said):
        unpack(path)


def test_cut_and_foreign_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "net.npz"
    with pytest.raises(DataError, match="does not exist"):
        unpack(path)
    pack(Network(TimingLinear(40, 50, binary=True)), path)
    whole = path.read_bytes()
    for content in (
        b"",
        whole[:100],
        whole[: len(whole) // 2],
        whole[:-10],
        b"\x80\x04K\x01.",
        b"hello" * 100,
    ):
        path.write_bytes(content)
        with pytest.raises(DataError, match=r"net\.npz (cannot be read|is no packed|is damaged)"):
            unpack(path)
    # one bit of the weights turned: the archive's checksum sees it
    with zipfile.ZipFile(io.BytesIO(whole)) as archive:
        start = archive.getinfo("0.signs.npy").header_offset + 200
    turned = bytearray(whole)
    turned[start] ^= 1
    path.write_bytes(turned)
    with pytest.raises(DataError, match="cannot be read"):
        unpack(path)
    np.savez(path, weights=np.ones(3))
    with pytest.raises(DataError, match="no packed network: it holds weights"):
        unpack(path)
    np.save(tmp_path / "one.npy", np.ones(3))
    with pytest.raises(DataError, match=r"one\.npy"):
        unpack(tmp_path / "one.npy")
    np.savez(path, structure=np.array([{"a": 1}], dtype=object))
    with pytest.raises(DataError, match="cannot be read"):  # pickles are never loaded
        unpack(path)


def test_an_unpacked_network_has_the_default_rule(tmp_path: Path) -> None:
    network = Network(TimingLinear(4, 2, binary=True, rule=STiDi(transfer="sign", slope="constant")))
    pack(network, tmp_path / "net.npz")
    rule = unpack(tmp_path / "net.npz")[0].rule
    assert (rule.transfer, rule.slope) == (STiDi().transfer, STiDi().slope)
