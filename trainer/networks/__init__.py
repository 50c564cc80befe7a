"""From a stored image to logits: layers, backbones, and what they are computed on."""
