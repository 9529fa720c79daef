"""Gradients of a mixture's logits, sample by sample, for the experiments that compare them."""
