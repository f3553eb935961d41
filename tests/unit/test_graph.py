"""The traced graph and its channel classes, against PyTorch itself."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from stages.errors import UsageError
from stages.graph import Graph, channel_classes, couplings, trace
from stages.graph.channels import places, runs
from stages.graph.flow import flow, group_slices


class Residual(nn.Module):
    """A stem, a residual block with a squeeze-and-excitation gate, a depthwise convolution, a head."""

    def __init__(self):
        super().__init__()
        self.stem, self.bn0 = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.conv1, self.bn1 = nn.Conv2d(8, 12, 1), nn.BatchNorm2d(12)
        self.dw, self.bn2 = nn.Conv2d(12, 12, 3, padding=1, groups=12), nn.BatchNorm2d(12)
        self.gate = nn.Sequential(nn.Conv2d(12, 4, 1), nn.ReLU(), nn.Conv2d(4, 12, 1))
        self.conv2, self.bn3 = nn.Conv2d(12, 8, 1), nn.BatchNorm2d(8)
        self.act = nn.ReLU()
        self.head = nn.Linear(8, 5)

    def forward(self, x):
        x = self.act(self.bn0(self.stem(x)))
        y = F.hardswish(self.bn2(self.dw(self.act(self.bn1(self.conv1(x))))))
        y = y * self.gate(y.mean((2, 3), keepdim=True)).sigmoid()
        x = x + self.bn3(self.conv2(y))
        return self.head(x.mean((2, 3)))


@pytest.fixture(scope="module")
def residual() -> tuple[Residual, Graph]:
    torch.manual_seed(0)
    net = Residual().eval()
    for m in net.modules():
        if isinstance(m, nn.BatchNorm2d):
            m.running_mean.normal_(0, 0.2)
            m.running_var.uniform_(0.5, 1.5)
            nn.init.normal_(m.bias, 0, 0.3)
    return net, trace(net, torch.randn(2, 3, 9, 7))


def test_a_layer_says_what_its_module_is(residual):
    net, graph = residual
    dw = graph["dw"]
    assert dw.op == "conv2d" and dw.is_depthwise and not dw.is_prunable
    assert dw.attrs["kernel"] == (3, 3) and dw.attrs["groups"] == 12 and dw.shape == (2, 12, 9, 7)
    assert dw.macs == 2 * 12 * 9 * 7 * 9
    assert dw.params == {"weight": "dw.weight", "bias": "dw.bias"}
    assert {p for layer in graph for p in layer.params.values()} <= set(net.state_dict())
    assert [x.name for x in graph.prunable] == ["stem", "conv1", "gate.0", "gate.2", "conv2", "head"]


def test_tracing_leaves_the_network_as_it_was():
    net = Residual().train()
    net.bn1.eval()
    trace(net, torch.randn(1, 3, 8, 8))
    assert net.training and not net.bn1.training and net.bn2.training


def test_modules_called_twice_keep_unique_names(residual):
    _, graph = residual
    assert len({x.name for x in graph}) == len(graph)
    assert {"act", "act:2"} <= {x.name for x in graph}


def test_json_round_trip(residual):
    _, graph = residual
    assert Graph.from_json(graph.to_json()).to_json() == graph.to_json()


def test_residual_sums_and_gates_share_their_channels(residual):
    _, graph = residual
    assert couplings(graph) == (
        {"stem": "conv2d", "bn0": "batch_norm", "conv2": "conv2d", "bn3": "batch_norm"},
        {"conv1": "conv2d", "bn1": "batch_norm", "dw": "depthwise", "bn2": "batch_norm", "gate.2": "conv2d"},
        {"gate.0": "conv2d"},
    )


def test_places_where_channels_must_stay():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, 1), nn.Conv2d(12, 4, 1)
            self.d, self.e = nn.Conv2d(4, 4, 1, groups=2), nn.Conv2d(4, 4, 1)

        def forward(self, x):
            a, b = self.a(x), torch.softmax(self.b(x), 1)  # softmax(0) is not 0
            x = self.c(torch.cat([a, a.flip(1), b], 1)).sigmoid()  # nobody knows what flip does; sigmoid(0) is not 0, and d would read it
            return self.e(self.d(x))

    assert couplings(trace(Net().eval(), torch.randn(1, 3, 4, 4))) == ()


def test_concatenated_channels_keep_their_classes():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 6, 1), nn.Conv2d(10, 10, 1)
            self.norm, self.grouped, self.head = nn.BatchNorm2d(10), nn.Conv2d(10, 4, 3, groups=2), nn.Linear(4 * 4, 2)

        def forward(self, x):
            y = torch.cat([self.a(x), self.b(x)], 1)
            return self.head(self.grouped(self.norm(y) + self.c(y)).flatten(1))

    graph = trace(Net().eval(), torch.randn(1, 3, 4, 4))
    assert couplings(graph) == (  # a shares its channels with the first rows of norm and c, b with the last; each group of five channels is a class of its own
        {"a": "conv2d", "norm": "batch_norm 0:4", "c": "conv2d 0:4"},
        {"b": "conv2d 0:1", "norm": "batch_norm 4:5", "c": "conv2d 4:5"},
        {"b": "conv2d 1:6", "norm": "batch_norm 5:10", "c": "conv2d 5:10"},
    )
    assert channel_classes(graph)["norm"].tolist() == [0] * 4 + [1] + [2] * 5


def test_places_are_written_as_ranges():
    assert places("batch_norm 64:66,100:104:2") == ("batch_norm", [64, 65, 100, 102]) and places("conv2d") == ("conv2d", None)
    for numbers in ([0, 2, 4, 9], [5], [3, 1, 2], []):
        assert [n for r in runs(numbers) for n in r] == numbers


def assert_removed_channels_do_not_matter(net: nn.Module, example: torch.Tensor) -> int:
    """Zero one channel of a class as filter pruning does: whatever its consumers weigh it with, the network's output must not change."""
    graph, checked = trace(net, example), 0
    traced, modules = flow(graph), dict(net.named_modules())
    ids = {layer.module: traced.of[layer.name] for layer in graph if layer.name in traced.of and layer.params}
    original = {k: v.clone() for k, v in net.state_dict().items()}
    found = couplings(graph)
    for members in found[:: max(1, len(found) // 10)]:
        rows = {name: places(member)[1] or range(len(ids[name])) for name, member in members.items()}
        k = min(1, len(next(iter(rows.values()))) - 1)
        (channel,) = {int(ids[name][own[k]]) for name, own in rows.items()}
        with torch.no_grad():
            for name, own in rows.items():
                modules[name].weight[own[k]] = 0
                if modules[name].bias is not None:
                    modules[name].bias[own[k]] = 0
            before = net(example)
            for layer in graph:
                if layer.name in traced.reads:
                    for made, read in group_slices(layer) if layer.op == "conv2d" else [(slice(None), slice(None))]:
                        modules[layer.module].weight[made, torch.from_numpy(traced.reads[layer.name][read] == channel)] = 100.0
            torch.testing.assert_close(net(example), before)
        net.load_state_dict(original)
        checked += 1
    return checked


def test_removed_channels_do_not_matter(residual):
    assert assert_removed_channels_do_not_matter(residual[0], torch.randn(2, 3, 9, 7)) == 3


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3_small", "shufflenet_v2_x0_5", "regnet_y_400mf", "squeezenet1_1", "alexnet"])
def test_removed_channels_do_not_matter_in_torchvision(name):
    from stages.tasks.vision import torchvision

    torch.manual_seed(0)
    net = torchvision.models.get_model(name, weights=None, num_classes=10).eval()
    for m in net.modules():
        if isinstance(m, nn.BatchNorm2d):
            nn.init.normal_(m.bias, 0, 0.3)
    assert assert_removed_channels_do_not_matter(net, torch.randn(1, 3, 64, 64)) >= 6


def test_chunk_is_slices_and_unknown_operators_are_named():
    class Net(nn.Module):
        def forward(self, x):
            a, b = x.chunk(2, dim=1)
            return torch.cumsum(a - b, dim=1)

    graph = trace(Net(), torch.randn(1, 6, 4, 4))
    slices = [x for x in graph if x.op == "slice"]
    assert [(x.attrs["start"], x.attrs["stop"]) for x in slices] == [(0, 3), (3, 6)]
    assert [x.target for x in graph if x.op == "unsupported"] == ["aten.cumsum.default"]


def test_what_cannot_be_traced_says_so():
    class Net(nn.Module):
        def forward(self, x):
            return x if x.sum() > 0 else -x

    with pytest.raises(UsageError, match="can't be traced"):
        trace(Net(), torch.randn(1, 3))
