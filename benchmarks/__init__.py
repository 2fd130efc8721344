"""
Measure this layer beside another, in one run: `python -m benchmarks --help`.

Both sides get the same server, interpreter and messages, fresh processes for every round, and take turns; what
is reported is the median over the rounds and the ratio of the medians. A round in which a message was lost has no
figure: its loss is reported instead.
"""
