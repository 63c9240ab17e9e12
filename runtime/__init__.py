"""Bundle to images. Importing this package needs NumPy only."""
