"""Speed of single-spike networks: training and evaluation beside the same shape of ReLU units, and firing against the clock.

    OMP_WAIT_POLICY=passive python benchmarks/single_spike.py [--quick] [--only train,eval,clock] [--nets fc,conv,large] [--json]

One training step is encoding, forward, loss, backward and Adam on a batch of 64 images. "line" is the free slope (ReL, T 64,
chord or constant), "fixed" the fixed slope, "ReLU" max pooling and rectified linear units in torch. Speed depends on how many
neurons fire, so every net is first trained for some steps. Images are MNIST's where ``SPIKETIDE_DATA`` has them, else blots of
noise, and then nothing is learnt but the cost is alike.

Figures stand behind a parity gate: every layer fires as by the clock, and its update is that of the dense sum over all pairs.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
from collections.abc import Iterator
from typing import Any

import torch
from common import emit, gate, interleaved, machine, median_ratio, table
from torch import Tensor, nn
from torch.nn import functional

from spiketide.data import MNIST
from spiketide.errors import DataError
from spiketide.kernels import first_spike
from spiketide.timing import (
    EarliestPool2d,
    FixedSlope,
    Flatten,
    IntensityToLatency,
    Network,
    RelativeTargets,
    STiDi,
    TimingConv2d,
    TimingCrossEntropy,
    TimingLayer,
    TimingLinear,
    TimingLoss,
    calibrate,
)

NETS = {
    "fc": ("784-400-10", (), (784, 400, 10)),
    "conv": ("20C5-P2-40C5-P2-300-10", (1, 20, 40), (640, 300, 10)),
    "large": ("40C5-P2-1000-10", (1, 40), (5760, 1000, 10)),
}
BATCH, EPOCH, STEPS, CLOCK = 64, 55_000, 64, 256


def images() -> tuple[Tensor, Tensor, str]:
    """Some hundred training images and labels."""
    try:
        data = MNIST(batch_size=BATCH, num_workers=0)
        data.prepare_data()
        samples = data.read("train")
        x, y = torch.as_tensor(samples.x[:2048]), torch.as_tensor(samples.y[:2048])
        return x.reshape(-1, 1, 28, 28).float() / (255 if x.dtype == torch.uint8 else 1), y.long(), "MNIST"
    except DataError:
        random = torch.Generator().manual_seed(0)
        x = functional.avg_pool2d(torch.rand(512, 1, 34, 34, generator=random), 7, 1)
        x = ((x - 0.52) * 12).clamp(0, 1)
        return x, torch.randint(10, (512,), generator=random), "blots"


def timing_net(kind: str, form: str, steps: int = STEPS) -> tuple[Network, IntensityToLatency, TimingLoss]:
    """One of ``NETS`` with the free or the fixed slope, its code and its loss."""
    _, channels, sizes = NETS[kind]
    depth = len(channels[1:]) + len(sizes[1:])
    convolutional = bool(channels)

    def options(number: int) -> dict[str, Any]:
        if form == "fixed":
            psp = FixedSlope(steps * (number + 1.0), float(steps))
            rule = STiDi(slope="constant", normalise=False)
            return {"psp": psp, "stop": steps * (number + 2.0), "rule": rule}
        rule = STiDi() if convolutional else STiDi(slope="constant", normalise=False)
        return {"stop": float(steps), "rule": rule}

    number = itertools.count()
    layers: list[nn.Module] = []
    for a, b in itertools.pairwise(channels):
        layers += [TimingConv2d(a, b, 5, **options(next(number))), EarliestPool2d()]
    layers.append(Flatten())
    for a, b in itertools.pairwise(sizes):
        layers.append(TimingLinear(a, b, **options(next(number))))
    loss: TimingLoss
    if form == "fixed":
        loss = TimingCrossEntropy(steps / 20)
        return Network(*layers), IntensityToLatency(steps, threshold=0.016), loss
    if convolutional:
        loss = RelativeTargets(steps / 4, anchor=0.3)
    else:
        loss = TimingCrossEntropy(steps / 8, anchor=0.1, anchor_at=0.95)
    assert depth == next(number)
    return Network(*layers), IntensityToLatency(steps, span=0.5), loss


def moments(kind: str, form: str) -> list[float]:
    """When the layers are to fire at first."""
    depth = len(NETS[kind][1][1:]) + len(NETS[kind][2][1:])
    if form == "fixed":
        return [0.5] * (depth - 1) + [0.8]
    return {2: [0.5, 0.8], 3: [0.4, 0.6, 0.8], 4: [0.35, 0.5, 0.65, 0.8]}[depth]


def relu_net(kind: str) -> nn.Sequential:
    """The same shape of rectified linear units."""
    _, channels, sizes = NETS[kind]
    layers: list[nn.Module] = []
    for a, b in itertools.pairwise(channels):
        layers += [nn.Conv2d(a, b, 5, bias=False), nn.MaxPool2d(2), nn.ReLU()]
    layers.append(nn.Flatten())
    for a, b in itertools.pairwise(sizes):
        layers += [nn.Linear(a, b, bias=False), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def batches(x: Tensor, y: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches again and again."""
    n = len(x) // BATCH
    return itertools.cycle(list(zip(x[: n * BATCH].split(BATCH), y[: n * BATCH].split(BATCH), strict=True)))


