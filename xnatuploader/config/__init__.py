"""What the Configuration sheet means: its rows, path patterns, mappings."""
