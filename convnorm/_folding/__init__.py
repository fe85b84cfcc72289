"""The parts of `convnorm.fold` and `convnorm.fuse`.

trace.py sees every use of a layer (inplace.py: what changes in place), rules.py and relus.py decide, arithmetic.py and
activation.py carry out, verify.py compares. For `fuse`, graph.py makes a graph that can be called, and chains.py
rewrites it.
"""
