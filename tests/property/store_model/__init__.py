"""A model of a store in plain Python, and a machine that does the same to a store and to the model."""
