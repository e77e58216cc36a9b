"""The compiled kernels give the bits of the numpy reference: each operation, each copy, any number of threads."""

import ctypes
import multiprocessing
import shutil
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hpcmcodec import weights
from hpcmcodec.engines import light
from hpcmcodec.exact.biwkv import biwkv4_exact, decay_powers, own_factor
from hpcmcodec.exact.elementary import exact_exp
from hpcmcodec.exact.layers import Depthwise, Head, Linear, Norm, Scale, Wkv
from hpcmcodec.exact.namespaces import NUMPY
from hpcmcodec.exact.ops import OPERATIONS, Act
from hpcmcodec.exact.reference import ExactOps
from hpcmcodec.model.coder import LatentCoder
from hpcmcodec.native import abi, build, selftest
from hpcmcodec.native.compiled import KernelOps
from hpcmcodec.native.library import Kernels
from hpcmcodec.quality import Quality
from tests import tiny

CHANNELS = {"narrow": (16, 9, 5), "lite": (128, 80, 320), "odd": (141, 33, 301)}  # width, outputs, second input
SHAPES = [(1, 1, 1), (1, 3, 2), (2, 7, 5), (1, 24, 33)]  # batch, rows, columns
TOKENS = [1, 2, 16, 63, 64, 65, 128, 255, 1536, 4096]


@pytest.fixture(scope="session")
def portable(tmp_path_factory: pytest.TempPathFactory) -> Kernels:
    """What processors other than x86-64 get."""
    compiler = build.find_compiler()
    if compiler is None:
        pytest.skip("no C++ compiler")
    folder, target = build.source_folder(), tmp_path_factory.mktemp("portable") / "kernels.so"
    generic = compiler._replace(command=(*compiler.command, "-DHPCM_PORTABLE"))
    build.run_compiler(generic, folder, "portable", target, build.TIMEOUT_SECONDS)
    return Kernels(ctypes.CDLL(str(target)))


@pytest.fixture(scope="session")
def machine(kernel_library: Path) -> Kernels:
    return Kernels(ctypes.CDLL(str(kernel_library)))


@pytest.fixture(params=["avx512", "avx2", "sse2", "plain"])
def kernels(request: pytest.FixtureRequest, machine: Kernels, portable: Kernels) -> Iterator[Kernels]:
    """Every copy that this processor can run, in turn."""
    if request.param == "plain":
        yield portable
        return
    if request.param not in machine.variants:
        pytest.skip(f"this processor has no {request.param}")
    machine.choose(request.param)
    yield machine
    machine.choose(machine.variants[0])


def compare(
    kernels: Kernels, shape: tuple[int, int, int], channels: tuple[int, int, int], taps: int, **options
) -> None:
    tensors = selftest.layers(*channels, taps)
    reference, ops = ExactOps(NUMPY, tensors, selftest.GRIDS), KernelOps(kernels, tensors, selftest.GRIDS)
    for name, case in selftest.cases(*shape, *channels, **options).items():
        for expected, got in zip(
            selftest.integers(NUMPY, case(reference)), selftest.integers(NUMPY, case(ops)), strict=True
        ):
            np.testing.assert_array_equal(got, expected, err_msg=name)


# --- bit-equality ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("channels", CHANNELS.values(), ids=CHANNELS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_every_operation_gives_the_bits_of_the_reference(kernels: Kernels, shape, channels, threads: int) -> None:
    kernels.set_threads(threads)
    compare(kernels, shape, channels, taps=3)
    kernels.set_threads(1)


@pytest.mark.parametrize("channels", CHANNELS.values(), ids=CHANNELS)
def test_codes_at_their_limits_give_the_bits_of_the_reference(kernels: Kernels, channels) -> None:
    compare(kernels, (1, 9, 8), channels, taps=3, extreme=True)


def test_depthwise_kernels_of_five_taps_give_the_bits_of_the_reference(kernels: Kernels) -> None:
    for shape in SHAPES:
        compare(kernels, shape, (80, 16, 4), taps=5)


