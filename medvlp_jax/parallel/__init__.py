"""Device mesh, placement rules and start-up of several hosts."""
