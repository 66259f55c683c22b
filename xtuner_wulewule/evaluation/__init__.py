"""What a model has learned: its persona, what it knows of held-out questions, and what it has forgotten."""
