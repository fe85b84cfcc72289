"""What every op promises beside its values: transforms, strides, thread counts and instruction sets."""

import io

import pytest
import torch
from torch._subclasses import FakeTensorMode
from torch.library import opcheck

import convnorm
from convnorm.testing import assert_accurate, assert_same
from tests.isas import isas
from tests.specs import DTYPES, cast, compare, evaluate, outputs_of

small = pytest.mark.cases(small=True)


def split(spec, inputs):
    """The names and tensors that get gradients, and the op as a function of them alone."""
    names = [name for name in spec.grads if inputs.get(name) is not None]

    def bind(function):
        return lambda *tensors: function(**(inputs | dict(zip(names, tensors, strict=True))))

    return [inputs[name] for name in names], bind


def floats(result):
    return tuple(t for t in outputs_of(result) if t.is_floating_point())


def assert_all_accurate(ours, theirs, reference):
    assert len(ours) == len(theirs) == len(reference)
    for i, tensors in enumerate(zip(ours, theirs, reference, strict=True)):
        assert_accurate(*tensors, f"result {i}")


# --- torch's transforms -------------------------------------------------------------------------------------


@small
def test_opcheck(spec, case, layout):
    for op, args in spec.raw(**spec.inputs(case, torch.float32, layout)):
        opcheck(op, args, test_utils=("test_schema", "test_faketensor", "test_aot_dispatch_dynamic"))


@small
def test_gradcheck_and_gradgradcheck(spec, case):
    tensors, bind = split(spec, spec.inputs(case, torch.float64))
    leaves = [t.detach().requires_grad_() for t in tensors]
    ours = bind(spec.ours)
    differentiable = lambda *t: tuple(o for o in outputs_of(ours(*t)) if o.requires_grad)  # noqa: E731
    assert torch.autograd.gradcheck(differentiable, leaves, fast_mode=True)
    assert torch.autograd.gradgradcheck(differentiable, leaves, fast_mode=True)


@small
def test_compiles_whole_and_with_dynamic_shapes(spec, case, layout):
    inputs = spec.inputs(case, torch.float32, layout)
    eager = evaluate(spec.ours, inputs, spec.grads)
    for dynamic in (False, True):
        torch._dynamo.reset()
        compiled = torch.compile(spec.ours, fullgraph=True, dynamic=dynamic, backend="aot_eager")
        for what, value in evaluate(compiled, inputs, spec.grads).items():
            assert_same(value, eager[what], f"{what}, dynamic={dynamic}")


@small
@pytest.mark.parametrize("mapped", ["input", "all"])
def test_vmap_equals_a_loop(spec, case, mapped):
    if not spec.vmap(case):
        return
    single = spec.inputs(case, torch.float32)
    names = [n for n in spec.grads if single.get(n) is not None][: 1 if mapped == "input" else None]
    batches = [spec.inputs(case, torch.float32, seed=seed) for seed in (1, 2, 3)]
    stacked = [torch.stack([b[n] for b in batches], dim=1) for n in names]

    def loop(function, dtype):
        runs = [function(**cast(single | {n: b[n] for n in names}, dtype)) for b in batches]
        return [torch.stack(o) for o in zip(*(outputs_of(r) for r in runs), strict=True)]

    call = lambda *tensors: spec.ours(**(single | dict(zip(names, tensors, strict=True))))  # noqa: E731
    ours = outputs_of(torch.vmap(call, in_dims=1)(*stacked))
    assert_all_accurate(ours, loop(spec.theirs, torch.float32), loop(spec.theirs, torch.float64))


@small
def test_func_grad_equals_autograd(spec, case):
    tensors, bind = split(spec, spec.inputs(case, torch.float32))

    def total(function):
        return lambda *t: sum((o * o).sum() for o in floats(function(*t)))

    ours = torch.func.grad(total(bind(spec.ours)), argnums=tuple(range(len(tensors))))(*tensors)
    leaves = [t.detach().requires_grad_() for t in tensors]
    for i, expected in enumerate(torch.autograd.grad(total(bind(spec.ours))(*leaves), leaves)):
        assert_same(ours[i], expected, f"gradient {i}")


@small
@pytest.mark.parametrize("through", ["torch.func", "dual numbers"])
def test_jvp(spec, case, through):
    tensors, bind = split(spec, spec.inputs(case, torch.float32))
    tangents = [torch.randn_like(t) for t in tensors]

    def jvp(function, dtype):
        primals, directions = [t.to(dtype) for t in tensors], [t.to(dtype) for t in tangents]
        call = lambda *t: floats(function(*t))  # noqa: E731
        return torch.func.jvp(call, tuple(primals), tuple(directions))[1]

    def dual(function):
        with torch.autograd.forward_ad.dual_level():
            make = torch.autograd.forward_ad.make_dual
            out = floats(function(*(make(t, d) for t, d in zip(tensors, tangents, strict=True))))
            parts = [torch.autograd.forward_ad.unpack_dual(o) for o in out]
        return tuple(p.tangent if p.tangent is not None else torch.zeros_like(p.primal) for p in parts)

    ours = dual(bind(spec.ours)) if through == "dual numbers" else jvp(bind(spec.ours), torch.float32)
    doubled = split(spec, cast(spec.inputs(case, torch.float32), torch.float64))[1]
    assert_all_accurate(ours, jvp(bind(spec.theirs), torch.float32), jvp(doubled(spec.theirs), torch.float64))


