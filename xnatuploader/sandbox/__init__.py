"""A throw-away XNAT on loopback, for trying the tool, for training and for tests."""
