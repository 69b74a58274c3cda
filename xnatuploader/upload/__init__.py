"""One upload run, from the rows of the workbook to the last status."""
