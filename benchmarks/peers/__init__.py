"""This project's server beside others."""
