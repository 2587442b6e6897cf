"""The costly sums of the network, written so that nothing per point is kept."""
