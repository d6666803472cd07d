"""Builder of PMC-VQA: multiple-choice questions about figures of PubMed Central."""
