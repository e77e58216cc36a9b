"""The onnxruntime graphs of an export: the encoder's transforms, and the gradient that effort needs.

A graph holds no weights. Its nodes read them from the safetensors file, at their offsets: float16 through a Cast, the
integers of the synthesis through their steps and scales as well.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from hpcmcodec import weights
from hpcmcodec.exact.constants import MEAN_SHIFT
from hpcmcodec.exact.layers import Depthwise, Dequantise, Read
from hpcmcodec.model import fold
from hpcmcodec.model.distortion import Distortion
from hpcmcodec.model.family.model import MEANS, Member
from hpcmcodec.model.hpcm import HPCM

OPSET = 18


class _AnalysisGraph(nn.Module):
    def __init__(self, model: HPCM) -> None:
        super().__init__()
        self.g_a, self.h_a = model.g_a, model.h_a

    def forward(self, pixels: Tensor, scale8: Tensor, gain: Tensor) -> tuple[Tensor, Tensor]:
        x = pixels.permute(2, 0, 1)[None].float() * (1 / 255)
        y = self.g_a(x, scale8) * gain
        z = self.h_a(y)
        return y[0].permute(1, 2, 0), z[0].permute(1, 2, 0)


class _MemberAnalysisGraph(nn.Module):
    def __init__(self, model: Member) -> None:
        super().__init__()
        self.g_a, self.h_a = model.g_a, model.h_a
        self.register_buffer("means", model.raw[MEANS].detach().clone())

    means: Tensor

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        x = pixels.permute(2, 0, 1)[None].float() * (1 / 255)
        y = self.g_a(x)
        return y[0].permute(1, 2, 0), self.h_a(y)[0].permute(1, 2, 0) - self.means


class _GradientGraph(nn.Module):
    def __init__(self, model: HPCM) -> None:
        super().__init__()
        self.g_s, self.distortion = model.g_s, Distortion.of(model.config)

    def forward(self, y_hat: Tensor, pixels: Tensor, weight: Tensor, scale8: Tensor, ungain: Tensor) -> Tensor:
        y, x, w = (t.permute(2, 0, 1)[None] for t in (y_hat, pixels, weight))
        g = self.g_s.error_gradient(y.float() * ungain, scale8, x.float() * (1 / 255), w, self.distortion.slope)
        return (g * ungain * 2**MEAN_SHIFT)[0].permute(1, 2, 0)


class Graph(NamedTuple):
    """A module to export: its name, an example of its inputs, names of inputs and outputs, axes of variable length."""

    name: str
    module: nn.Module
    example: tuple[Tensor, ...]
    inputs: list[str]
    outputs: list[str]
    dynamic: Mapping[str, Mapping[int, str]]


def graphs(model: HPCM) -> list[Graph]:
    """The graphs of a model that codes; one of one lambda has no effort, and so no gradient."""
    c = model.config
    pixels = torch.zeros(128, 192, 3)  # 0 to 255; pictures of more than 8 bits have levels in between
    whole, latents, hyper = {0: "H", 1: "W"}, {0: "h", 1: "w"}, {0: "hz", 1: "wz"}
    analysed = {"pixels": whole, "y": latents, "z": hyper}
    if isinstance(model, Member):
        return [Graph("analysis", _MemberAnalysisGraph(model), (pixels,), ["pixels"], ["y", "z"], analysed)]
    gain = torch.ones(1, c.latent, 1, 1)
    y_hat = torch.zeros(8, 12, c.latent, dtype=torch.int32)
    weight = torch.ones(128, 192, 1)
    return [
        Graph(
            "analysis",
            _AnalysisGraph(model),
            (pixels, torch.ones(1, c.analysis_widths[0], 1, 1), gain),
            ["pixels", "scale8", "gain"],
            ["y", "z"],
            analysed,
        ),
        Graph(
            "gradient",
            _GradientGraph(model),
            (y_hat, pixels, weight, torch.ones(1, c.synthesis_widths[0], 1, 1), gain),
            ["y_hat", "pixels", "weight", "scale8", "ungain"],
            ["gradient"],
            {"y_hat": latents, "pixels": whole, "weight": whole, "gradient": latents},
        ),
    ]


def write(graph: Graph, store: Path, out: Path) -> None:
    """Export a graph to the file `out`, which reads its parameters from the file `store` beside it.

    They are float16 there, or, those of the synthesis, integers. Raises ValueError where a tensor of the store has
    another type or shape than the module's.
    """
    import onnx

    torch.onnx.export(
        graph.module,
        graph.example,
        str(out),
        input_names=graph.inputs,
        output_names=graph.outputs,
        dynamic_axes=graph.dynamic,
        opset_version=OPSET,
        do_constant_folding=False,  # a folded transpose would be a copy of the weights inside the graph
        dynamo=False,
    )
    model = onnx.load(str(out))
    config = weights.load_file(store).config
    synthesis = fold.folded(config) if config.flow == "lite" else ()
    rows = {f"{f.module}.{t}": (f, t) for f in synthesis for t in ("weight", "bias")}
    stored = _Stored(store)
    for tensor in model.graph.initializer:
        name, dims = tensor.name, list(tensor.dims)
        if name in rows:
            stored.rows(*rows[name], name, dims)
        elif name not in stored.places:
            stored.kept[name] = tensor
        elif stored.places[name][:2] != ("F16", dims):
            raise ValueError(f"{name}: {stored.places[name][:2]} in {store.name}, {dims} in the graph")
        else:
            stored.external(name, dims, name)
    nodes = [*stored.nodes, *model.graph.node]
    del model.graph.initializer[:], model.graph.node[:]
    model.graph.initializer.extend(stored.kept.values())
    model.graph.node.extend(nodes)
    model.graph.name = graph.name
    out.write_bytes(model.SerializeToString())


class _Stored:
    """The nodes of a graph that make its parameters from the tensors of a safetensors file.

    nodes: in the order of their computation. kept: the graph's constants by name, among them those that only say where
    in the file their values stand.
    """

    def __init__(self, store: Path) -> None:
        self.store, self.places = store, tensor_places(store)
        self.nodes: list[Any] = []
        self.kept: dict[str, Any] = {}

    def external(self, name: str, shape: Sequence[int], output: str = "") -> str:
        """A tensor of the file as float32, in a shape of as many elements."""
        import onnx

        types = {"F16": onnx.TensorProto.FLOAT16, "F32": onnx.TensorProto.FLOAT, "I16": onnx.TensorProto.INT16}
        dtype, _, offset, length = self.places[name]
        stored = onnx.TensorProto(
            name=f"{name}.stored", data_type=types[dtype], dims=shape, data_location=onnx.TensorProto.EXTERNAL
        )
        for key, value in (("location", self.store.name), ("offset", str(offset)), ("length", str(length))):
            stored.external_data.add(key=key, value=value)
        self.kept[stored.name] = stored
        if dtype == "F32":
            return str(stored.name)
        return self.node("Cast", [stored.name], output, to=onnx.TensorProto.FLOAT)

    def constant(self, values: np.ndarray) -> str:
        import onnx

        name = f"constant.{len(self.kept)}"
        self.kept[name] = onnx.numpy_helper.from_array(values, name)
        return name

    def node(self, kind: str, inputs: list[str], output: str = "", **attributes: Any) -> str:
        import onnx

        output = output or f"weights.{len(self.nodes)}"
        self.nodes.append(onnx.helper.make_node(kind, inputs, [output], **attributes))
        return output

    def rows(self, folded: fold.Folded, tensor: str, name: str, dims: Sequence[int]) -> None:
        """A tensor of a layer of the synthesis, as `fold.training` computes it."""
        layer, side = folded.layer, folded.side
        columns, depthwise = sum(layer.inputs), isinstance(layer, Depthwise)
        if tensor == "bias":
            value, columns = self.external(f"{layer.name}.bias", (layer.out, 1)), 1
        else:
            step = self.external(f"{layer.name}.step", (layer.out, 1))
            value = self.node("Mul", [self.external(f"{layer.name}.weight", (layer.out, columns)), step])
            if isinstance(folded.codes, Read | Dequantise):
                scale = self.external(f"{folded.codes.name}.scale", (layer.out, 1) if depthwise else (1, columns))
                whole = self.constant(np.array(2.0 ** fold.fine_of(folded.codes), np.float32))
                value = self.node("Mul", [value, self.node("Mul", [scale, whole])])
        if side > 1:
            parts = (side, side, layer.out // side**2, columns)
            value = self.node("Reshape", [value, self.constant(np.array(parts, np.int64))])
            value = self.node("Transpose", [value], perm=[2, 0, 1, 3])
        self.node("Reshape", [value, self.constant(np.array(dims, np.int64))], name)


def tensor_places(path: Path) -> dict[str, tuple[str, list[int], int, int]]:
    """name -> (dtype, shape, offset and length in bytes) of every tensor of a safetensors file."""
    with path.open("rb") as f:
        (size,) = struct.unpack("<Q", f.read(8))
        header = json.loads(f.read(size))
    return {
        k: (v["dtype"], v["shape"], 8 + size + v["data_offsets"][0], v["data_offsets"][1] - v["data_offsets"][0])
        for k, v in header.items()
        if k != "__metadata__"
    }
