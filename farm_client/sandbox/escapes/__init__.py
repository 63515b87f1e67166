"""Hostile scripts, one case of the escape suite each. The first line says what it tries.

None does harm where it succeeds: it reads a file that was made for it, signals a program that does nothing, fills
bounds that are small. ``escape_cases`` says which protection each one is against.
"""
