"""Faults of fine-tuning as they are met, planted in small set-ups, and set-ups without one: what the proofs of checks/ are tried on."""
