"""Which ReLU modules a convolution can take in, with the rules of batch norms."""

from __future__ import annotations

from torch import fx, nn

from .activation import FUSED, Activation
from .arithmetic import Fold
from .rules import Refused, Traced, input_of, unfit
from .trace import reads_values


def decide_relu(traced: Traced, relu: nn.ReLU, folds: list[Fold]) -> Activation:
    """How a ReLU module of the copy goes into the convolution before it, given what is folded; raises Refused."""
    traced.check(relu)
    node = user = traced.call_of(relu)
    source = input_of(node)
    before = next((f for f in folds if isinstance(source, fx.Node) and source.op == "call_module"
                   and traced.model.get_submodule(str(source.target)) is traced.model.get_submodule(f.norm)), None)
    if before is not None and isinstance(source, fx.Node):
        if before.act or getattr(before.rest, "act", None) or len(source.args) + len(source.kwargs) > 1:
            raise Refused(f"it follows {before.norm}, which has a residual or an activation of its own")
        if others := [str(u) for u in source.users if u is not node and reads_values(u)]:
            raise Refused(f"the output of {before.norm} is also used by {', '.join(others)}")
        user, source = source, input_of(source)
    name, layer = traced.layer_before(user, source)
    if type(layer) not in FUSED:
        raise Refused(f"{name} is {unfit(layer)}")
    return Activation(name, traced.named[id(relu)][1][0])
