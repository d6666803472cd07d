"""Builder of PMC-OA: parts of figures with their captions."""
