"""Mutation testing: does a test fail if a line of the code is changed? ``make mutants`` runs it.

mutmut leaves out decorated functions and the statements of a module, and neither mutmut nor cosmic-ray deletes
statements; those are the changes that went unnoticed here. So the runner is our own, and small:

- ``mutate`` makes the mutants of a module, each with one change of its syntax tree;
- ``coverage`` records which tests execute which lines;
- ``trial`` runs, in a forked process, the tests that execute the changed line;
- ``modules`` names the modules and the tests that must notice a change of them;
- ``equivalent`` lists the mutants that behave like the original, each with the reason.
"""
