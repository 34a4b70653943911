"""Distil with the classes of the head split over processes: `torchrun -m examples.distributed`."""
