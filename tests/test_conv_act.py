"""conv_act: convolution, residual and ReLU in one pass, by every kernel; then what its Python side promises."""

import io

import pytest
import torch
import torch.nn.functional as F
from torch._subclasses import FakeTensorMode
from torch.library import opcheck
from torch.utils.flop_counter import FlopCounterMode

import convnorm
import convnorm.functional as CF
from convnorm import backends, explain
from convnorm.testing import assert_accurate, assert_same
from tests.isas import ISAS, isas
from tests.specs import DTYPES, arrange, random_inputs, values, without_onednn
from tests.specs.conv import CASES, geometry, output_shape

ops = torch.ops.convnorm
KERNELS = [row for row in backends.kernels("conv_forward") if row["isa"] in ISAS and "cuda" not in row["kernel"]]
PROBLEMS = [pytest.param(case, layout, id=f"{case}-{layout}") for case in CASES for layout in case.layouts()]
problems = pytest.mark.parametrize("problem, arranged", PROBLEMS)
MODES = [(False, True), (True, False), (True, True)]  # with a residual, ReLU


def inputs_of(problem, layout, dtype=torch.float32, kind="normal"):
    """(input, weight, bias, residual, geometry); the residual in the same layout."""
    given = random_inputs(problem, dtype, layout, kind=kind)
    rest = {k: v for k, v in given.items() if k not in ("input", "weight", "bias")}
    x, w = given["input"], given["weight"]
    residual = arrange(values(output_shape(problem), dtype, torch.Generator().manual_seed(7), kind), layout)
    return x, w, given.get("bias"), residual, geometry(x.shape[2:], w.shape[2:], **rest)


def act(out, residual, relu):
    out = out if residual is None else out + residual
    return out.relu() if relu else out


def each_kernel(x, w, b, g):
    """Pins one kernel after the other of those that accept the problem; yields their names."""
    for row in KERNELS:
        with backends.using_isa(row["isa"]), backends.force(conv_forward=row["kernel"]):
            try:
                ops.conv_forward(x, w, b, *g)
            except RuntimeError as refused:
                assert "no kernel accepts this problem" in str(refused)
                continue
            yield row["kernel"]


# --- the kernels --------------------------------------------------------------------------------------------


@pytest.mark.winograd
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@problems
def test_every_kernel_adds_and_clips_what_it_would_have_written(problem, arranged, dtype):
    """Where sums are of the stored type, one pass has the very bits of three."""
    x, w, b, residual, g = inputs_of(problem, arranged, dtype)
    seen = 0
    for kernel in each_kernel(x, w, b, g):
        seen += 1
        if kernel == "conv_im2col" and dtype == torch.float32:
            continue  # it sums in double
        plain = ops.conv_forward(x, w, b, *g)
        for with_residual, relu in MODES:
            added = residual if with_residual else None
            out = ops.conv_act(x, w, b, added, *g, relu)
            assert_same(out, act(plain, added, relu), f"{kernel}, residual {with_residual}, relu {relu}")
            assert out.stride() == plain.stride()
    assert seen >= 2 or not x.numel()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@problems
def test_every_kernel_rounds_16_bits_once(problem, arranged, dtype):
    x, w, b, residual, g = inputs_of(problem, arranged, dtype, kind="integers")
    wide = ops.conv_forward(x.double(), w.double(), None if b is None else b.double(), *g)
    for kernel in each_kernel(x, w, b, g):
        for with_residual, relu in MODES:
            added = residual if with_residual else None
            out = ops.conv_act(x, w, b, added, *g, relu)
            assert_same(out, act(wide, added, relu).to(dtype), f"{kernel}, residual {with_residual}, relu {relu}")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@problems
def test_as_accurate_as_torchs_three_steps(problem, arranged, dtype):
    """float64 has the bits of three steps, see above; torch's own is no reference for it."""
    x, w, b, residual, _ = inputs_of(problem, arranged, dtype)
    n = x.dim() - 2

    def theirs(dtype):
        given = [None if t is None else t.to(dtype) for t in (x, w, b, residual)]
        with without_onednn():  # float16 depthwise convolutions of one dimension can hang there
            return (getattr(F, f"conv{n}d")(*given[:3], **problem.kwargs) + given[3]).relu()

    ours = getattr(CF, f"conv{n}d_act")(x, w, b, **problem.kwargs, residual=residual)
    assert_accurate(ours, theirs(dtype), theirs(torch.float64))