@small
def test_jacobian_of_the_input_by_vmap_of_backward(spec, case):
    if not spec.vmap(case):
        return
    tensors, bind = split(spec, spec.inputs(case, torch.float64))
    ours = torch.func.jacrev(lambda x: floats(bind(spec.ours)(x, *tensors[1:]))[0])(tensors[0])
    expected = torch.func.jacfwd(lambda x: floats(bind(spec.ours)(x, *tensors[1:]))[0])(tensors[0])
    assert_accurate(ours, expected.float(), expected)


# --- strides ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["fake", "meta"])
def test_fakes_tell_the_real_strides(spec, case, layout, mode):
    inputs = spec.inputs(case, torch.float32, layout)
    real = evaluate(spec.ours, inputs, spec.grads)
    if mode == "fake":
        with FakeTensorMode() as fake:
            moved = {k: fake.from_tensor(v) if isinstance(v, torch.Tensor) else v for k, v in inputs.items()}
            told = evaluate(spec.ours, moved, spec.grads)
    else:
        moved = {k: v.to("meta") if isinstance(v, torch.Tensor) else v for k, v in inputs.items()}
        told = evaluate(spec.ours, moved, spec.grads)
    for what, value in real.items():
        assert told[what].shape == value.shape, what
        assert told[what].dtype == value.dtype, what
        assert told[what].stride() == value.stride(), what


def test_channels_last_in_gives_channels_last_out(spec, case):
    for fmt in (torch.channels_last, torch.channels_last_3d):
        inputs = spec.inputs(case, torch.float32, "channels_last")
        if inputs["input"].dim() != (4 if fmt is torch.channels_last else 5):
            continue
        ours, theirs = (outputs_of(f(**inputs))[0] for f in (spec.ours, spec.theirs))
        if theirs.is_contiguous(memory_format=fmt):
            assert ours.is_contiguous(memory_format=fmt)


def sliced(t):
    """The same values as every second element of the last dimension of something larger, at an offset."""
    room = t.new_empty(*t.shape[:-1], 2 * t.shape[-1] + 3)
    view = room[..., 3::2]
    return view.copy_(t)


def transposed(t):
    """The same values with the order of the dimensions in memory reversed."""
    return t.permute(*range(t.dim())[::-1]).contiguous().permute(*range(t.dim())[::-1])


def expanded(t):
    """Every image the first one, by stride 0."""
    return t[:1].expand_as(t)


@pytest.mark.parametrize("view", [sliced, transposed, expanded], ids=lambda f: f.__name__)
def test_any_strides_of_inputs_and_gradients(spec, case, view):
    inputs = spec.inputs(case, torch.float32, kind="integers")
    strided = {k: view(v) if k in spec.grads and v is not None and v.dim() else v for k, v in inputs.items()}
    dense = {k: v.contiguous() if k in spec.grads and v is not None else v for k, v in strided.items()}

    def run(given, arrange):
        leaves = {k: v.detach().requires_grad_() for k, v in given.items() if k in spec.grads and v is not None}
        out = [o for o in outputs_of(spec.ours(**(given | leaves))) if o.requires_grad]
        gradients = [arrange(torch.arange(float(o.numel()), device=o.device).remainder(7).view(o.shape)) for o in out]
        return [*out, *torch.autograd.grad(out, list(leaves.values()), gradients)]

    found = run(strided, view)
    expected = run(dense, lambda g: view(g).contiguous())
    for i, (a, b) in enumerate(zip(found, expected, strict=True)):
        if spec.exact:
            assert_same(a, b, f"result {i}")
        else:  # another layout may sum in another order
            assert_accurate(a, b, b.double(), f"result {i}")


# --- the machine --------------------------------------------------------------------------------------------


def test_any_number_of_threads_gives_the_same_bits(spec, case, layout):
    inputs = spec.inputs(case, torch.float32, layout)
    torch.set_num_threads(1)
    expected = evaluate(spec.ours, inputs, spec.grads)
    for threads in (2, 5):
        torch.set_num_threads(threads)
        for what, value in evaluate(spec.ours, inputs, spec.grads).items():
            assert_same(value, expected[what], f"{what} with {threads} threads")


@isas
@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
def test_every_instruction_set(spec, case, layout, dtype, isa):
    with convnorm.backends.using_isa(isa):
        if not spec.exact:
            compare(spec, spec.inputs(case, dtype, layout), dtype)
            return
        inputs = spec.inputs(case, dtype, layout, kind="integers")
        ours = evaluate(spec.ours, inputs, spec.grads, kind="integers")
    expected = evaluate(spec.theirs, cast(inputs, torch.float64), spec.grads, kind="integers")
    for what, value in ours.items():
        assert_same(value, expected[what].to(value.dtype), what)


@small
def test_exports(spec, case):
    class Module(torch.nn.Module):
        def forward(self, tensors):
            return spec.ours(**(plain | tensors))

    inputs = spec.inputs(case, torch.float32)
    tensors = {k: v for k, v in inputs.items() if isinstance(v, torch.Tensor)}
    plain = {k: v for k, v in inputs.items() if k not in tensors}
    buffer = io.BytesIO()
    torch.export.save(torch.export.export(Module(), (tensors,)), buffer)
    buffer.seek(0)
    loaded = torch.export.load(buffer).module()
    for a, b in zip(outputs_of(loaded(tensors)), outputs_of(spec.ours(**inputs)), strict=True):
        assert_same(a, b)


@small
def test_no_grad_and_inference_mode(spec, case):
    inputs = spec.inputs(case, torch.float32)
    expected = outputs_of(spec.ours(**inputs))
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            for a, b in zip(outputs_of(spec.ours(**inputs)), expected, strict=True):
                assert_same(a, b)
                assert not a.requires_grad
