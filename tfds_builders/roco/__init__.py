"""Builder of ROCO: figures of open-access articles with captions."""
