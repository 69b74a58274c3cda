"""Files to rows: found, matched, merged with the list, labelled, placed, summed up by session."""