SHAPES = {  # each kernel once: input, weight, groups
    "depthwise": ((2, 24, 15, 17), (24, 1, 3, 3), 24),
    "depthwise, narrow": ((2, 5, 6, 7), (5, 1, 3, 3), 5),
    "winograd": ((2, 32, 14, 14), (32, 32, 3, 3), 1),
    "igemm": ((2, 40, 13, 11), (37, 40, 3, 2), 1),
    "grouped": ((2, 32, 9, 20), (32, 16, 3, 3), 2),
    "turned": ((2, 336, 7, 7), (336, 336, 1, 1), 1),
}
shapes = pytest.mark.parametrize("size, filters, groups", SHAPES.values(), ids=SHAPES)
layouts = pytest.mark.parametrize("fmt", [torch.contiguous_format, torch.channels_last], ids=["nchw", "nhwc"])


def problem_of(size, filters, groups, fmt, dtype=torch.float32):
    x, w = torch.randn(size, dtype=dtype), torch.randn(filters, dtype=dtype)
    x = x.contiguous(memory_format=fmt)
    g = ([1, 1], [1, 1, 1, 1], [1, 1], groups)
    return x, w, torch.randn(filters[0], dtype=dtype), torch.randn_like(ops.conv_forward(x, w, None, *g)), g


@pytest.mark.winograd
@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
@shapes
@layouts
def test_same_bits_for_any_number_of_threads(size, filters, groups, fmt, dtype):
    x, w, b, residual, g = problem_of(size, filters, groups, fmt, dtype)
    results = []
    for threads in (1, 2, 5):
        torch.set_num_threads(threads)
        results.append(ops.conv_act(x, w, b, residual, *g, True))
    for other in results[1:]:
        assert_same(other, results[0])


@pytest.mark.winograd
@isas
@shapes
@layouts
def test_nan_and_infinity(size, filters, groups, fmt, isa):
    """As torch's: a NaN stays one, also that of inf - inf; -inf becomes 0."""
    x, w, b, residual, g = problem_of(size, filters, groups, fmt)
    b[1], residual[0, 2], residual[1, 3] = float("nan"), float("nan"), -float("inf")
    residual[0, 4], b[4] = -float("inf"), float("inf")
    with backends.using_isa(isa):
        out = ops.conv_act(x, w, b, residual, *g, True)
        assert_same(out, torch.relu(ops.conv_forward(x, w, b, *g) + residual))
    assert out[:, 1].isnan().all() and out[0, 2].isnan().all() and not out[1, 3].any() and out[0, 4].isnan().all()


@pytest.mark.winograd
@shapes
def test_a_residual_in_any_layout(size, filters, groups):
    x, w, b, residual, g = problem_of(size, filters, groups, torch.contiguous_format)
    expected = ops.conv_act(x, w, b, residual, *g, True)
    room = lambda: torch.randn(*residual.shape[:3], 2 * residual.shape[3] + 1)  # noqa: E731
    views = {
        "channels_last": residual.contiguous(memory_format=torch.channels_last),
        "slice": room()[..., 1::2].copy_(residual),
        "rows apart": room()[..., : residual.shape[3]].copy_(residual),
        "transposed": residual.transpose(2, 3).contiguous().transpose(2, 3),
    }
    for name, view in views.items():
        out = ops.conv_act(x, w, b, view, *g, True)
        assert_same(out, expected, name)
        assert out.is_contiguous(), "the residual does not decide on the output's layout"
    assert_same(ops.conv_act(x, w, b, residual[:1].expand_as(residual), *g, True),
                torch.relu(ops.conv_forward(x, w, b, *g) + residual[:1]))  # fmt: skip


def test_operands_stay_as_they_are():
    x, w, b, residual, g = problem_of(*SHAPES["igemm"], torch.contiguous_format)
    before = [t.clone() for t in (x, w, b, residual)]
    assert_same(ops.conv_act(x, w, b, residual, *g, True), ops.conv_act(x, w, b, residual, *g, True))
    for now, then in zip((x, w, b, residual), before, strict=True):
        assert_same(now, then)


# --- errors -------------------------------------------------------------------------------------------------

