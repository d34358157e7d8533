"""Networks: [0, 1] images in, logits out; each normalises its own input."""
