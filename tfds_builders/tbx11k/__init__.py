"""Builder of TBX11K."""
