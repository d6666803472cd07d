"""Builder of MedNLI: sentence pairs for natural language inference."""
