"""Kinds of clusters, one module each: how a launch is brought there, followed and ended."""
