"""Benchmarks: ``python -m bench stc --n 10M --p 0.01 --json OUT.json``.

case.py says what a row is made of; stc.py, codes.py and server.py make the rows of each stem;
variants.py holds the PyTorch formulations they are compared with, oracle.py what all must agree
with; timing.py and memory.py measure; report.py turns it into rows, tables and JSON.
"""
