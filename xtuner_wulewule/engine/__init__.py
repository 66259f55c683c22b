"""Hooks, learning-rate schedule and optimizer wrapper."""
