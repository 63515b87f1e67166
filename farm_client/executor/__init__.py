"""The executor: the process on the volunteer's machine that imports torch and runs the researcher's code."""
