"""One file per op: its fake kernel and its autograd Functions over torch.ops.convnorm."""
