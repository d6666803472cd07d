"""Builder of MedICaT: medical figures with captions and references."""
