"""Scaling studies: adversarial training over depths and widths, planned, run as a grid of run folders, and read."""
