"""Source of the PyTorch module that `interop.torch_export` puts beside the weights; never imported here."""
