"""Whether engines compute what PyTorch computes: its answers, the judge of edits, the parity gate."""
