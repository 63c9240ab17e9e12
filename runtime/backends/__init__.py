"""Inference libraries behind one interface; each module imports its own library when it is used."""
