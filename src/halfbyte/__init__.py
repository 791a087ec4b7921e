"""halfbyte: from a file of text to a fine-tuned language model you can trust."""

__version__ = "0.1.0"
