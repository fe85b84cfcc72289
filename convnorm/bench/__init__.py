"""Benchmarks against torch: convnorm's own workloads, a list of layers, or all layers of a model.

``convnorm bench`` is the way in; :mod:`convnorm.bench.session` does the same from Python. This package is not
imported by ``import convnorm``.
"""
