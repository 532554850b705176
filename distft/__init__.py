"""distft turns a shop's raw event logs into an autoscaled recommender on a Ray cluster.

Importing this package imports nothing heavy: each stage loads its own libraries when it runs.
"""

__version__ = "0.1.0"
