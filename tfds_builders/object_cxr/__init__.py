"""Builder of Object-CXR."""
