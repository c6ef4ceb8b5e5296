"""`make bench`: this program and its peers side by side. Nothing here is part of the test suite."""
