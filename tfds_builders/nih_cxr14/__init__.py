"""Builder of NIH ChestX-ray14."""
