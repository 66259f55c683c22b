"""`wulewule report`: one self-contained page about a training."""
