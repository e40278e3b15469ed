"""edgeopt ships trained models to ARM edge devices."""

__version__ = "0.1.0"
