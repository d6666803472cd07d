"""Builder of VinDr-CXR with the boxes of its radiologists, merged or not."""