@settings(max_examples=25)
@given(
    shape=st.tuples(st.integers(1, 2), st.integers(1, 12), st.integers(1, 12)),
    channels=st.tuples(st.integers(1, 70), st.integers(1, 40), st.integers(1, 20)),
    seed=st.integers(0, 2**16),
)
def test_any_shape_gives_the_bits_of_the_reference(machine: Kernels, shape, channels, seed: int) -> None:
    compare(machine, shape, channels, taps=3, seed=seed)


def test_large_work_is_shared_by_threads_and_gives_the_same_bits(machine: Kernels) -> None:
    machine.set_threads(4)
    compare(machine, (1, 96, 100), (128, 256, 64), taps=3)
    machine.set_threads(1)


def test_inputs_may_be_views_of_larger_arrays(machine: Kernels) -> None:
    tensors = selftest.layers(32, 24, 8)
    reference, ops = ExactOps(NUMPY, tensors, selftest.GRIDS), KernelOps(machine, tensors, selftest.GRIDS)
    whole = selftest.codes((1, 9, 9, 64), 3)
    for view in (whole[:, :7, :5, :32], whole[:, ::2, 1::2, 16:48], whole[..., ::2]):
        expected = reference.linear(Act(view, "x"), Linear("linear", 24), "out").x
        np.testing.assert_array_equal(
            ops.linear(Act(view.astype(np.int16), "x"), Linear("linear", 24), "out").x, expected
        )
        expected = reference.depthwise(Act(view, "x"), Depthwise("depthwise"), "out").x
        np.testing.assert_array_equal(ops.depthwise(Act(view, "x"), Depthwise("depthwise"), "out").x, expected)


def test_shapes_that_do_not_fit_are_refused(machine: Kernels) -> None:
    ops = KernelOps(machine, selftest.layers(32, 24, 8), selftest.GRIDS)
    x, wide = Act(selftest.codes((1, 4, 4, 32), 0), "x"), Act(selftest.codes((1, 4, 4, 48), 0), "x")
    gate, row = Act(x.x, "sigmoid"), Act(x.x[:, :2, :2], "x")
    for call in (
        lambda: ops.linear(wide, Linear("linear", 24), "out"),
        lambda: ops.linear([x, Act(selftest.codes((1, 2, 4, 8), 0), "y")], Linear("joint", 24), "out"),
        lambda: ops.head([x, Act(selftest.codes((1, 4, 4, 8), 0), "y")], Head("head", 23)),
        lambda: ops.depthwise(wide, Depthwise("depthwise"), "out"),
        lambda: ops.norm(wide, Norm("norm"), "out"),
        lambda: ops.channel_scale(wide, Scale("scale")),
        lambda: ops.gate(gate, wide),
        lambda: ops.blend(gate, row, x),
        lambda: ops.add(x, wide),
        lambda: ops.wkv(Act(x.x, "exp"), wide, Wkv("wkv"), "fine"),
    ):
        with pytest.raises(ValueError, match=r"shape|wanted"):
            call()


# --- the self-test ---------------------------------------------------------------------------------------------------


def one_code_off(result: Any) -> Any:
    """`result` with its last integer changed by one."""
    if isinstance(result, Act):
        return Act(one_code_off(result.x), result.grid)
    if isinstance(result, (tuple, list)):
        return type(result)([*result[:-1], one_code_off(result[-1])])
    changed = result.copy()
    last = (-1,) * changed.ndim
    changed[last] = changed[last] - 1 if changed[last] > 0 else changed[last] + 1
    return changed


class CallsOnly:
    """Operations that note which of them are called from outside."""

    def __init__(self, ops: ExactOps) -> None:
        self.ops, self.called = ops, set[str]()

    def __getattr__(self, name: str) -> Any:
        self.called.add(name)
        return getattr(self.ops, name)


@pytest.fixture(scope="module")
def called() -> dict[str, set[str]]:
    """The operations that each case of the self-test calls."""
    ops, found = ExactOps(NUMPY, selftest.layers(8, 6, 4), selftest.GRIDS), {}
    for name, case in selftest.cases(1, 3, 4, 8, 6, 4).items():
        noting = CallsOnly(ops)
        case(noting)
        found[name] = noting.called
    return found


