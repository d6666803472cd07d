"""Builder of the five-class set of MIMIC-CXR (5x200)."""
