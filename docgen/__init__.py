"""What a package installs beside the program for people to read, made from the tables and parsers that it runs by.

It stands beside the package and not in it: it reads both halves, the daemon's and the client's, and is needed by none.
"""
