"""Downstream tasks, one file each, and the metrics they share."""
