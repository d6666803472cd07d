"""Builder of MELINDA: figures and the experiment methods that they show."""
