"""
Chaos: a fleet of real processes on a real server, faults from a seed, and a check of every message.

proxy.py      a TCP proxy in the test's process that cuts, stalls, splits, delays and swallows, either way
player.py     the program of a sender or receiver: it numbers what it sends and records what it hears
checker.py    what the records prove: nothing lost without a word, nothing twice, nothing out of order
fleet.py      two senders, two receivers, 40 channels, and a run of them under a scenario
scenarios.py  the faults of one server and of the network
clusters.py   those of a Redis Cluster: three primaries with a replica each
sentinels.py  those of a server and its replica that three Sentinels watch
test_*.py     short runs of every scenario; probes of the design, each with one fault at an exact moment; figures

In earnest, with a table of figures at the end:

    python -m tests.chaos                               # every scenario, 12 s each
    python -m tests.chaos kill_both pause --seconds 60 --seed 4711
    python -m tests.chaos cluster_all --seconds 60 --times 60     # an hour, in fleets of a minute

`CHAOS_SEED` and `CHAOS_SECONDS` do the same for pytest. The seed decides on the faults, their moments and
the traffic; what the machine makes of it differs from run to run, so a seed that failed is worth several runs.
"""