@pytest.mark.parametrize("operation", OPERATIONS)
def test_the_self_test_names_an_operation_of_which_one_code_is_off(machine, called, operation: str) -> None:
    class Broken(KernelOps):
        pass

    whole = getattr(KernelOps, operation)
    setattr(Broken, operation, lambda self, *args, **options: one_code_off(whole(self, *args, **options)))
    names = {name for name, operations in called.items() if operation in operations}
    assert names, f"no case of the self-test calls {operation}"
    assert names <= set(selftest.differences(lambda tensors: Broken(machine, tensors, selftest.GRIDS)))


# --- Bi-WKV4 ---------------------------------------------------------------------------------------------------------


def wkv_inputs(tokens: int, channels: int, batch: int, spread: float, seed: int = 0):
    """exp(k), v, powers and own, float64; keys within +-`spread`."""
    rng = np.random.RandomState(seed)
    k = rng.uniform(-spread, spread, (batch, tokens, channels))
    decay, boost = rng.uniform(-1, 20, channels), rng.uniform(-20, 20, channels)
    decay, boost = decay.astype(np.float32), boost.astype(np.float32)
    v = rng.standard_normal((batch, tokens, channels))
    return exact_exp(k), v, decay_powers(decay, tokens), own_factor(boost, tokens)


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("channels", [1, 8, 13])
@pytest.mark.parametrize("tokens", TOKENS)
def test_biwkv4_gives_the_bits_of_the_reference(kernels: Kernels, tokens: int, channels: int, threads: int) -> None:
    kernels.set_threads(threads)
    e, v, powers, own = wkv_inputs(tokens, channels, 2, 8)
    expected = biwkv4_exact(NUMPY, e, v, powers, own)
    assert np.array_equal(kernels.biwkv4(e, v, None, powers, own, 1.0), expected)
    kernels.set_threads(1)


@pytest.mark.parametrize("tokens", [1, 2, 65, 255])
def test_biwkv4_of_extreme_keys_stays_finite_and_exact(kernels: Kernels, tokens: int) -> None:
    e, v, powers, own = wkv_inputs(tokens, 11, 1, 300)
    expected = biwkv4_exact(NUMPY, e, v, powers, own)
    assert np.isfinite(expected).all()
    assert np.array_equal(kernels.biwkv4(e, v, None, powers, own, 1.0), expected)


@pytest.mark.parametrize("tokens", [1, 2, 16, 100, 255])
def test_biwkv4_is_the_formula(machine: Kernels, tokens: int) -> None:
    """Against the sum over all pairs, in float64, within 1e-12 of the largest |v|: they differ in order alone."""
    e, v, powers, own = wkv_inputs(tokens, 9, 1, 8)
    distance = np.abs(np.arange(tokens)[:, None] - np.arange(tokens)) - 1
    w = powers[1]
    weight = np.where(distance[..., None] < 0, own, w ** np.maximum(distance, 0)[..., None]) * e[0][None]
    expected = (weight * v[0][None]).sum(1) / weight.sum(1)
    got = machine.biwkv4(e, v, None, powers, own, 1.0)[0]
    assert np.abs(got - expected).max() <= 1e-12 * np.abs(v).max()


def test_biwkv4_in_torch_numpy_and_cpp_is_the_same(machine: Kernels) -> None:
    torch = pytest.importorskip("torch")
    from hpcmcodec.exact.namespaces import TorchNamespace

    xp = TorchNamespace()
    e, v, powers, own = wkv_inputs(255, 13, 2, 8)
    with xp.exact_mode():
        tensors = [torch.from_numpy(a) for a in (e, v, powers, own)]
        expected = biwkv4_exact(xp, *tensors).numpy()
    assert np.array_equal(machine.biwkv4(e, v, None, powers, own, 1.0), expected)


