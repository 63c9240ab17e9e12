"""Attention over independent (or causally ordered) blocks packed in one sequence."""
