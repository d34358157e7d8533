"""Architectures as text and numbers, free of torch."""
