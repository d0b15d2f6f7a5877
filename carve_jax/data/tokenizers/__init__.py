"""Tokenizers: bytes, BPE trained here, and those that other libraries saved in files."""
