"""The parts of `convnorm.fold`: trace.py sees every use of a layer, rules.py decides, arithmetic.py folds."""
