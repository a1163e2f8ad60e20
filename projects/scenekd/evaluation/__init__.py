"""Metrics, their records per image, intervals, and the evaluation of a data set."""
