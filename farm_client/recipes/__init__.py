"""Recipes by name, each a TOML file whose first line says when to choose it (``sdk.recipe_files`` reads them)."""
