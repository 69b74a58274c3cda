"""A real XNAT on this computer, for the tests marked `real`."""
