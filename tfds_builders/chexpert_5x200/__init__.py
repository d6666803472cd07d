"""Builder of the five-class set of CheXpert (5x200)."""
