"""Inputs that people get wrong, and what each is answered."""