X, W = torch.randn(2, 3, 8, 8), torch.randn(4, 3, 3, 3)
ERRORS = {
    "shape": ({"residual": torch.randn(2, 4, 8, 8)}, RuntimeError,
              r"residual of size \(2, 4, 8, 8\) must be \(2, 4, 6, 6\)"),
    "broadcast": ({"residual": torch.randn(1, 4, 6, 6)}, RuntimeError, r"residual of size \(1, 4, 6, 6\) must be"),
    "rank": ({"residual": torch.randn(4, 6, 6)}, RuntimeError, r"residual of size \(4, 6, 6\) must be"),
    "dtype": ({"residual": torch.randn(2, 4, 6, 6).double()}, RuntimeError, "same dtype"),
    "act": ({"act": "gelu"}, ValueError, "conv2d_act: act 'gelu' must be 'relu' or None"),
    "bias": ({"bias": torch.randn(5)}, RuntimeError, r"bias of size \(5,\) must be \(4,\)"),
    "channels": ({"groups": 2}, RuntimeError, "expected input"),
    "integers": ({"input": X.int()}, NotImplementedError, "conv2d_act: input has dtype torch.int32"),
    "weight": ({"weight": W[0]}, RuntimeError, "conv2d_act: weight of size"),
}  # fmt: skip


@pytest.mark.parametrize("recorded", [False, True], ids=["one pass", "composed"])
@pytest.mark.parametrize("name", ERRORS)
def test_errors(name, recorded):
    changed, kind, words = ERRORS[name]
    given = {"input": X, "weight": W.clone().requires_grad_(recorded)} | changed
    with pytest.raises(kind, match=words):
        CF.conv2d_act(**given)


def test_a_residual_on_another_device():
    with pytest.raises((RuntimeError, NotImplementedError)):
        CF.conv2d_act(X, W, residual=torch.empty(2, 4, 6, 6, device="meta"))


# --- Python -------------------------------------------------------------------------------------------------


def ran(function, *args, **kwargs):
    return [call.op for call in explain(function, *args, **kwargs).calls]


def test_one_op_where_nothing_is_recorded():
    residual, trained = torch.randn(2, 4, 6, 6), W.clone().requires_grad_()
    assert ran(CF.conv2d_act, X, trained, residual=residual) == ["conv_act"]
    told = str(explain(CF.conv2d_act, X, trained, residual=residual))
    assert "conv_act (forward)" in told and "-> conv_" in told and "FLOP" in told
    assert CF.conv2d_act(X, W, residual=residual).grad_fn is None
    assert CF.conv2d_act(X, trained, residual=residual).grad_fn is not None
    with torch.inference_mode():
        assert_same(CF.conv2d_act(X, trained), CF.conv2d_act(X, W))


@pytest.mark.parametrize("n", [1, 2, 3])
@pytest.mark.parametrize("relu", [False, True])
def test_gradients_of_any_order(n, relu):
    x, w, b = (torch.randn(s, dtype=torch.float64) for s in ((1, 2, *[4] * n), (3, 2, *[2] * n), (3,)))
    residual = torch.randn(1, 3, *[3] * n, dtype=torch.float64)
    function = getattr(CF, f"conv{n}d_act")
    call = lambda x, w, b, r: function(x, w, b, residual=r, act="relu" if relu else None)  # noqa: E731
    leaves = [t.requires_grad_() for t in (x, w, b, residual)]
    assert torch.autograd.gradcheck(call, leaves, fast_mode=True)
    assert torch.autograd.gradgradcheck(call, leaves, fast_mode=True)


def test_torch_func():
    residual = torch.randn(2, 4, 6, 6)
    total = lambda x: CF.conv2d_act(x, W, residual=residual).sum()  # noqa: E731
    leaf = X.clone().requires_grad_()
    assert_same(torch.func.grad(total)(X), torch.autograd.grad(total(leaf), leaf)[0])
    mapped = torch.vmap(lambda x, r: CF.conv2d_act(x[None], W, residual=r[None])[0])(X, residual)
    torch.testing.assert_close(mapped, CF.conv2d_act(X, W, residual=residual))
    out, tangent = torch.func.jvp(lambda x: CF.conv2d_act(x, W), (X,), (torch.ones_like(X),))
    assert out.shape == tangent.shape


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("with_residual", [False, True])
def test_opcheck(with_residual, relu):
    for fmt in (torch.contiguous_format, torch.channels_last):
        x, w, b, residual, g = problem_of((2, 3, 7, 8), (5, 3, 3, 3), 1, fmt)
        opcheck(ops.conv_act.default, (x, w, b, residual if with_residual else None, *g, relu),
                test_utils=("test_schema", "test_faketensor", "test_aot_dispatch_dynamic"))  # fmt: skip


