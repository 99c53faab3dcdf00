"""Published recipes for ImageNet: one file a run, what they share in `recipes`."""
