"""Builder of ChestX-Det10."""
