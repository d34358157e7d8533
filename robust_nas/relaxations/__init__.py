"""Relaxations of the choice of operations: mixtures made from learned numbers alpha."""
