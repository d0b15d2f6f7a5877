"""Compiling kernels for a GPU that need not be there. Imports the kernels; imported by aot.py.

catalogue.py    every shipped program, with its shapes and tiles
pip_triton.py   compiles through the triton package
"""
