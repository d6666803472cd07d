"""Builder for the user's own folder of images and texts."""
