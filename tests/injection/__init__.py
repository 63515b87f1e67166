"""Faults on purpose: farms and agents whose parts are wrapped, so that they break where a plan says.

``plan`` reads plans, ``places`` carries them out, and ``server``, ``client`` and ``executor`` say which part each place
is in; they are modules to run in the place of the shipped ones. Nothing of it is shipped.
"""
