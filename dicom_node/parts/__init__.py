"""The node's processes, each run by itself: receiving and showing never load torch."""
