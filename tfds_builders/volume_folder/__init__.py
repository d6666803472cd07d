"""Builder of a user's own folder of CT or MR volumes."""
