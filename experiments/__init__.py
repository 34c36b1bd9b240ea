"""The top layer: the command line, whole runs from recipes, evaluation, benchmarks and reports."""
