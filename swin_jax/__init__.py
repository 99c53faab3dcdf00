"""swin_jax: Swin, ViT and the Transformer they came from, in JAX (Flax NNX)."""
