"""Masks and attention as pictures: recorded from a model, made into maps, drawn."""
