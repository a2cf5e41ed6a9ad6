"""Ranks working together: communicators, who owns what, the reduction tree, agreement and exchange.

Everything here sees flat NumPy arrays, never a tensor, a module or a recipe. Only `mpi.py` imports mpi4py.
"""
