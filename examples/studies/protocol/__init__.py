"""How the studies are run and read: tuning, repeated runs that are kept, paired differences.

A study has several splits (or draws of its data) and several seeds of each. Every row is tuned on
the same grid, rows are compared run by run on the same split and seed, and an interval is one over
the splits, of the mean over the seeds.
"""