class Entry:
    """A net with its training step and its evaluation step."""

    def __init__(self, kind: str, form: str, x: Tensor, y: Tensor) -> None:
        torch.manual_seed(0)
        self.kind, self.form, self.data = kind, form, batches(x, y)
        self.net: nn.Module
        if form == "ReLU":
            self.net, rate = relu_net(kind), 1e-3
        else:
            net, self.encoder, self.loss = timing_net(kind, form)
            calibrate(net, self.encoder(x[:128]), moments(kind, form))
            self.net, rate = net, 0.02
        self.optimizer = torch.optim.Adam(self.net.parameters(), rate, fused=True)  # as the library trains

    def train(self) -> None:
        """Forward, loss, backward, Adam."""
        x, y = next(self.data)
        if isinstance(self.net, Network):
            fired, _ = self.net.follow(self.encoder(x))
            loss = self.loss(self.net.output, fired, y)
        else:
            loss = functional.cross_entropy(self.net(x), y)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()

    def evaluate(self) -> None:
        """Forward alone."""
        x, _ = next(self.data)
        with torch.no_grad():
            if isinstance(self.net, Network):
                self.net.follow(self.encoder(x))
            else:
                self.net(x)

    def spikes(self) -> float:
        """Spikes per image, pixels included."""
        if not isinstance(self.net, Network):
            return float("nan")
        x, _ = next(self.data)
        with torch.no_grad():
            times = self.encoder(x)
            _, seen = self.net.follow(times)
        return sum(float(torch.isfinite(part).sum()) for part in (times, *seen.values())) / len(x)


def by_clock(net: Network, times: Tensor, clocked: bool) -> list[tuple[Tensor, Tensor]]:
    """Spikes of every layer by its events and by the clock, both on the inputs that events gave; or only the clock's."""
    found = []
    for layer in net:
        if not isinstance(layer, TimingLayer):
            times = layer(times)
            continue
        shape, w = layer.psp.shape, layer.effective_weight()
        options: dict[str, float] = {"threshold": layer.threshold, "stop": layer.stop}
        if isinstance(layer, TimingConv2d):
            clock = first_spike.clock_conv(times, w, shape, layer.window, **options)
        else:
            clock = first_spike.clock_linear(times, w, shape, **options)
        mine = clock if clocked else layer(times)
        found.append((mine, clock))
        times = mine
    return found


