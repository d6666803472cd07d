"""Builder of Chest ImaGenome: anatomical boxes with attributes on images of MIMIC-CXR."""
