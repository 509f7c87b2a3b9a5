"""The parts that losses are made of, beneath the kernels and their reference.

A loss over sampled classes is a function of the logits of each row's true classes and of one sum
over its negatives. The sum is large, and kernels or the reference compute it; all else is here, in
plain PyTorch.
"""
