"""Benchmarks: ``python -m bench stc --n 10M --p 0.01 --json OUT.json``.

report.py has the row, the table and the JSON of every command, options.py what their options share.
rows.py makes most rows from cases (case.py): those of stc.py, codes.py, packets.py and refuse.py,
compared with the formulations of variants.py and checked against oracle.py. server.py, polar.py,
polar_real.py and gpu.py are commands of their own. timing.py and memory.py measure.
"""
