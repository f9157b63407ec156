"""The commands: one module each, which defines its flags and ``main(argv)``. A module whose name begins with "_" is none.

Adding a command is adding a file here: its name, with dashes, is the command, the first line of its docstring its line in the list,
and the docstring with its flags what ``--help`` shows.
"""
