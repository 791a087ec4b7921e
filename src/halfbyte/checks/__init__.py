"""Proofs on the user's own model, data and machine, before a step is trained."""
