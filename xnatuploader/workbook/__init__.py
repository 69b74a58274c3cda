"""The .xlsx file: the only modules that know worksheets, cells and zip parts."""