def check_parity(x: Tensor) -> None:
    """Firing against the clock, the update against the sum over all pairs."""
    torch.manual_seed(0)
    for dtype in (torch.float64, torch.float32):
        net, encoder, _ = timing_net("conv", "line")
        calibrate(net, encoder(x[:32]), moments("conv", "line"))
        net = net.to(dtype)
        with torch.no_grad():
            for k, (mine, clock) in enumerate(by_clock(net, encoder(x[:16]).to(dtype), False)):
                share = float(torch.isfinite(clock).double().mean())
                gate(f"layer {k} fires", share > 0.05, f"only {share:.3f} of the neurons do")
                apart, neurons = int((mine != clock).sum()), mine.numel()
                # in float32 a membrane that grazes the threshold may round to the other side of it
                allowed = 0 if dtype == torch.float64 else max(1, neurons // 10_000)
                gate(
                    f"layer {k} against the clock, {dtype}",
                    apart <= allowed,
                    f"{apart} of {neurons} neurons differ",
                )
    random = torch.Generator().manual_seed(1)
    layer = TimingLinear(60, 40, rule=STiDi(normalise=False)).double()
    times = torch.randint(0, 40, (8, 60), generator=random).double().requires_grad_()
    fired = layer(times)
    grad = torch.randn(fired.shape, generator=random, dtype=torch.float64)
    fired.backward(grad)
    at = torch.where(torch.isinf(fired), 64.0, fired).detach()
    gain = torch.where(torch.isinf(fired), 1.0, at / 128)
    s = at.unsqueeze(2) - times.detach().unsqueeze(1)
    scale = layer.scale
    dw = scale * torch.einsum("bj,bji->ji", -grad * gain, s.clamp(min=0) / 64)
    d = torch.einsum("bj,ji,bji->bi", grad, layer.effective_weight().detach(), (s > 0).double())
    assert layer.weight.grad is not None and times.grad is not None
    for name, a, b in (("update", layer.weight.grad, dw), ("transfer", times.grad, d)):
        error = float((a - b).abs().max() / b.abs().max())
        gate(name, error < 1e-9, f"{error:.1e}")


def measure(kinds: list[str], x: Tensor, y: Tensor, rounds: int, warm: int, part: str) -> dict[str, Any]:
    """Training or evaluation steps of every net in every form."""
    result: dict[str, Any] = {}
    for kind in kinds:
        entries = {form: Entry(kind, form, x, y) for form in ("ReLU", "line", "fixed")}
        for entry in entries.values():
            for _ in range(warm // 10 if kind == "large" else warm):
                entry.train()
        times = interleaved(
            {form: getattr(entry, part) for form, entry in entries.items()},
            rounds=rounds if kind != "large" else max(3, rounds // 3),
        )
        for form, seconds in times.items():
            step = statistics.median(seconds)
            result[f"{NETS[kind][0]} {form}"] = {
                "ms": 1e3 * step,
                "images/s": BATCH / step,
                "epoch": EPOCH / BATCH * step,
                "ratio": median_ratio(seconds, times["ReLU"]),
                "spikes": entries[form].spikes(),
            }
    return result


def clock(x: Tensor, rounds: int) -> dict[str, Any]:
    """Forward by events and by the clock, T = 256."""
    torch.manual_seed(0)
    result: dict[str, Any] = {}
    for kind in ("fc", "conv"):
        net, encoder, _ = timing_net(kind, "line", CLOCK)
        calibrate(net, encoder(x[:128]), moments(kind, "line"))
        times = encoder(x[:BATCH])

        def by_events(net: Network = net, times: Tensor = times) -> None:
            with torch.no_grad():
                net(times)

        def stepping(net: Network = net, times: Tensor = times) -> None:
            with torch.no_grad():
                by_clock(net, times, True)

        found = interleaved({"events": by_events, "clock": stepping}, rounds=rounds, warmup=1)
        result[NETS[kind][0]] = {
            "events ms": 1e3 * statistics.median(found["events"]),
            "clock ms": 1e3 * statistics.median(found["clock"]),
            "faster": median_ratio(found["clock"], found["events"]),
        }
    return result


def main() -> None:
    """Run what is asked for and print its tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="few rounds, short warm-up")
    parser.add_argument("--only", default="train,eval,clock", help="parts, comma-separated")
    parser.add_argument("--nets", default="fc,conv,large", help=f"nets, comma-separated: {', '.join(NETS)}")
    parser.add_argument(
        "--warm", type=int, default=300, help="training steps before measuring; a tenth for large"
    )
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    only, kinds = set(args.only.split(",")), args.nets.split(",")
    rounds, warm = (5, min(args.warm, 30)) if args.quick else (41, args.warm)
    x, y, source = images()
    result: dict[str, Any] = {"machine": machine(), "images": source}
    print(", ".join(f"{k} {v}" for k, v in result["machine"].items()) + f"; images: {source}")
    check_parity(x)
    for part, title in (("train", "Training step"), ("evaluate", "Evaluation")):
        if part[:4] not in {word[:4] for word in only}:
            continue
        result[part] = found = measure(kinds, x, y, rounds, warm, part)
        rows = [
            (
                name,
                f"{row['ms']:.2f}",
                f"{row['images/s']:.0f}",
                f"{row['epoch']:.1f}",
                f"{row['ratio']:.2f}",
                "-" if row["spikes"] != row["spikes"] else f"{row['spikes']:.0f}",
            )
            for name, row in found.items()
        ]
        table(
            f"{title}, batches of {BATCH}",
            rows,
            ("net", "ms", "images/s", f"s / {EPOCH:,} images", "ratio to ReLU", "spikes/image"),
        )
    if "clock" in only:
        result["clock"] = clock(x, 3 if args.quick else 5)
        table(
            f"Forward of {BATCH} images, T {CLOCK}, untrained",
            [
                (name, f"{r['events ms']:.1f}", f"{r['clock ms']:.0f}", f"{r['faster']:.1f}")
                for name, r in result["clock"].items()
            ],
            ("net", "events, ms", "clock, ms", "times faster"),
        )
    emit(result, args.json)


if __name__ == "__main__":
    main()
