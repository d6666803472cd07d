"""Builder of RadNLI: sentence pairs for natural language inference."""
