"""Devices, processes and what is tuned for them; without any of it the results are the same."""
