"""A cluster on one machine, for tests: nodes with host names, addresses and process trees of their own.

``PYTHONPATH=tests python -m cluster_in_a_box`` brings one up, Ctrl-C takes it down; tests use `box.cluster_in_a_box`.
"""
