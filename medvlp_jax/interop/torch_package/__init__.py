"""Source of the PyTorch package that `interop.torch_export` puts beside the weights; never imported here."""
