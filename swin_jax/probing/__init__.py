"""Frozen features and what they are worth: few-shot least squares and nearest neighbours."""
