"""Hooks and learning-rate schedule."""