def float_biwkv4(kernels: Kernels, k, v, decay, boost, g) -> list[np.ndarray]:
    """y and the gradients by k, v, decay and boost; all float32, decay and boost float64."""
    y, gk, gv, sums = np.empty_like(k), np.empty_like(k), np.empty_like(k), np.empty((k.shape[0], 2, k.shape[2]))
    by_decay, by_boost = np.empty_like(decay), np.empty_like(decay)

    def call(**arrays: np.ndarray) -> abi.Biwkv4:
        own = {"k": k, "v": v, "decay": decay, "boost": boost, **arrays}
        batch, tokens, channels = k.shape
        return abi.Biwkv4(batch, tokens, abi.FLOAT32, channels, **{n: a.ctypes.data for n, a in own.items()})

    assert kernels.float_biwkv4(call(y=y)) == 0
    gradients = call(g=g, gk=gk, gv=gv, sums=sums)
    assert kernels.float_biwkv4_gradients(gradients, by_decay.ctypes.data, by_boost.ctypes.data) == 0
    return [y, gk, gv, by_decay, by_boost]


@pytest.mark.parametrize("channels", [1, 8, 13])
@pytest.mark.parametrize("tokens", [1, 2, 16, 255])
def test_biwkv4_for_training_gives_the_same_bits_with_every_copy(kernels, portable, tokens: int, channels: int) -> None:
    rng = np.random.RandomState(tokens)
    k, v, g = rng.standard_normal((3, 2, tokens, channels)).astype(np.float32) * 3
    args = k, v, rng.uniform(-1, 17, channels), rng.uniform(-17, 17, channels), g
    for a, b in zip(float_biwkv4(kernels, *args), float_biwkv4(portable, *args), strict=True):
        np.testing.assert_array_equal(a, b)


# --- files -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def engines(monkeypatch: pytest.MonkeyPatch, kernel_library: Path) -> dict[str, light.LightEngine]:
    """Light engines of the tiny model with HPCM_OPS=reference and with the kernels."""
    made = {}
    for choice in ("reference", "cpp"):
        monkeypatch.setenv("HPCM_OPS", choice)
        monkeypatch.setattr(build, "prebuilt", lambda folder, source: kernel_library)
        made[choice] = light.LightEngine(tiny.load())
    assert isinstance(made["cpp"].coder.ops, KernelOps)
    assert not isinstance(made["reference"].coder.ops, KernelOps)
    return made


@pytest.mark.parametrize("name", [*tiny.PICTURES, tiny.EXTREME])
def test_fixtures_decode_to_the_same_latents_with_and_without_kernels(engines, name: str) -> None:
    latents = []
    for e in ("reference", "cpp"):
        header, streams, verify = tiny.parts_of((tiny.DATA / f"{name}.hpcm").read_bytes())
        size = header.latent_height, header.latent_width
        latents.append(engines[e].coder.decode(streams, verify, header.quality, *size))
    np.testing.assert_array_equal(*latents)


@pytest.mark.parametrize("size", [(1, 1), (5, 3), (9, 14), (33, 20)])
def test_latents_are_coded_to_the_same_bytes_with_and_without_kernels(engines, size: tuple[int, int]) -> None:
    y, z = tiny.latents(*size)
    coded = {name: engine.coder.encode(y, z, Quality(4321)) for name, engine in engines.items()}
    assert coded["reference"][0] == coded["cpp"][0]
    np.testing.assert_array_equal(coded["reference"][1], coded["cpp"][1])


@pytest.mark.skipif("lite-1" not in weights.packaged(), reason="the weights of lite-1 are not here")
def test_lite_codes_to_the_same_bytes_with_and_without_kernels(monkeypatch: pytest.MonkeyPatch, machine) -> None:
    w = weights.load("lite-1")
    rng = np.random.RandomState(0)
    y = (rng.standard_normal((13, 18, w.config.latent)) * 3).astype(np.float32)
    z = np.rint(rng.standard_normal((4, 5, w.config.hyper))).astype(np.float32)
    tensors, tables = w.under("entropy"), w.under("tables")
    coders = [
        LatentCoder(w.config, ops, tables)
        for ops in (ExactOps(NUMPY, tensors, w.grids), KernelOps(machine, tensors, w.grids))
    ]
    (expected, expected_y), (got, got_y) = (c.encode(y, z, Quality(5000)) for c in coders)
    assert got == expected
    np.testing.assert_array_equal(got_y, expected_y)


