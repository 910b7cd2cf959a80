"""The rank grid. Layers ask it for their share; nobody else has to know that there are ranks."""
