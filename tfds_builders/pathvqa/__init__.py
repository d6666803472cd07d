"""Builder of PathVQA: questions about pathology images."""
