"""The table of operations (`exact.ops`) and the kinds of layers (`exact.layers`): who implements them has all."""

from __future__ import annotations

import inspect
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from hpcmcodec.exact import layers
from hpcmcodec.exact.layers import KINDS, Layer
from hpcmcodec.exact.ops import COMPOSED, COMPUTING, MOVING, OPERATIONS, Composed, Ops
from hpcmcodec.exact.reference import ExactOps
from hpcmcodec.model.config import LITE, MEMBERS, TINY
from hpcmcodec.model.declaration import Declaration, declare, declare_synthesis
from hpcmcodec.native import selftest
from hpcmcodec.native.compiled import KernelOps

IMPLEMENTATIONS = ("reference", "kernels", "float", "fake", "declaration")


def implementation(name: str) -> type:
    if name in ("float", "fake"):
        pytest.importorskip("torch")
        from hpcmcodec.model import float_ops

        return {"float": float_ops.FloatOps, "fake": float_ops.FakeOps}[name]
    return {"reference": ExactOps, "kernels": KernelOps, "declaration": Declaration}[name]


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("name", IMPLEMENTATIONS)
def test_every_implementation_has_every_operation_with_the_arguments_of_the_table(name: str, operation: str) -> None:
    found = getattr(implementation(name), operation, None)
    assert found is not None, f"{name} has no {operation}"

    def arguments(f: Any) -> list[tuple[str, Any, Any]]:
        return [(p.name, p.kind, p.default) for p in inspect.signature(f).parameters.values()]

    assert arguments(found) == arguments(getattr(Ops, operation))


@pytest.mark.parametrize("operation", OPERATIONS)
def test_the_kernels_have_a_form_of_every_operation_or_say_that_the_reference_does_it(operation: str) -> None:
    assert (operation in vars(KernelOps)) != (operation in KernelOps.INHERITED)


@pytest.mark.parametrize("operation", COMPUTING)
def test_fake_quantisation_takes_the_value_of_every_operation_from_the_exact_one(operation: str) -> None:
    assert operation in vars(implementation("fake"))


@pytest.mark.parametrize("operation", OPERATIONS)
def test_the_self_test_has_a_case_of_every_operation(operation: str) -> None:
    assert operation in {name.partition(",")[0] for name in selftest.cases(1, 4, 4, 2, 2, 2)}


def test_the_self_test_calls_the_operations_that_it_names() -> None:
    class Recording:
        def __init__(self, ops: ExactOps) -> None:
            self.ops, self.called = ops, set[str]()

        def __getattr__(self, name: str) -> Any:
            self.called.add(name)
            return getattr(self.ops, name)

    ops = Recording(ExactOps(selftest.NUMPY, selftest.layers(4, 3, 2), selftest.GRIDS))
    for name, case in selftest.cases(1, 4, 4, 4, 3, 2).items():
        ops.called.clear()
        case(ops)
        assert name.partition(",")[0] in ops.called


def test_the_table_knows_what_moves_values_and_what_is_made_of_other_operations() -> None:
    assert sorted(OPERATIONS) == sorted([*COMPUTING, *MOVING, *COMPOSED])


@pytest.mark.parametrize("operation", sorted(COMPOSED))
@pytest.mark.parametrize("name", sorted({*IMPLEMENTATIONS} - {"kernels"}))
def test_kernels_alone_have_another_form_of_what_is_made_of_other_operations(name: str, operation: str) -> None:
    assert getattr(implementation(name), operation) is getattr(Composed, operation)


# --- layers -----------------------------------------------------------------------------------------------------------


DECLARED = (declare, declare_synthesis)
OTHER = replace(MEMBERS["small-phase1"], residual="lerp")
TRAINED = {type(layer) for config in (LITE, OTHER) for layer in declare(config)[0].values()}
"""The synthesis' are modules in training: model.fold."""


def concrete(kind: type) -> set[type]:
    """A class's subclasses that can be made."""
    below = {c for sub in kind.__subclasses__() for c in concrete(sub)}
    return below if inspect.isabstract(kind) else {kind, *below}


def example_layers() -> list[Layer]:
    """Those of configs whose flows use every kind and every option."""
    return [layer for config in (LITE, TINY, OTHER) for made in DECLARED for layer in made(config)[0].values()]


def test_the_list_of_kinds_is_whole() -> None:
    assert set(KINDS) == concrete(Layer)
    assert {type(layer) for layer in example_layers()} == set(KINDS)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_a_layer_says_what_its_tensors_are(kind: type[Layer]) -> None:
    grids = {"h_s.z": 5}
    for layer in [v for v in example_layers() if type(v) is kind and v.out < 200]:
        derived = layer.example(np.random.RandomState(0))
        assert tuple(derived) == layer.derived
        assert all(v.dtype == np.float32 for v in derived.values())
        assert set(layer.quantise(derived, grids)) == set(layer.stored)
        stored = layers.quantise([layer], {f"{layer.name}.{k}": v for k, v in derived.items()}, grids)
        assert set(stored) == {f"{layer.name}.{k}" for k in layer.stored}


@pytest.mark.parametrize("kind", sorted(TRAINED, key=lambda kind: kind.__name__), ids=lambda kind: kind.__name__)
def test_training_has_parameters_of_every_kind_of_layer_and_a_way_back_from_integers(kind: type[Layer]) -> None:
    pytest.importorskip("torch")
    from hpcmcodec.model import parameters

    assert set(parameters.PARAMETERS) == TRAINED
    grids = {"h_s.z": 5}
    for layer in [v for c in (TINY, OTHER) for v in declare(c)[0].values() if type(v) is kind and v.out < 200]:
        raw = parameters.first_values(layer)
        assert set(raw) == {parameters.raw_name(layer, k) for k in parameters.PARAMETERS[kind].raw(layer)}
        derived = parameters.derived(layer, raw)
        assert set(derived) == {f"{layer.name}.{k}" for k in layer.derived}
        stored = layers.quantise([layer], {k: v.numpy() for k, v in derived.items()}, grids)
        again = parameters.derived(layer, parameters.from_stored(layer, stored, grids))
        assert set(again) == set(derived)
        for name, value in derived.items():
            allowed = 1e-5 + 1e-5 * np.abs(value.numpy())
            if name.endswith(".weight"):  # half a step of the row
                allowed = allowed + stored[f"{layer.name}.step"].max(0)[:, None] / 2
            elif kind is layers.QualityBias:
                allowed = allowed + 2.0 ** -grids[layer.grid] / 2
            assert (np.abs(again[name].numpy() - value.numpy()) <= allowed).all(), name
