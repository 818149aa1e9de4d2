"""Requests of all clients share batches: the queues, their order, and the threads that compute."""
