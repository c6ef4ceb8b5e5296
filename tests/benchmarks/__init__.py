"""`make bench`: bertcli compared with similar tools. Not part of the test suite."""