# --- threads, processes, processors ----------------------------------------------------------------------------------


def test_threads_of_the_program_may_call_at_once(machine: Kernels) -> None:
    machine.set_threads(3)
    tensors = selftest.layers(64, 96, 8)
    x = Act(selftest.codes((1, 40, 50, 64), 1), "x")
    expected = ExactOps(NUMPY, tensors, selftest.GRIDS).linear(x, Linear("linear", 96), "out").x
    wrong: list[int] = []

    def work(i: int) -> None:
        ops = KernelOps(machine, tensors, selftest.GRIDS)
        wrong.extend(i for _ in range(20) if not np.array_equal(ops.linear(x, Linear("linear", 96), "out").x, expected))

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    machine.set_threads(1)
    assert not wrong


def _in_child(library: str, answer) -> None:
    kernels = Kernels(ctypes.CDLL(library), 3)
    answer.put(selftest.differences(lambda tensors: KernelOps(kernels, tensors, selftest.GRIDS)))


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="no fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_process_starts_threads_of_its_own(machine: Kernels, kernel_library: Path) -> None:
    machine.set_threads(3)
    compare(machine, (1, 96, 100), (64, 64, 8), taps=3)  # the pool has threads, which the child will not have
    context = multiprocessing.get_context("fork")
    answer = context.Queue()
    child = context.Process(target=_in_child, args=(str(kernel_library), answer))
    child.start()
    assert answer.get(timeout=60) == []
    child.join()
    machine.set_threads(1)
    assert child.exitcode == 0


def test_copies_of_other_processors_are_refused(machine: Kernels) -> None:
    with pytest.raises(ValueError, match="this processor runs"):
        machine.choose("of-another-processor")


def test_only_the_chosen_copy_holds_instructions_of_newer_processors(kernel_library: Path) -> None:
    """A function that the linker took from a newer copy for all would end an older processor's process."""
    if not shutil.which("objdump"):
        pytest.skip("no objdump")
    listing = subprocess.run(
        ["objdump", "-d", "-C", "--no-show-raw-insn", str(kernel_library)], check=True, capture_output=True, text=True
    ).stdout
    found, function = set(), ""
    for line in listing.splitlines():
        if line.endswith(">:"):
            function = line.split("<", 1)[1]
        for register, owners in (("%zmm", ("avx512::",)), ("%ymm", ("avx512::", "avx2::"))):
            if register in line and not any(o in function for o in owners):
                found.add(function)
    assert "::avx512::" in listing
    assert not found


@pytest.mark.parametrize("unit", ["avx512", "avx2", "sse2", "plain"])
def test_a_unit_of_one_instruction_set_shares_no_function_with_others(unit: str, tmp_path: Path) -> None:
    """Nothing that the linker could take for all but the table of its functions, even where nothing is inlined."""
    compiler = build.find_compiler()
    if compiler is None or not shutil.which("nm"):
        pytest.skip("no C++ compiler or no nm")
    target, portable = tmp_path / "unit.o", ["-DHPCM_PORTABLE"] if unit == "plain" else []
    source = build.source_folder() / f"{unit}.cpp"
    build.run(
        [*compiler.command, *build.FLAGS, "-O0", *portable, "-c", str(source), "-o", str(target)],
        tmp_path,
        build.TIMEOUT_SECONDS,
    )
    listing = subprocess.run(["nm", "-C", str(target)], check=True, capture_output=True, text=True).stdout
    symbols = [line[17:].split(" ", 1) for line in listing.splitlines()]
    defined = {name for kind, name in symbols if (kind.isupper() and kind != "U") or kind in "wvu"}
    assert defined <= {f"hpcm::{unit}_functions"}
    needed = {name for kind, name in symbols if kind == "U"} - {"_GLOBAL_OFFSET_TABLE_", "__stack_chk_fail"}
    assert needed <= {"aligned_alloc", "free", "memcpy", "memset"}


def test_the_flags_leave_the_arithmetic_alone() -> None:
    assert "-ffp-contract=off" in build.FLAGS
    assert not {f for f in build.FLAGS if "fast-math" in f or "unsafe" in f or f in ("-Ofast", "-march=native")}
