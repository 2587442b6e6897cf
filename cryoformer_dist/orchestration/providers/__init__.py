"""Kinds of clusters, one module each: how an errand is brought there, followed and ended."""
