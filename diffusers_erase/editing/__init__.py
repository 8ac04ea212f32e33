"""Edits in closed form: what the text layers read is solved for, nothing is sampled or trained."""
