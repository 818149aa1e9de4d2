"""What can run a model: what this machine supports, the candidates and their files, plans, the contest."""
