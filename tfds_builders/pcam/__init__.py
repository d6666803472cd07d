"""Builder of PatchCamelyon."""
