"""The modules that a conversion leaves."""
