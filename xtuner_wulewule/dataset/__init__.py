"""Map functions, sampler and loader of the training data."""