@pytest.mark.parametrize("recorded", [False, True])
@pytest.mark.parametrize("dynamic", [False, True])
def test_compiles_whole(recorded, dynamic):
    torch._dynamo.reset()
    layer, shortcut = convnorm.nn.ConvAct2d(3, 4, 3, padding=1), torch.randn(2, 4, 8, 8)
    compiled = torch.compile(layer, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    with torch.set_grad_enabled(recorded):
        assert_same(compiled(X, shortcut), layer(X, shortcut))
        assert_same(compiled(X), layer(X))


@pytest.mark.parametrize("strict", [False, True])
def test_exports_as_the_one_op(strict):
    layer, shortcut = convnorm.nn.ConvAct2d(3, 4, 3, padding=1).eval(), torch.randn(2, 4, 8, 8)
    program = torch.export.export(layer, (X, shortcut), strict=strict)
    assert [n.target for n in program.graph.nodes if n.op == "call_function"] == [ops.conv_act.default]
    buffer = io.BytesIO()
    torch.export.save(program, buffer)
    buffer.seek(0)
    assert_same(torch.export.load(buffer).module()(X, shortcut), layer(X, shortcut))


def test_fakes_tell_size_and_layout_and_refuse():
    for fmt in (torch.contiguous_format, torch.channels_last):
        x = X.contiguous(memory_format=fmt)
        with FakeTensorMode() as mode:
            fake = [mode.from_tensor(t) for t in (x, W, torch.randn(2, 4, 6, 6))]
            told = CF.conv2d_act(*fake[:2], residual=fake[2])
            with pytest.raises(RuntimeError, match=r"residual of size \(2, 3, 8, 8\) must be \(2, 4, 6, 6\)"):
                CF.conv2d_act(*fake[:2], residual=fake[0])
        assert told.stride() == CF.conv2d_act(x, W).stride()


def test_flops_are_those_of_the_convolution():
    counts = []
    for function in (CF.conv2d, CF.conv2d_act):
        with FlopCounterMode(display=False) as counter:
            function(X, W)
        counts.append(counter.get_total_flops())
    assert counts[0] == counts[1] == 2 * 2 * 4 * 36 * 27


def test_autocast_casts_the_residual_too():
    residual = torch.randn(2, 4, 6, 6)
    with torch.autocast("cpu", torch.bfloat16):
        for w in (W, W.clone().requires_grad_()):
            assert CF.conv2d_act(X, w, residual=residual).dtype == torch.bfloat16


def test_without_a_batch_dimension():
    residual = torch.randn(4, 6, 6)
    assert_same(CF.conv2d_act(X[0], W, residual=residual), CF.conv2d_act(X[:1], W, residual=residual[None])[0])


# --- modules ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["zeros", "reflect", "replicate", "circular"])
@pytest.mark.parametrize("n", [1, 2, 3])
def test_modules(n, mode):
    ours = getattr(convnorm.nn, f"ConvAct{n}d")(4, 6, 3, 2, 1, groups=2, padding_mode=mode)
    theirs = getattr(torch.nn, f"Conv{n}d")(4, 6, 3, 2, 1, groups=2, padding_mode=mode)
    assert list(ours.state_dict()) == list(theirs.state_dict()) and isinstance(ours, type(theirs))
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(2, 4, *[7] * n)
    expected = theirs(x)
    with torch.no_grad():
        torch.testing.assert_close(ours(x), expected.relu())
        torch.testing.assert_close(ours(x, 2 * expected), (3 * expected).relu())
        ours.act = None
        torch.testing.assert_close(ours(x), expected)
    assert ran(ours, x) == ["conv_act"] and "act=None" in repr(ours)


def test_an_unknown_activation():
    with pytest.raises(ValueError, match="ConvAct2d: act 'silu' must be 'relu' or None"):
        convnorm.nn.ConvAct2d(3, 4, 3, act="silu")
