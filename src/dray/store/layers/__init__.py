"""Layers: reading tars, unpacking them into directories, finding what changed, writing tars."""
